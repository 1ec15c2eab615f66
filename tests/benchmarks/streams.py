"""What the bench measures end to end: a trainer over a warm state and a log; and the input side alone.

Owns how one segment of the log is timed; which rows there are is `suites.py`'s.
"""

import threading
import time
from typing import Any, NamedTuple

from kafka import KafkaConsumer  # type: ignore[import-untyped]
from kafka import TopicPartition as KafkaPartition
from machine import settle
from prometheus_client import CollectorRegistry
from workload import warm, with_settings, write_events

from feature_store.configuration import Configuration
from feature_store.store import FAMILIES, FeatureStore
from feature_store.store_process import open_store
from stream_trainer.feed import LocalFeed
from stream_trainer.feed_process import open_feed
from stream_trainer.kafka_client import connect
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics
from stream_trainer.trainer import Trainer


class Stalls(NamedTuple):
    """What the commits of one segment cost the learning: the share of time, and the longest in seconds. The
    end of the last commit counts in the rate alone: there is nothing left to learn.
    """

    share: float = 0.0
    longest_s: float = 0.0
    num_commits: int = 0


class EndToEnd:
    """A trainer that learns one freshly written segment of its log at a time."""

    def __init__(self, config: Configuration, num_positives: int) -> None:
        self.config = config
        self._num_positives = num_positives
        self._segment = self._num_stalls = self._num_commits = 0
        self.last_stalls = Stalls()
        self._log = open_log(config.log)
        create_topics(self._log, config.topics)
        self._store = open_store(config.store)
        self._feed = open_feed(config, until_end=True)
        self._trainer = Trainer(config, self._feed, self._store, TrainerMetrics(CollectorRegistry()))
        warm(self._trainer.state)
        self.last_start = self._trainer.state.position()
        """Where the last segment begins."""

    def positives_per_second(self, **learning: object) -> float:
        """Write a segment, then time the trainer from its first poll to its last commit, with some settings
        of [learning] that the learner reads at each step changed for it.
        """
        state = self._trainer.state
        state.learner.config = with_settings(self.config, **learning)
        write_events(self._log, self.config, self._segment, self._num_positives)
        self._segment += 1
        before, self.last_start = state.num_positives, state.position()
        settle()
        start = time.perf_counter()
        summary = self._trainer.run(threading.Event())
        seconds = time.perf_counter() - start
        stalls = summary.commit_stalls[self._num_stalls :]
        num_commits = summary.num_commits - self._num_commits
        self._num_stalls, self._num_commits = len(summary.commit_stalls), summary.num_commits
        self.last_stalls = Stalls(sum(stalls) / seconds, max(stalls), num_commits)
        learned = state.num_positives - before
        if learned != self._num_positives:
            raise RuntimeError(f"learned {learned} of {self._num_positives} positives: the bench skips work")
        return learned / seconds

    def close(self) -> None:
        """Release everything."""
        self._feed.close()
        self._store.close()
        self._log.close()


def same_bytes(config: Configuration, other: Configuration, num_positives: int) -> None:
    """Let two trainers learn the same segment from two logs.

    Raises:
        RuntimeError: their stores differ in more than the count of commits and the topics' UUIDs.
    """
    contents = []
    for one in (config, other.model_copy(update={"topics": config.topics})):
        stream = EndToEnd(one, num_positives)
        stream.positives_per_second()
        stream.close()
        store = FeatureStore(one.store.path)
        contents.append({family: dict(store.items(family)) for family in FAMILIES})
        del contents[-1]["meta"][b"topic_ids"]
        store.close()
    if contents[0] != contents[1]:
        raise RuntimeError(f"{config.store} and {other.store} learned other bytes from the same events")


def joined_records_per_second(stream: EndToEnd) -> float:
    """Poll, decode, validate, merge and join a stream's last segment; return records a second of this
    process's processor time.
    """
    config = stream.config
    feed = LocalFeed(config, open_log(config.log), until_end=True)
    feed.start(stream.last_start)
    num_records, at_end = 0, False
    start = time.process_time()
    while not at_end:
        chunk = feed.next_chunk(0.1)
        num_records, at_end = num_records + sum(chunk.num_events.values()), chunk.at_end
    seconds = time.process_time() - start
    feed.close()
    return num_records / seconds


def polled_records_per_second(stream: EndToEnd) -> float:
    """Poll the same records by kafka-python alone; return records a second of processor time."""
    if not stream.last_start.places:
        return 1.0  # the warm-up's segment is the log's first: there is no offset yet
    consumer: Any = connect(
        KafkaConsumer,
        stream.config.log,
        group_id=None,
        enable_auto_commit=False,
        check_crcs=True,
        isolation_level="read_committed",
        max_poll_records=5000,
    )
    places = {
        KafkaPartition(place.topic, place.partition): place.next_offset for place in stream.last_start.places
    }
    consumer.assign(list(places))
    ends = consumer.end_offsets(list(places))
    for partition, offset in places.items():
        consumer.seek(partition, offset)
    missing, num_records = sum(ends[p] - offset for p, offset in places.items()), 0
    start = time.process_time()
    while num_records < missing:
        num_records += sum(map(len, consumer.poll(timeout_ms=100).values()))
    seconds = time.process_time() - start
    consumer.close()
    return num_records / seconds
