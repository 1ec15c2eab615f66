"""The store's bytes are a function of log and seed, not of chunks, commits, memory, threads or crashes."""

import threading
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from trainer_runs import SMALL, Bytes, assert_same_bytes, make_dataset, store_bytes, write_log

from feature_store.configuration import Configuration
from feature_store.index import SlotIndex
from feature_store.row_layout import RowLayout
from feature_store.rows import ReadRows, RowTable
from feature_store.settings import load_configuration
from feature_store.store_process import StoreProcess, open_store
from stream_trainer import feed as feed_module
from stream_trainer import ingest, state
from stream_trainer.feed import LocalFeed
from stream_trainer.file_log import FileEventLog
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.trainer import Trainer

NUM_INTERACTIONS = 2400
MODELS = {
    "default": ["learning.rehearsal_capacity=500"],
    "paper": [
        "model.preset=paper",
        "model.temperature=0.1",
        "model.hidden=[16]",
        "learning.batch_size=16",
        "learning.rehearsal_ratio=1",
        "learning.prequential_every=7",
        "learning.precision=bfloat16",
    ],
    "at close": [
        "join.emit=at_close",
        "learning.shown_negatives=4",
        "learning.in_batch_negatives=true",
        "model.logq=true",
        "model.use_user_id=true",
        "learning.rows_optimiser=rowwise_adam",
        "learning.frequency_half_life=300",
        "join.max_waiting_impressions=100",
    ],
}
IN_ONE_GO = ["learning.commit_interval_seconds=1e9", "store.own_process=false"]
ROWS_IN_MEMORY = {"user": 200, "item": 500, "value": 1000}


class CrashError(Exception):
    """Stands for a power cut."""


class CrashingTrainer(Trainer):
    """Dies after so many commits, at the worst moment: the state is durable, and nothing else is done."""

    commits_left = 0

    def commit(self) -> None:
        """Commit, and die if it is time."""
        super().commit()
        self.commits_left -= 1
        if self.commits_left == 0:
            raise CrashError


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("determinism")
    dataset = make_dataset(folder / "data", 1100, 150, NUM_INTERACTIONS)
    config = load_configuration(None, [f"log.path={folder / 'log'}"], {})
    write_log(config, dataset)
    return folder / "log"


@pytest.fixture
def tables(monkeypatch: pytest.MonkeyPatch) -> list[RowTable]:
    """Let memory hold few rows, fewer than there are users and items; return the tables that are made."""
    made: list[RowTable] = []

    def make(name: str, layout: RowLayout, index: SlotIndex, read: ReadRows, _: int, seed: int) -> RowTable:
        made.append(RowTable(name, layout, index, read, ROWS_IN_MEMORY[name], seed))
        return made[-1]

    monkeypatch.setattr(state, "RowTable", make)
    return made


def num_evicted(tables: list[RowTable]) -> int:
    return sum(table.num_evicted for table in tables)


def configuration(log: Path, store: Path, settings: Sequence[str]) -> Configuration:
    return load_configuration(None, [*SMALL, *settings, f"log.path={log}", f"store.path={store}"], {})


def learn(log: Path, store: Path, settings: Sequence[str], commits_between_crashes: int = 0) -> Bytes:
    """Run the trainer to the end of the log, again after each crash, and return the store's bytes.

    Every other run lives one commit longer: the very last is one to crash after, too, but not for ever.
    """
    config = configuration(log, store, settings)
    has_ended, num_crashes = False, 0
    while not has_ended:
        feed, opened = LocalFeed(config, FileEventLog(log), until_end=True), open_store(config.store)
        run = CrashingTrainer(config, feed, opened, TrainerMetrics(CollectorRegistry()))
        if commits_between_crashes:
            run.commits_left = commits_between_crashes + num_crashes % 2
        try:
            run.run(threading.Event())
            has_ended = True
        except CrashError:
            num_crashes += 1
        finally:
            feed.close()
            opened.close()
    assert bool(num_crashes) == bool(commits_between_crashes)
    return store_bytes(store)


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> list[str]:
    settings: list[str] = MODELS[request.param]
    return settings


@pytest.fixture(scope="module")
def undisturbed(model: list[str], log: Path, tmp_path_factory: pytest.TempPathFactory) -> Bytes:
    return learn(log, tmp_path_factory.mktemp("undisturbed") / "store", [*model, *IN_ONE_GO])


def test_chunks_and_polls_do_not_matter(
    model: list[str], undisturbed: Bytes, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "_CHUNK_RECORDS", 37)
    monkeypatch.setattr(ingest, "_POLL_RECORDS", 11)
    monkeypatch.setattr(ingest, "_MAX_WAITING", 23)
    assert_same_bytes(learn(log, tmp_path / "store", [*model, *IN_ONE_GO]), undisturbed)


def test_memory_and_commits_do_not_matter(
    model: list[str], undisturbed: Bytes, log: Path, tmp_path: Path, tables: list[RowTable]
) -> None:
    often = ["learning.commit_every_batches=4", "store.own_process=false"]
    assert_same_bytes(learn(log, tmp_path / "store", [*model, *often]), undisturbed)
    assert num_evicted(tables) > 1000


def test_rows_read_ahead_do_not_matter(
    model: list[str],
    undisturbed: Bytes,
    log: Path,
    tmp_path: Path,
    tables: list[RowTable],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The store beside reads the next batch's rows; they are learned, committed, evicted and read again."""
    told: set[bytes] = set()
    num_early, read_ahead, get = 0, StoreProcess.read_ahead, StoreProcess.get

    def tell(store: StoreProcess, keys: Mapping[str, list[bytes]]) -> None:
        told.update(*keys.values())
        read_ahead(store, keys)

    def find(store: StoreProcess, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        nonlocal num_early
        num_early += len(told.intersection(keys))
        told.difference_update(keys)
        return get(store, family, keys)

    monkeypatch.setattr(StoreProcess, "read_ahead", tell)
    monkeypatch.setattr(StoreProcess, "get", find)
    often = [*model, "learning.commit_every_batches=4", "store.own_process=true"]
    assert_same_bytes(learn(log, tmp_path / "store", often, commits_between_crashes=9), undisturbed)
    assert num_evicted(tables) > 1000
    assert num_early > 1000


def test_crashes_between_batches_do_not_matter(
    model: list[str], undisturbed: Bytes, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full memory makes the trainer commit before a batch, in the middle of what one event sets off."""
    turns = cycle([True, *[False] * 24])  # three tables are asked before each batch
    monkeypatch.setattr(RowTable, "needs_commit", property(lambda table: next(turns)))
    store = learn(log, tmp_path / "store", [*model, *IN_ONE_GO], commits_between_crashes=1)
    assert_same_bytes(store, undisturbed)


@pytest.mark.usefixtures("tables")
def test_crashes_between_events_do_not_matter(
    model: list[str], undisturbed: Bytes, log: Path, tmp_path: Path
) -> None:
    often = ["learning.commit_every_batches=3", "store.own_process=false"]
    store = learn(log, tmp_path / "store", [*model, *often], commits_between_crashes=4)
    assert_same_bytes(store, undisturbed)


def test_threads_do_not_race(tmp_path: Path) -> None:
    """Threads add up a large gradient of `x[places]` in any order: few users in large batches show it."""
    log = tmp_path / "log"
    write_log(
        load_configuration(None, [f"log.path={log}"], {}), make_dataset(tmp_path / "data", 12, 150, 1200)
    )
    wide = [
        "learning.num_threads=2",
        "learning.batch_size=256",
        "learning.rehearsal_ratio=40",
        "model.use_user_id=true",
        "model.user_augmented=learned",
        *IN_ONE_GO,
    ]
    expected = learn(log, tmp_path / "first", wide)
    for number in range(2):
        assert_same_bytes(learn(log, tmp_path / f"{number}", wide), expected)


def test_the_seed_matters(log: Path, tmp_path: Path) -> None:
    stores = [learn(log, tmp_path / f"{n}", [f"learning.seed={n}", *IN_ONE_GO]) for n in (1, 2)]
    assert stores[0]["dense"] != stores[1]["dense"]
    assert stores[0]["join"] == stores[1]["join"]


def test_a_catalogue_larger_than_memory_does_not_matter(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """All items come first: their rows fill memory before anything is learned."""
    settings = ["model.history_length=4", *IN_ONE_GO]
    dataset = make_dataset(tmp_path / "data", 200, 3000, 3300)
    write_log(load_configuration(None, [f"log.path={tmp_path / 'log'}"], {}), dataset)
    expected = learn(tmp_path / "log", tmp_path / "large", settings)
    tables: list[RowTable] = request.getfixturevalue("tables")
    assert_same_bytes(learn(tmp_path / "log", tmp_path / "small", settings), expected)
    assert num_evicted(tables) > 1000
