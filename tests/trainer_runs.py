"""What whole-process tests share: a log worth learning from, the trainer as a real process, a store's bytes.

Owns no test. The log is Amazon-shaped, with what a shop adds: items that change, come and go meanwhile, users
that are deleted, clicks told twice, messages that do not decode.
"""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.schema import Click, EventKind, Impression, ItemFeatures
from feature_store.store import FAMILIES, FeatureStore
from simulators.dataset import Dataset, load_dataset
from simulators.synthetic import generate
from simulators.timeline import TimelineEvent, timeline
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics

ROOT = Path(__file__).resolve().parent.parent
EXIT_TIMEOUT_S = 60
SMALL = (
    "model.hidden=[16]",
    "learning.batch_size=16",
    "learning.shared_negatives=32",
    "learning.rehearsal_ratio=2",
    "learning.num_threads=1",
    "features.user_numeric=['num_reviews']",
    "metrics.trainer_port=-1",
)
"""A model that learns hundreds of batches in a second or two; no metrics."""

Bytes = dict[str, dict[bytes, bytes]]


def make_dataset(folder: Path, num_users: int, num_items: int, num_interactions: int) -> Dataset:
    """Generate reviews, the same ones each time."""
    generate(folder, num_users, num_items, num_interactions, num_categories=5, seed=3)
    return load_dataset(folder)


def write_log(config: Configuration, dataset: Dataset) -> None:
    """Write a data set's events and the shop's own to the configured log, making its topics."""
    topic_of = {kind: topic for topic, kind in config.topics.kinds().items()}
    event_log = open_log(config.log)
    create_topics(event_log, config.topics, num_partitions=2)
    writer = event_log.writer()
    for kind, key, value, ts_ms in _messages(dataset):
        writer.send(topic_of[kind], key.encode(), value, ts_ms)
    writer.close()
    event_log.close()


def _messages(dataset: Dataset) -> Iterator[tuple[EventKind, str, bytes, int]]:
    for number, (kind, event) in enumerate(timeline(dataset, seed=5)):
        owner = event.user_id if isinstance(event, Impression | Click) else event.id
        yield kind, owner, encode(event), event.ts_ms
        yield from _shop(number, kind, event)


def _shop(number: int, kind: EventKind, event: TimelineEvent) -> Iterator[tuple[EventKind, str, bytes, int]]:
    """Return what happens besides, at an event's own time."""
    if isinstance(event, Click):
        if number % 11 == 0:
            yield kind, event.user_id, encode(event), event.ts_ms
        if number % 61 == 0:
            changed = ItemFeatures(
                id=event.item_id, ts_ms=event.ts_ms, features={"category": f"c{number % 4}"}
            )
            yield EventKind.ITEM, changed.id, encode(changed), event.ts_ms
        if number % 97 == 0:
            yield EventKind.ITEM, event.item_id, b"", event.ts_ms
        if number % 131 == 0:
            yield EventKind.USER, event.user_id, b"", event.ts_ms
    elif isinstance(event, Impression) and number % 5 == 0:
        new = ItemFeatures(id=f"new{number}", ts_ms=event.ts_ms, features={"category": f"c{number % 6}"})
        yield EventKind.ITEM, new.id, encode(new), event.ts_ms
    if number % 509 == 0:
        yield EventKind.CLICK, "nobody", b"\x00not an event", event.ts_ms


def store_bytes(path: Path) -> Bytes:
    """Return every key and value of every column family but the commit's own entry."""
    store = FeatureStore(path)
    try:
        return {family: dict(store.items(family)) for family in FAMILIES}
    finally:
        store.close()


def assert_same_bytes(store: Bytes, expected: Bytes) -> None:
    """Fail naming the first keys that differ in each family: whole values would fill screens."""
    differing = {}
    for family in FAMILIES:
        ours, theirs = store[family], expected[family]
        keys = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
        if keys:
            differing[family] = (len(keys), keys[:3])
    if differing:
        pytest.fail(f"number of differing keys, and the first three, by family: {differing}")


class TrainerProcess:
    """A `stream-trainer run` of its own: its lines on stderr are kept as they come."""

    def __init__(self, settings: Sequence[str], *flags: str) -> None:
        given = [flag for setting in settings for flag in ("--set", setting)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "stream_trainer", "run", *given, *flags],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._news:
                self.lines.append(line)
                self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_for(self, text: str, count: int = 1) -> bool:
        """Return whether `count` lines hold the text, once they do or the process ended."""
        with self._news:
            self._news.wait_for(
                lambda: self._count(text) >= count or not self._reader.is_alive() or self._has_ended(),
                timeout=EXIT_TIMEOUT_S,
            )
            return self._count(text) >= count

    def _count(self, text: str) -> int:
        return sum(text in line for line in self.lines)

    def _has_ended(self) -> bool:
        return self.process.poll() is not None

    def end(self) -> int:
        """Return the exit code once the process has ended by itself, and its last line was read."""
        try:
            code = self.process.wait(EXIT_TIMEOUT_S)
        finally:
            self.kill()
        return code

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    @property
    def text(self) -> str:
        """All that it said."""
        return "".join(self.lines)
