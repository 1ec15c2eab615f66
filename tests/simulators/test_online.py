"""The pass over a log: who answers what, by which knowledge, and that asking changes nothing."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from feature_store.configuration import Configuration
from feature_store.errors import DataError
from feature_store.schema import ItemFeatures
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from feature_store.store_reader import FeatureStoreReader
from simulators.dataset import Dataset, load_dataset
from simulators.epochs import EpochSettings
from simulators.online import FROZEN, NEVER, ONLINE, RETRAINED, PassResult, Retraining, run_online
from simulators.online_models import Generation, Questions
from simulators.online_plan import Plan, Window, make_plan, needed_refreshes
from simulators.synthetic import generate
from stream_trainer.chunker import Chunker
from stream_trainer.event_log import TopicPartition
from stream_trainer.session import Session
from stream_trainer.state import TrainerState

SMALL = (
    "model.hidden=[16]",
    "learning.batch_size=16",
    "learning.shared_negatives=32",
    "learning.rehearsal_ratio=2",
    "learning.rehearsal_capacity=5000",
    "learning.num_threads=1",
    "learning.prequential_every=0",
)
NO_LEARNING = (
    "learning.rows_learning_rate=1e-30",
    "learning.dense_learning_rate=1e-30",
    "model.popularity_weight=0",
)
DAY_SECONDS = 86_400.0


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("reviews")
    generate(folder, num_users=80, num_items=40, num_interactions=900, num_categories=4, seed=1)
    return load_dataset(folder)


def configured(path: Path, *overrides: str) -> Configuration:
    return load_configuration(None, [*SMALL, *overrides, f"store.path={path}"], {})


def run(
    dataset: Dataset,
    folder: Path,
    *overrides: str,
    refresh: tuple[float, ...] = (),
    retrained: bool = False,
    num_windows: int = 4,
) -> PassResult:
    beside = Retraining(
        configured(folder / "retrained", *overrides, "learning.rehearsal_ratio=0"), EpochSettings(count=1)
    )
    plan = make_plan(len(dataset.reviews), num_windows, 60, 2, 0.2)
    config = configured(folder / "store", *overrides)
    return run_online(config, dataset, 0, plan, refresh, beside if retrained else None)


def test_a_model_that_never_learns_answers_alike_frozen_or_not(dataset: Dataset, tmp_path: Path) -> None:
    """Histories and means go on with both; what differs is learned, and here nothing is."""
    result = run(dataset, tmp_path, *NO_LEARNING, retrained=True, refresh=(DAY_SECONDS,))
    online = result.ranks[ONLINE]
    for name in (FROZEN, NEVER, RETRAINED, "refresh 86400"):
        known = ~np.isnan(result.ranks[name])
        assert known.sum() > 100, name
        assert np.mean(np.abs(result.ranks[name] - online)[known] < 0.6) > 0.97, name


def test_a_model_that_learns_leaves_the_frozen_one_behind(dataset: Dataset, tmp_path: Path) -> None:
    result = run(dataset, tmp_path, retrained=True)
    online, frozen = result.ranks[ONLINE], result.ranks[FROZEN]
    assert online[0] == frozen[0] == result.ranks[NEVER][0]  # at its start it is the same model
    last = result.windows == result.windows.max()
    assert np.mean(online[last] != frozen[last]) > 0.5
    assert len(result.retrain_seconds) == 2
    assert not np.isnan(result.ranks[RETRAINED]).any()


def test_answers_do_not_know_what_comes_later(dataset: Dataset, tmp_path: Path) -> None:
    """Another item in a late review changes its own question and nothing asked before its click."""
    reviews = dataset.reviews
    row = len(reviews) - 30
    items = reviews.items.copy()
    owned = set(items[reviews.users == reviews.users[row]].tolist())
    items[row] = next(item for item in range(len(reviews.item_ids)) if item not in owned)
    changed = replace(dataset, reviews=replace(reviews, items=items))
    one, other = run(dataset, tmp_path / "a"), run(changed, tmp_path / "b")
    assert one.rows.tolist() == other.rows.tolist()
    before = one.rows < row
    assert before.sum() > 150
    np.testing.assert_array_equal(one.ranks[ONLINE][before], other.ranks[ONLINE][before])
    at = one.rows == row
    assert one.ranks[ONLINE][at] != other.ranks[ONLINE][at]


def test_asking_changes_nothing_that_is_learned(dataset: Dataset, tmp_path: Path) -> None:
    """However much is asked, the store's rows end as they do when little is."""

    def rows(num_windows: int, retrained: bool) -> dict[str, list[tuple[bytes, bytes]]]:
        folder = tmp_path / f"{num_windows}"
        run(dataset, folder, num_windows=num_windows, retrained=retrained, refresh=(DAY_SECONDS,))
        store = FeatureStore(folder / "store")
        try:
            return {family: list(store.items(family)) for family in ("item", "user", "dense")}
        finally:
            store.close()

    # The last commit is for the last window, which ends the log whatever else is asked.
    assert rows(2, False) == rows(6, True)


def test_the_shortest_interval_is_always(dataset: Dataset, tmp_path: Path) -> None:
    result = run(dataset, tmp_path, refresh=(0.001, 40 * DAY_SECONDS))
    np.testing.assert_array_equal(result.ranks["refresh 0.001"], result.ranks[ONLINE])
    assert (result.ranks["refresh 3.456e+06"] != result.ranks[ONLINE]).any()


def test_an_interval_longer_than_the_log_never_serves(dataset: Dataset, tmp_path: Path) -> None:
    """Its one generation is of before the log: nothing is in it, so nothing can be found."""
    result = run(dataset, tmp_path, refresh=(1e10,))
    assert np.isinf(result.ranks["refresh 1e+10"]).all()


def served(dataset: Dataset, folder: Path) -> tuple[FeatureStoreReader, FeatureStore]:
    """Return a store in which all but the last items of the data set are live, with untrained rows."""
    config = configured(folder)
    store = FeatureStore(folder)
    state = TrainerState(config, store)
    session = Session(config, state, lambda *_: None, lambda: None)
    chunker = Chunker(config.join, state.position())
    for number, item_id in enumerate(dataset.reviews.item_ids[:-1]):
        event = ItemFeatures(id=item_id, ts_ms=1, features={"category": f"c{number % 3}"})
        chunker.add([(TopicPartition("items", 0), 1, number, event)])
    session.apply(chunker.take())
    state.commit()
    reader = FeatureStoreReader(folder)
    reader.catch_up()
    return reader, store


def test_what_a_user_has_is_left_out_and_what_is_not_there_is_not_found(
    dataset: Dataset, tmp_path: Path
) -> None:
    reader, store = served(dataset, tmp_path)
    numbers = {item_id: number for number, item_id in enumerate(dataset.reviews.item_ids)}
    generation = Generation(reader, numbers)
    missing = len(numbers) - 1
    nothing = np.zeros(0, np.int64)

    def rank(item: int, excluded: np.ndarray) -> float:
        return float(generation.ranks(Questions(["nobody"], np.array([item]), [excluded]))[0])

    ranks = [rank(item, nothing) for item in range(missing)]
    assert sorted(ranks)[0] >= 1
    assert max(ranks) <= missing
    best, worst = int(np.argmin(ranks)), int(np.argmax(ranks))
    others = np.array([item for item in range(missing) if item != worst])
    assert rank(worst, others) == 1
    assert rank(worst, np.array([best, missing])) == ranks[worst] - 1
    assert rank(missing, nothing) == np.inf
    reader.close()
    store.close()


def test_a_plan_covers_the_end_and_refuses_what_is_too_small() -> None:
    plan = make_plan(10_000, 40, 100, 4, 0.1)
    assert plan.windows[0].start == plan.frozen_at == plan.retrain_at[0] == 1000
    assert plan.windows[-1].stop == 10_000
    assert all(one.stop <= other.start for one, other in zip(plan.windows, plan.windows[1:], strict=False))
    assert {window.retraining for window in plan.windows} == {-1, 0, 1, 2, 3}
    for number, row in enumerate(plan.retrain_at):
        assert min(window.start for window in plan.windows if window.retraining == number) == row
    assert make_plan(100, 10, 500, 1, 0.1).windows[-1].stop == 100
    with pytest.raises(DataError, match="too few"):
        make_plan(20, 40, 100, 4, 0.1)


def test_a_refresh_is_made_where_a_question_meets_it_and_nowhere_else() -> None:
    times = [0, 999, 1000, 1500, 2999, 9000]
    plan = Plan((Window(1, 3, 0), Window(4, 5, -1)), (1,), 1)
    assert needed_refreshes(plan, times, 1000) == [0, 1000, 2000]
