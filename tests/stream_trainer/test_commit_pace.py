"""When the trainer commits: by time, and never so that learning waits for the commit before."""

import threading
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import pytest
from learning import configuration
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from feature_store.sequenced import Changes, encode_changes
from feature_store.store import CommitInfo, FeatureStore, RowWrites, Writes
from stream_trainer.chunk import Changed, Chunk, Joined, Marks, Position, as_facts
from stream_trainer.event_log import TopicPartition
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.trainer import Trainer

INTERVAL_S = 3.0
NUM_CHUNKS = 30


class Clock:
    """Time that passes by a second a chunk."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class SilentFeed:
    """Chunks of an event without facts, each of which takes a second."""

    until_end = True

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def start(self, position: Position) -> dict[str, str]:
        """Nothing is to be found."""
        return {}

    def next_chunk(self, timeout_s: float) -> Chunk:
        """Let a second pass."""
        self._clock.seconds += 1
        is_last = self._clock.seconds >= NUM_CHUNKS
        return Chunk([], [], Marks(), b"", {}, 0, 0, {"impressions": 1}, {}, 0, is_last)

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Nobody asks."""

    def close(self) -> None:
        """Nothing is held."""


class Trickle(SilentFeed):
    """Live: one click, then impressions that nobody clicks, without a pause. Stops the trainer in the end."""

    until_end = False

    def __init__(self, clock: Clock, stop: threading.Event) -> None:
        super().__init__(clock)
        self._stop = stop

    def next_chunk(self, timeout_s: float) -> Chunk:
        """Let a second pass."""
        self._clock.seconds += 1
        number = int(self._clock.seconds)
        facts = as_facts([Joined("u", "i", 0, 0)] if number == 1 else [])
        if number == NUM_CHUNKS:
            self._stop.set()
        marks = Marks(1000 * number, 1000, 1000 * number)
        return Chunk(facts, [], marks, b"", {}, 0, 0, {"impressions": 1}, {}, 1, False)


class Script(SilentFeed):
    """Live: these chunks, a second each, then silence until the trainer is stopped."""

    until_end = False

    def __init__(self, clock: Clock, stop: threading.Event, chunks: list[Chunk]) -> None:
        super().__init__(clock)
        self._stop, self._chunks = stop, chunks

    def next_chunk(self, timeout_s: float) -> Chunk:
        """Let a second pass."""
        self._clock.seconds += 1
        if self._clock.seconds >= NUM_CHUNKS:
            self._stop.set()
        return self._chunks.pop(0) if self._chunks else SILENCE


SILENCE = Chunk([], [], Marks(), b"", {}, 0, 0, {}, {}, 0, False)


class SlowStore(FeatureStore):
    """Takes some seconds to make a commit durable, and notes when it was asked to."""

    def __init__(self, path: Path, clock: Clock, seconds: float) -> None:
        super().__init__(path)
        self._clock, self._seconds, self._durable_at = clock, seconds, 0.0
        self.begun: list[float] = []
        self.waited: list[float] = []

    def commit(
        self, writes: Writes, watermark_ms: int, latest_click_ms: int, rows: RowWrites | None = None
    ) -> CommitInfo:
        """Begin a commit."""
        self.begun.append(self._clock())
        self._durable_at = self._clock() + self._seconds
        return super().commit(writes, watermark_ms, latest_click_ms, rows or {})

    def is_durable(self, wait: bool = False) -> bool:
        """Return whether it is by now; who waits is noted."""
        is_durable = self._clock() >= self._durable_at
        if wait and not is_durable:
            self.waited.append(self._clock())
        return wait or is_durable


@pytest.mark.parametrize(("seconds", "gap"), [(0.0, 3.0), (2.0, 3.0), (3.0, 3.0), (7.0, 7.0)])
def test_the_next_commit_begins_when_it_is_due_and_the_one_before_is_durable(
    seconds: float, gap: float, tmp_path: Path
) -> None:
    clock = Clock()
    config = configuration(
        f"learning.commit_interval_seconds={INTERVAL_S}", "learning.commit_every_batches=0"
    )
    store = SlowStore(tmp_path / "store", clock, seconds)
    trainer = Trainer(config, SilentFeed(clock), store, TrainerMetrics(CollectorRegistry()), clock)
    trainer.run(threading.Event())
    store.close()
    in_time = store.begun[:-1]
    assert in_time == [INTERVAL_S + gap * n for n in range(len(in_time))]
    assert len(in_time) == 1 + (NUM_CHUNKS - INTERVAL_S) // gap
    assert store.begun[-1] == NUM_CHUNKS
    assert set(store.waited) <= {float(NUM_CHUNKS)}, "learning waited for a commit"


def test_a_wait_for_rows_counts_among_what_commits_cost(tmp_path: Path) -> None:
    """A store that is writing answers later: whoever needs a row of it is held up, too."""
    config = configuration("learning.batch_size=1", "learning.commit_every_batches=0")
    clock = Clock()
    store = SlowStore(tmp_path / "store", clock, 0.0)
    trainer = Trainer(config, SilentFeed(clock), store, TrainerMetrics(CollectorRegistry()), clock)
    store.waits_s += [0.25, 0.5]
    trainer.session.apply(
        Chunk(as_facts([Joined("u", "i", 0, 0)]), [], Marks(), b"", {}, 0, 0, {}, {}, 0, False)
    )
    assert store.waits_s == []
    assert {0.25, 0.5} <= set(trainer.run(threading.Event()).commit_stalls)
    store.close()


def test_a_click_is_learned_in_time_though_others_never_come(tmp_path: Path) -> None:
    """Facts wait for those of the next batch, to be read ahead: not while hardly any come."""
    config = configuration(
        "learning.commit_interval_seconds=3", "learning.commit_every_batches=0", "learning.max_wait_seconds=2"
    )
    clock, stop = Clock(), threading.Event()
    store = FeatureStore(tmp_path / "store")
    trainer = Trainer(config, Trickle(clock, stop), store, TrainerMetrics(CollectorRegistry()), clock)
    summary = trainer.run(stop)
    assert (summary.num_positives, len(trainer.state.unapplied)) == (1, 0)
    assert summary.steps[0].seconds <= 5
    assert store.last_commit == CommitInfo(store.last_commit.number, 1000 * NUM_CHUNKS, 1000)
    store.close()


def test_users_change_in_time_though_no_positive_follows(tmp_path: Path) -> None:
    """A deletion is not to wait for somebody's next click."""
    config = configuration("learning.batch_size=4", "learning.max_wait_seconds=2")
    clock, stop = Clock(), threading.Event()
    clicks = as_facts(Joined("gone", f"i{n}", 0, n) for n in range(4))
    chunks = [replace(SILENCE, facts=clicks), replace(SILENCE, facts=[Changed(False, "gone", None)])]
    with closing(FeatureStore(tmp_path / "store")) as store:
        trainer = Trainer(
            config, Script(clock, stop, chunks), store, TrainerMetrics(CollectorRegistry()), clock
        )
        summary = trainer.run(stop)
        table = trainer.state.tables.user
        table.begin_batch()
        assert (table.ints(table.slots(["gone"]), "history") < 0).all()
        assert (summary.num_positives, len(trainer.state.pending)) == (4, 0)


def test_commits_by_batches_come_also_where_nobody_clicks(tmp_path: Path) -> None:
    """What changes in the join is kept until a commit: more than so much of it is not."""
    config = configuration("learning.commit_every_batches=5")
    clock, stop = Clock(), threading.Event()
    changes = [encode_changes(Changes(n, {n: "x" * (12 << 20)}, [])) for n in range(1, 8)]
    chunks = [replace(SILENCE, join_changes=each) for each in changes]
    with closing(SlowStore(tmp_path / "store", clock, 0.0)) as store:
        Trainer(config, Script(clock, stop, chunks), store, TrainerMetrics(CollectorRegistry()), clock).run(
            stop
        )
        assert store.begun == [3, 6, NUM_CHUNKS]


def test_while_nothing_comes_nothing_is_committed(tmp_path: Path) -> None:
    """Or each quiet minute would be a new state of the world, to be embedded and published anew."""
    clock, stop = Clock(), threading.Event()
    config = configuration("learning.commit_interval_seconds=3", "learning.commit_every_batches=0")
    event = replace(SILENCE, num_events={"impressions": 1})
    chunks = [*[SILENCE] * 12, event]
    with closing(SlowStore(tmp_path / "store", clock, 0.0)) as store:
        Trainer(config, Script(clock, stop, chunks), store, TrainerMetrics(CollectorRegistry()), clock).run(
            stop
        )
        assert store.begun == [3, 13, NUM_CHUNKS]
