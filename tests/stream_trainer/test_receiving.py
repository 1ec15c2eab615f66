"""How far ahead of its learning the trainer takes over what the input side has ready."""

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from learning import configuration
from prometheus_client import CollectorRegistry

from feature_store.store import FeatureStore
from stream_trainer import trainer as trainer_module
from stream_trainer.chunk import Chunk, Joined, Marks, Position, as_facts
from stream_trainer.event_log import TopicPartition
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.trainer import Summary, Trainer

NUM_CHUNKS, A_CHUNK, A_BATCH = 12, 5, 2
STEPS = NUM_CHUNKS * A_CHUNK // A_BATCH


class Bursts:
    """Chunks that come some at a time: the next ones only when the learner has asked in vain."""

    until_end = True

    def __init__(self, size: int) -> None:
        self.num_taken = 0
        self._size = self._left = size

    def start(self, position: Position) -> dict[str, str]:
        """There are no topics."""
        return {}

    def next_chunk(self, timeout_s: float) -> Chunk | None:
        """Return one of the burst; None after it."""
        if not self._left:
            self._left = self._size
            return None
        self._left -= 1
        first, self.num_taken = self.num_taken * A_CHUNK, self.num_taken + 1
        facts = as_facts(Joined(f"u{n}", f"i{n}", 0, n) for n in range(first, first + A_CHUNK))
        lag, at_end = NUM_CHUNKS - self.num_taken, self.num_taken == NUM_CHUNKS
        return Chunk(facts, [], Marks(), b"", {}, 0, 0, {"clicks": A_CHUNK}, {}, lag, at_end)

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Nobody asks."""

    def close(self) -> None:
        """Nothing is held."""


class Slow(Bursts):
    """As a feed in this process: it always has something, and each chunk takes a while to read and join."""

    now_s = 0.0

    def next_chunk(self, timeout_s: float) -> Chunk | None:
        """Let some time pass."""
        self.now_s += 0.04
        return super().next_chunk(timeout_s)


class Pieces(FeatureStore):
    """Commits are not durable unless somebody waits; counts how often it could have taken a piece."""

    num_offered = 0

    def is_durable(self, wait: bool = False) -> bool:
        """Count who does not wait."""
        self.num_offered += not wait
        return wait


class Watching(Bursts):
    """Notes at each chunk what the store had been offered so far."""

    def __init__(self, size: int, store: Pieces) -> None:
        super().__init__(size)
        self.offered: list[int] = []
        self._store = store

    def next_chunk(self, timeout_s: float) -> Chunk | None:
        """Note it."""
        self.offered.append(self._store.num_offered)
        return super().next_chunk(timeout_s)


def run(
    feed: Bursts, store: FeatureStore, clock: Callable[[], float] = time.monotonic
) -> tuple[Summary, list[int]]:
    """Return what a trainer did, and how many chunks it had taken over when it began each step."""
    config = configuration(f"learning.batch_size={A_BATCH}", "learning.commit_every_batches=1")
    taken: list[int] = []
    trainer = Trainer(config, feed, store, TrainerMetrics(CollectorRegistry()), clock)
    learner_step = trainer.state.learner.step

    def step(*given: object) -> object:
        taken.append(feed.num_taken)
        return learner_step(*given)  # type: ignore[arg-type]

    trainer.state.learner.step = step  # type: ignore[method-assign, assignment]
    summary = trainer.run(threading.Event())
    store.close()
    return summary, taken


def test_all_that_is_ready_is_taken_over_before_a_batch_is_learned(tmp_path: Path) -> None:
    summary, taken = run(Bursts(NUM_CHUNKS), FeatureStore(tmp_path))
    assert (summary.num_positives, taken) == (NUM_CHUNKS * A_CHUNK, [NUM_CHUNKS] * STEPS)


def test_what_comes_while_a_batch_is_learned_is_taken_over_after_it(tmp_path: Path) -> None:
    """Not when all that was taken over before is learned: meanwhile the pipe would be full."""
    _, taken = run(Bursts(3), FeatureStore(tmp_path))
    assert taken[:4] == [3, 6, 9, 12]
    assert len(taken) == STEPS


def test_no_more_is_taken_over_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "_BATCHES_AHEAD", 2 * A_CHUNK // A_BATCH)
    summary, taken = run(Bursts(NUM_CHUNKS), FeatureStore(tmp_path))
    assert summary.num_positives == NUM_CHUNKS * A_CHUNK
    for num_steps, num_taken in enumerate(taken):
        assert num_taken * A_CHUNK - num_steps * A_BATCH <= 3 * A_CHUNK, f"step {num_steps}"


def test_receiving_ends_after_a_while_though_there_is_more(tmp_path: Path) -> None:
    feed = Slow(NUM_CHUNKS)
    _, taken = run(feed, FeatureStore(tmp_path), clock=lambda: feed.now_s)
    assert taken[:3] == [3, 6, 9]
    assert len(taken) == STEPS


def test_each_chunk_that_comes_hands_over_a_piece_of_the_commit(tmp_path: Path) -> None:
    """Or a commit would never end where more chunks come with a batch than a piece holds."""
    store = Pieces(tmp_path)
    feed = Watching(3, store)
    run(feed, store)
    first, second = feed.offered[:4], feed.offered[4:8]  # the second burst comes while a commit is written
    assert first == [0, 0, 0, 0]
    assert [one - second[0] for one in second] == [0, 1, 2, 3]
