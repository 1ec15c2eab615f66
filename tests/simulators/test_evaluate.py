"""The protocol from scores to figures: order, exclusions, ties, and memory at the size of Amazon Books."""

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest

from simulators.dataset import Dataset, Reviews
from simulators.evaluate import Held, figures_of, rank_by_scorer, ranks_of, variety_of
from simulators.metrics import middle_ranks

BOOKS_ITEMS = 243_166


def held_of(num_users: int, num_items: int, test_items: np.ndarray, owned: np.ndarray) -> Held:
    """Return one training review of `owned[u]` and one held-out review of `test_items[u]` of each user."""
    users, items = [f"u{u}" for u in range(num_users)], [f"i{i}" for i in range(num_items)]

    def dataset(column: np.ndarray) -> Dataset:
        zeros = np.zeros(num_users, np.int32)
        numbers = np.arange(num_users, dtype=np.int32)
        ts_ms, ratings = np.arange(num_users, dtype=np.int64), zeros.astype(np.float32)
        return Dataset(
            "x", Reviews(users, items, numbers, column.astype(np.int32), ts_ms, ratings, zeros), {}
        )

    return Held(dataset(owned), dataset(test_items))


def test_ranks_equal_those_of_one_block_in_the_order_of_the_reviews(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    test_items, owned = rng.integers(0, 30, 50), rng.integers(0, 30, 50)
    owned = np.where(owned == test_items, (owned + 1) % 30, owned)
    held = held_of(50, 30, test_items, owned)
    scores = rng.integers(0, 6, (50, 30)).astype(np.float32)
    place = rng.permutation(30)
    expected = middle_ranks(scores, place[test_items], [[place[item]] for item in owned])
    for at_once in (1, 90, 1 << 20):
        monkeypatch.setattr("simulators.evaluate._SCORES_AT_ONCE", at_once)
        assert ranks_of(held, place, lambda users: scores[users]).tolist() == expected.tolist()


def test_constant_embeddings_score_as_random_ones():
    num_users, num_items = 3_000, 200
    rng = np.random.default_rng(1)
    held = held_of(num_users, num_items, rng.integers(0, 100, num_users), rng.integers(100, 200, num_users))
    noise = rank_by_scorer(held, lambda users: rng.random((len(users), num_items), np.float32)).ranks
    constant = rank_by_scorer(held, lambda users: np.full((len(users), num_items), 0.3, np.float32)).ranks
    assert set(constant.tolist()) == {100.0}  # the middle of 199: one is the user's own
    assert noise.mean() == pytest.approx(100.0, abs=3.0)
    figures = figures_of(constant, held)
    assert figures["hr@10"] == figures["hr@50"] == figures["ndcg@10"] == 0.0
    assert figures["hr@100"] == 1.0
    assert figures_of(noise, held)["hr@50"] == pytest.approx(50 / 199, abs=0.03)


def test_memory_of_ranking_is_bounded_at_the_size_of_books():
    """So many items that the scores of all 500 users together would take 490 MB."""
    rng = np.random.default_rng(2)
    held = held_of(500, BOOKS_ITEMS, rng.integers(0, 1000, 500), rng.integers(1000, 2000, 500))
    blocks: list[int] = []

    def scorer(users: list[int]) -> np.ndarray:
        blocks.append(len(users))
        return np.zeros((len(users), BOOKS_ITEMS), np.float32)

    tracemalloc.start()
    try:
        rank_by_scorer(held, scorer)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert sum(blocks) == 2 * 500  # ranked, and listed
    assert peak < 120 << 20


def test_lists_are_of_the_catalogue_without_what_the_user_has_and_one_a_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owned, test_items = np.array([0, 1, 2]), np.array([3, 4, 5])
    held = held_of(3, 120, test_items, owned)
    place = np.arange(120)[::-1]
    ascending = np.arange(120, dtype=np.float32)  # by column: the data set's first items are the best

    def alike(users: list[int]) -> np.ndarray:
        return np.tile(ascending, (len(users), 1))

    # Each list leaves out its user's own, one of 0, 1, 2, and ends with 50: two share all but one of each.
    for at_once in (1 << 20, 1):  # in one block, and user by user
        monkeypatch.setattr("simulators.evaluate._SCORES_AT_ONCE", at_once)
        found = variety_of(held, place, alike)
        assert found.coverage == pytest.approx(51 / 120)
        assert found.overlap == pytest.approx(49 / 50)
    twice = replace(held.test, reviews=replace(held.test.reviews, users=np.array([0, 0, 1], np.int32)))
    assert variety_of(Held(held.train, twice), place, alike).overlap == pytest.approx(49 / 50)


def test_small_catalogues_have_short_lists_and_who_has_most_of_one_has_none() -> None:
    """Of six items lists have three; user 0 has four of them, and nothing is told of lists nobody has."""
    reviews = held_of(3, 6, np.array([0, 1, 2]), np.array([3, 4, 5])).train.reviews
    users, items = np.array([0, 0, 0, 0, 1, 2], np.int32), np.array([1, 2, 3, 4, 5, 5], np.int32)
    zeros = np.zeros(6)
    train = Dataset(
        "x", replace(reviews, users=users, items=items, ts_ms=zeros, ratings=zeros, helpful_votes=zeros), {}
    )
    test = held_of(3, 6, np.array([0, 1, 2]), np.array([3, 4, 5])).test
    best_first = -np.arange(6, dtype=np.float32)

    def alike(users: list[int]) -> np.ndarray:
        assert 0 not in users
        return np.tile(best_first, (len(users), 1))

    assert variety_of(Held(train, test), np.arange(6), alike) == (0.5, 1.0)
    alone = replace(test, reviews=replace(test.reviews, users=np.zeros(3, np.int32)))
    assert np.isnan(variety_of(Held(train, alone), np.arange(6), alike)).all()


def test_many_users_are_sampled(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("simulators.evaluate.LISTS", 3)
    held = held_of(10, 100, np.arange(10), np.arange(10, 20))
    asked: list[int] = []

    def scorer(users: list[int]) -> np.ndarray:
        asked.extend(users)
        return np.zeros((len(users), 100), np.float32)

    variety_of(held, np.arange(100), scorer)
    assert asked == [0, 4, 9]


def test_recall_is_a_mean_over_users_and_hit_rate_over_reviews():
    held = held_of(3, 100, np.array([1, 2, 3]), np.array([4, 5, 6]))
    test = held.test.take(np.array([0, 1, 2]))
    two = Dataset("x", Reviews(**{**vars(test.reviews), "users": np.array([0, 0, 2], np.int32)}), {})
    figures = figures_of(np.array([1.0, 90.0, 5.0]), Held(held.train, two))
    assert figures["hr@10"] == pytest.approx(2 / 3)
    assert figures["recall@10"] == pytest.approx((1 / 2 + 1) / 2)
