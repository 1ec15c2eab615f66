"""The trainer: receive → learn → commit.

Owns when commits happen and what is measured; what learning means is `session.py`'s, what is durable is
`state.py`'s.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from feature_store.configuration import Configuration
from feature_store.store import CommitInfo
from feature_store.store_process import Store
from feature_store.telemetry import calm_garbage_collector, keep_freed_memory
from stream_trainer.chunk import Chunk
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import Feed
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.session import Session
from stream_trainer.state import TrainerState

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_MOST_AHEAD = 32_768  # facts that may wait; a commit holds them all
_BATCHES_AHEAD = 32  # as many as make up for a pause of the feed: Kafka's answers come in bursts
_MOST_JOIN_BYTES = 32 << 20
_KEPT_STEPS = 100_000


class StepStats(NamedTuple):
    """One learning step, for pictures."""

    seconds: float
    num_positives: int
    loss: float
    lag_records: int


class Summary(NamedTuple):
    """What one run of the trainer did.

    `commit_stalls`: seconds that a commit, or a piece of one, held up the learning each time, waits for rows
    from a store that is writing included; before its last commit a run has learned all.
    `started_at_s`: when it began to read, in seconds since 1970.
    `rows_read`, `rows_evicted`: by table, rows that came from the store and that made room for others.
    """

    num_events: int
    num_positives: int
    num_commits: int
    seconds: float
    commit_stalls: list[float]
    started_at_s: float
    rows_read: dict[str, int]
    rows_evicted: dict[str, int]
    prequential: list[tuple[int, float, float]]
    steps: list[StepStats]


class _Begun(NamedTuple):
    """A commit that is being written. `start` is by `time.perf_counter`."""

    info: CommitInfo
    num_rows: int
    num_positives: int
    start: float
    next_offsets: dict[TopicPartition, int]


class Trainer:
    """One run of the trainer over a store and a feed. `clock` is monotonic, in seconds."""

    def __init__(
        self,
        config: Configuration,
        feed: Feed,
        store: Store,
        metrics: TrainerMetrics,
        clock: Callable[[], float] = time.monotonic,
        on_progress: Callable[[int, int], None] = lambda num_events, lag_records: None,
    ) -> None:
        self._config = config
        self._clock = clock
        self._metrics = metrics
        self._feed, self._store = feed, store
        self._begun: _Begun | None = None
        self._on_progress = on_progress
        self.state = TrainerState(config, store)
        self.session = Session(config, self.state, self._learned, self.commit)
        self._num_events = self._num_commits = self._batches_since_commit = 0
        self._commit_stalls: list[float] = []
        self._start = self._last_commit = clock()
        self._committed: tuple[int, ...] | None = None
        self._waiting_since: float | None = None
        self._lag_records = 0
        self._steps: list[StepStats] = []

    def run(self, stop: threading.Event) -> Summary:
        """Learn until `stop` is set, or to the end of the log when bounded; commit, and say what was done."""
        keep_freed_memory()
        with calm_garbage_collector():
            return self._run(stop)

    def _run(self, stop: threading.Event) -> Summary:
        self._start = self._last_commit = self._clock()
        started_at_s = time.time()
        state, at_end = self.state, False
        batch_size = self._config.learning.batch_size
        num_ahead = (3 if state.widths.history else 2) * batch_size
        most_ahead = max(num_ahead, min(_BATCHES_AHEAD * batch_size, _MOST_AHEAD))
        state.topic_ids = self._feed.start(state.position())
        self.session.learn_what_is_full()
        while not stop.is_set() and not (at_end and not state.unapplied):
            chunk = None if at_end else self._receive_some(most_ahead)
            if chunk is not None:
                at_end = chunk.at_end
            # What is known of the next batch, or two, is read ahead, so facts wait for others; but only for
            # those that are in the log already, and not where hardly any come.
            waits = chunk is not None and bool(chunk.facts) and chunk.lag_records > 0 and not at_end
            self._apply(stop, num_ahead if waits else 1)
            self._learn_if_waited()
            self._continue_commit()
            if self._commit_is_due():
                self.commit()
        if at_end and not state.unapplied:
            self.session.flush()
        self._finish_commit(wait=True)  # nobody who learns waits for this
        self.commit()
        self._finish_commit(wait=True)
        return Summary(
            self._num_events,
            state.num_positives,
            self._num_commits,
            self._clock() - self._start,
            self._commit_stalls,
            started_at_s,
            {name: table.num_read for name, table in state.tables._asdict().items()},
            {name: table.num_evicted for name, table in state.tables._asdict().items()},
            self.session.prequential.curve,
            self._steps,
        )

    def _receive_some(self, most_ahead: int) -> Chunk | None:
        """Receive what is there until so many facts wait, a chunk has none, or a while has passed (a feed in
        this process reads the log meanwhile); wait as long if there is nothing to do. Return the last chunk.
        """
        last, waiting, end = None, self.state.unapplied, self._clock() + _POLL_SECONDS
        while len(waiting) < most_ahead and (last is None or (last.facts and not last.at_end)):
            chunk = self._feed.next_chunk(0 if waiting else _POLL_SECONDS)
            if chunk is None:
                break
            self._receive(chunk)
            self._continue_commit()  # as many pieces as chunks, or commits would fall behind what comes
            last = chunk
            if self._clock() >= end:
                break
        return last

    def _receive(self, chunk: Chunk) -> None:
        self.state.receive(chunk)
        self._num_events += sum(chunk.num_events.values())
        self._lag_records = chunk.lag_records
        self._observe(chunk)

    def _apply(self, stop: threading.Event, num_least: int) -> None:
        """Apply facts while at least so many wait, up to the next batch that is learned; a request to stop
        leaves the rest to the commit.
        """
        num_batches, num_steps = self._config.learning.commit_every_batches, self.state.num_steps
        while len(self.state.unapplied) >= num_least and not stop.is_set():
            self.session.apply_next()
            if 0 < num_batches <= self._batches_since_commit:
                self.commit()
            if self.state.num_steps > num_steps:
                break

    def commit(self) -> None:
        """Let the store make durable everything that was received, and what was learned of it."""
        start = time.perf_counter()
        self._finish_commit(wait=True)
        state, num_rows = self.state, self.state.commit()
        self._begun = _Begun(state.last_commit, num_rows, state.num_positives, start, state.next_offsets)
        self._finish_commit()
        self._num_commits += 1
        self._batches_since_commit = 0
        self._last_commit, self._committed = self._clock(), self._progress()
        self._was_held_up(time.perf_counter() - start)

    def _continue_commit(self) -> None:
        """Let the store take over the next piece of the commit that was begun."""
        if self._begun is not None:
            start = time.perf_counter()
            self._finish_commit()
            self._was_held_up(time.perf_counter() - start)

    def _was_held_up(self, seconds: float) -> None:
        self._commit_stalls.append(seconds)
        del self._commit_stalls[:-_KEPT_STEPS]
        self._metrics.commit_seconds.observe(seconds)

    def _finish_commit(self, wait: bool = False) -> None:
        """Tell of the commit that was begun, once it is durable."""
        begun = self._begun
        if begun is None or not self._store.is_durable(wait):
            return
        self._begun = None
        self._feed.report_progress(begun.next_offsets)
        self._metrics.commits.inc()
        self._metrics.committed_rows.inc(begun.num_rows)
        log.info(
            "commit %d: %d rows in %.2f s, %d positives learned",
            begun.info.number,
            begun.num_rows,
            time.perf_counter() - begun.start,
            begun.num_positives,
        )

    def _commit_is_due(self) -> bool:
        """By time, if anything happened; while the one before is being written, learning goes on rather than
        wait for it. Where commits go by batches, also when a lot came that nobody clicked: a commit holds it.
        """
        learning = self._config.learning
        if self._begun is not None:
            return False
        if learning.commit_every_batches:
            return self.state.num_join_bytes > _MOST_JOIN_BYTES
        is_time = self._clock() - self._last_commit >= learning.commit_interval_seconds
        return is_time and self._committed != self._progress()

    def _progress(self) -> tuple[int, ...]:
        """Return what differs once anything was received, applied or learned."""
        state = self.state
        return self._num_events, len(state.unapplied), len(state.pending), state.num_steps

    def _learn_if_waited(self) -> None:
        """Live, a batch that does not fill is learned after a while, and users' changes that no positive
        follows are made; a bounded replay goes by count alone.
        """
        if self._feed.until_end or not self.state.pending:
            self._waiting_since = None
        elif self._waiting_since is None:
            self._waiting_since = self._clock()
        elif self._clock() - self._waiting_since >= self._config.learning.max_wait_seconds:
            self.session.flush()
            self._waiting_since = None

    def _learned(self, losses: dict[str, float], num_new: int, num_rehearsed: int, seconds: float) -> None:
        self._waiting_since = None
        self._batches_since_commit += 1
        while self._store.waits_s:
            self._was_held_up(self._store.waits_s.pop())
        metrics = self._metrics
        metrics.positives.inc(num_new)
        metrics.rehearsed.inc(num_rehearsed)
        metrics.batch_seconds.observe(seconds)
        for part, value in losses.items():
            metrics.loss.labels(part).set(value)
        self._steps.append(
            StepStats(
                self._clock() - self._start,
                self.state.num_positives,
                sum(losses.values()),
                self._lag_records,
            )
        )
        del self._steps[:-_KEPT_STEPS]
        if self.session.prequential.curve:
            _, hit_rate, mrr = self.session.prequential.curve[-1]
            metrics.hit_rate.set(hit_rate)
            metrics.mrr.set(mrr)

    def _observe(self, chunk: Chunk) -> None:
        """Bring gauges up to date: once a chunk, so that it costs nothing per event."""
        metrics, state = self._metrics, self.state
        for topic, count in chunk.num_events.items():
            metrics.events.labels(topic).inc(count)
        for reason, count in chunk.dead_letters.items():
            metrics.dead_letters.labels(reason).inc(count)
        for outcome, number in chunk.join_counts.items():
            metrics.join.labels(outcome).set(number)
        metrics.buffered.labels("received").set(len(state.unapplied))
        metrics.buffered.labels("batch").set(self.session.num_pending)
        metrics.buffered.labels("impressions").set(chunk.num_impressions)
        metrics.buffered.labels("clicks").set(chunk.num_clicks)
        metrics.lag_records.set(chunk.lag_records)
        latest_ms = chunk.marks.latest_event_ms
        metrics.lag_seconds.set(max(0.0, time.time() - latest_ms / 1000) if latest_ms else 0)
        metrics.corpus_items.set(len(state.corpus))
        for name, table in state.tables._asdict().items():
            metrics.rows.labels(name).set(table.num_resident)
            metrics.rows_evicted.labels(name).set(table.num_evicted)
            metrics.rows_read.labels(name).set(table.num_read)
        self._on_progress(self._num_events, chunk.lag_records)
