"""Batch epochs: what an example may know, and what is rebuilt, against loops and changed futures."""

from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from feature_store.store_reader import FeatureStoreReader
from simulators.dataset import Dataset, load_dataset
from simulators.epochs import EpochSettings, Past, fold_past, prefix_means, rebuild_means, train_epochs
from simulators.evaluate import figures_of, hold_out, popularity_scorer, rank_by_scorer, rank_by_store
from simulators.synthetic import generate
from simulators.timeline import timeline
from stream_trainer.examples import Examples
from stream_trainer.learner import Learner
from stream_trainer.state import TrainerState


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("generated")
    generate(folder, 150, 80, 1_500, 3, seed=4)
    return load_dataset(folder)


def configuration(folder: Path, *overrides: str) -> Configuration:
    given = ["learning.num_threads=1", "learning.rehearsal_ratio=0", "learning.batch_size=256"]
    return load_configuration(None, [*given, f"store.path={folder}/store", *overrides], {})


def folded(folder: Path, dataset: Dataset, *overrides: str) -> Past:
    """Return the examples with their means under untrained towers."""
    store = FeatureStore(configuration(folder, *overrides).store.path)
    state = TrainerState(configuration(folder, *overrides), store)
    past = fold_past(state, dataset, 0)
    rebuild_means(state, past)
    store.close()
    return past


def test_examples_are_the_clicks_in_order_with_what_their_users_did_before(tmp_path: Path, dataset: Dataset):
    past = folded(tmp_path, dataset, "model.history_length=5", "features.user_numeric=['num_reviews']")
    items: dict[str, int] = {}
    seen: dict[str, list[int]] = defaultdict(list)
    expected = []
    for _, event in timeline(dataset, 0):
        if type(event).__name__ == "ItemFeatures":
            items.setdefault(event.id, len(items))
        elif type(event).__name__ == "Click":
            history = seen[event.user_id]
            count = np.float32(np.log1p(len(history))) if history else np.nan
            padded = [-1] * (5 - len(history[-5:])) + history[-5:]
            expected.append((event.user_id, items[event.item_id], padded, count))
            history.append(items[event.item_id])
    assert len(past.users) == len(expected) == 1_500
    users, numbers, histories, counts = zip(*expected, strict=True)
    assert [past.user_ids[user] for user in past.users] == list(users)
    assert past.records["item"].tolist() == list(numbers)
    assert past.records["history"].tolist() == list(histories)
    np.testing.assert_allclose(past.records["numbers"][:, 0], counts, rtol=1e-6)
    assert len(np.unique(past.records["offset"])) == 1_500  # draws are hashes of it


def test_no_example_sees_its_own_future(tmp_path: Path, dataset: Dataset):
    """Whatever comes later, what an example holds stays the same, bit for bit: also its running mean."""
    reviews, half = dataset.reviews, 750
    items = reviews.items.copy()
    items[half:] = np.random.default_rng(0).permutation(items[half:])
    ratings = reviews.ratings.copy()
    ratings[half:] = 1.0
    other = replace(dataset, reviews=replace(reviews, items=items, ratings=ratings))
    numeric = "features.user_numeric=['num_reviews', 'average_rating']"
    ours, theirs = (folded(tmp_path / name, data, numeric) for name, data in (("a", dataset), ("b", other)))
    changed = np.flatnonzero(ours.records["item"] != theirs.records["item"])[0]
    early = slice(0, int(changed))
    assert changed > 700
    assert ours.records[early].tobytes() == theirs.records[early].tobytes()
    assert np.any(ours.records["augmented"][early] != 0)
    assert ours.records["augmented"].tobytes() != theirs.records["augmented"].tobytes()
    own_answer = ours.records[int(changed)], theirs.records[int(changed)]
    assert own_answer[0]["augmented"].tobytes() == own_answer[1]["augmented"].tobytes()
    assert own_answer[0]["history"].tobytes() == own_answer[1]["history"].tobytes()


@pytest.mark.parametrize("block", [1, 7, 1 << 16])
@pytest.mark.parametrize("memory", [1.0, 2.5, 1e9])
def test_prefix_means_equal_a_loop(block: int, memory: float):
    rng = np.random.default_rng(block)
    users, values = rng.integers(0, 9, 60), rng.normal(size=(60, 3)).astype(np.float32)
    before, after = np.full((60, 3), np.nan, np.float32), {}
    for part in prefix_means(users, lambda at: values[at], memory, block):
        before[part.places] = part.before
        after |= dict(zip(users[part.places[part.of_user]].tolist(), part.after, strict=True))
    mean, count = np.zeros((9, 3)), np.zeros(9)
    for place, user in enumerate(users.tolist()):
        np.testing.assert_allclose(before[place], mean[user], rtol=1e-5, atol=1e-6)
        count[user] += 1
        share = 1 / min(count[user], memory)
        mean[user] = (1 - share) * mean[user] + share * values[place]
    assert sorted(after) == sorted(set(users.tolist()))
    for user, last in after.items():
        np.testing.assert_allclose(last, mean[user], rtol=1e-5, atol=1e-6)


def test_rows_end_with_the_means_and_frequencies_of_one_pass(tmp_path: Path, dataset: Dataset):
    """Frequencies are counted once, whatever the number of epochs; users' means are those of final towers."""
    config = configuration(tmp_path, "learning.frequency_half_life=500", "model.augmented_memory=1e9")
    train_epochs(config, dataset, 0, EpochSettings(count=3))
    store = FeatureStore(config.store.path)
    state = TrainerState(config, store)
    past = fold_past(TrainerState(config, FeatureStore(tmp_path / "other")), dataset, 0)
    numbers = past.records["item"]
    expected = np.zeros(80)
    np.add.at(expected, numbers, 2.0 ** (-(1_500 - 1 - np.arange(1_500)) / 500))
    items = state.tables.item
    slots = items.slots(np.arange(80))
    np.testing.assert_allclose(items.floats(slots, "frequency")[:, 0], expected, rtol=1e-4)
    assert state.num_positives == 1_500
    assert set(items.ints(slots, "frequency_at")[:, 0].tolist()) == {1_500}
    embeddings = state.learner.embed_items(np.arange(80)).numpy()
    users = state.tables.user
    for user in (0, 7, 149):
        own = numbers[past.users == user]
        slot = users.slots([past.user_ids[user]])
        np.testing.assert_allclose(users.floats(slot, "mean")[0], embeddings[own].mean(axis=0), atol=1e-5)
        assert users.floats(slot, "mean_count").item() == len(own)
    store.close()


def test_the_same_seed_ranks_the_same_and_another_does_not(tmp_path: Path, dataset: Dataset):
    held = hold_out(dataset, None, None)
    ranks = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        config = configuration(tmp_path / name)
        train_epochs(config, held.train, seed, EpochSettings(count=2))
        ranks.append(rank_by_store(config.store.path, held).ranks)
    assert ranks[0].tobytes() == ranks[1].tobytes() != ranks[2].tobytes()


def test_epochs_take_the_past_shuffled_or_in_order_of_time(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
):
    def taken(in_order: bool) -> list[list[int]]:
        """Return the offsets of the examples in the order in which each epoch learned them."""
        epochs: dict[int, list[int]] = {}

        def step(learner: Learner, examples: Examples, num_new: int, num_positives: int) -> None:
            epochs.setdefault(int(examples.records["partition"][0]), []).extend(examples.records["offset"])

        monkeypatch.setattr(Learner, "step", step)
        config = configuration(tmp_path / str(in_order))
        train_epochs(config, dataset, 0, EpochSettings(count=2, in_order=in_order))
        return [epochs[1], epochs[2]]

    first, second = taken(in_order=True)
    assert first == second == sorted(first)
    assert len(first) == 1_500
    shuffled, differently = taken(in_order=False)
    assert sorted(shuffled) == sorted(differently) == first
    assert shuffled != first != differently != shuffled


def test_epochs_find_what_is_planted_and_tell_of_each(tmp_path: Path):
    generate(tmp_path / "data", 300, 100, 3_000, 3, seed=1)
    held = hold_out(load_dataset(tmp_path / "data"), None, None)
    config = configuration(tmp_path, "learning.batch_size=128", "learning.shared_negatives=128")
    told = []

    def on_epoch(done: int) -> None:
        reader = FeatureStoreReader(config.store.path)
        told.append((done, reader.catch_up().number))
        reader.close()

    train_epochs(config, held.train, 0, EpochSettings(count=8), on_epoch)
    assert [done for done, _ in told] == list(range(9))
    assert all(later > earlier for (_, earlier), (_, later) in pairwise(told))
    learned = figures_of(rank_by_store(config.store.path, held).ranks, held)
    popular = figures_of(rank_by_scorer(held, popularity_scorer(held.train)).ranks, held)
    assert learned["mrr10"] > 1.3 * popular["mrr10"]


def test_shown_negatives_are_refused(tmp_path: Path, dataset: Dataset):
    config = configuration(tmp_path, "join.emit=at_close", "learning.shown_negatives=2")
    with pytest.raises(SettingsError, match="shown_negatives"):
        train_epochs(config, dataset, 0, EpochSettings(count=1))
