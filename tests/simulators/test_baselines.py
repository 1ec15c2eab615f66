"""Popularity, chance and implicit ALS: what they score, and that ALS finds what is planted."""

from pathlib import Path

import numpy as np
import pytest
from implicit.als import AlternatingLeastSquares
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from simulators.baselines import AlsSettings, als_scorer, popularity_scorer, random_scorer
from simulators.dataset import load_dataset
from simulators.evaluate import Held, figures_of, hold_out, rank_by_scorer
from simulators.synthetic import generate


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Held:
    folder: Path = tmp_path_factory.mktemp("generated")
    generate(folder, 400, 120, 5_000, 3, seed=1)
    return hold_out(load_dataset(folder), None, None)


def test_popularity_counts_the_training_reviews(held: Held):
    reviews = held.train.reviews
    scores = popularity_scorer(held.train)([3, 5])
    assert scores.shape == (2, 120)
    assert scores[0].tolist() == scores[1].tolist()
    assert scores[0, 17] == sum(1 for item in reviews.items.tolist() if item == 17)


def test_als_beats_popularity_and_chance_does_not(held: Held):
    scorers = {
        "als": als_scorer(held.train, AlsSettings(factors=16, alpha=10), 0),
        "popularity": popularity_scorer(held.train),
        "random": random_scorer(held.train, 0),
    }
    mrr10 = {name: figures_of(rank_by_scorer(held, s).ranks, held)["mrr10"] for name, s in scorers.items()}
    assert mrr10["als"] > 1.3 * mrr10["popularity"]
    assert mrr10["popularity"] > mrr10["random"]


def test_als_recommends_what_the_library_itself_does(held: Held):
    """Its users and items are ours, in our order, and scored as the library scores."""
    reviews = held.train.reviews
    pairs = csr_matrix((np.ones(len(reviews), np.float32), (reviews.users, reviews.items)), shape=(400, 120))
    model = AlternatingLeastSquares(factors=8, alpha=3.0, iterations=5, num_threads=1, random_state=7)
    with threadpool_limits(1, "blas"):
        model.fit(pairs, show_progress=False)
    users = np.array([0, 9, 200])
    items, scores = model.recommend(users, pairs[users], N=5, filter_already_liked_items=False)
    ours = als_scorer(held.train, AlsSettings(factors=8, regularization=0.01, alpha=3.0, iterations=5), 7)(
        users.tolist()
    )
    assert np.argsort(-ours, axis=1)[:, :5].tolist() == items.tolist()
    np.testing.assert_allclose(np.take_along_axis(ours, items, axis=1), scores, rtol=1e-5)


def test_als_gives_users_without_reviews_what_is_popular(held: Held):
    """Their factors are 0, by which every item would be as good as any other."""
    reviews = held.train.reviews
    without = held.train.take(reviews.users != 7)
    scores = als_scorer(without, AlsSettings(factors=8), 0)([7, 9])
    assert scores[0].tolist() == popularity_scorer(without)([7])[0].tolist()
    np.testing.assert_allclose(scores[1], als_scorer(without, AlsSettings(factors=8), 0)([9])[0], rtol=1e-5)
    assert abs(scores[1]).max() < 2 < scores[0].max()


def test_als_of_a_seed_is_the_same_each_time(held: Held):
    same = [als_scorer(held.train, AlsSettings(factors=8), 3)([0, 1]).tobytes() for _ in range(2)]
    assert same[0] == same[1] != als_scorer(held.train, AlsSettings(factors=8), 4)([0, 1]).tobytes()
