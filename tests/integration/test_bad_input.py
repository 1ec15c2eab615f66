"""The trainer over logs that are not as they should be.

Bad messages are set aside and change nothing else; where records are lost or a topic is not what it was, the
trainer refuses to start and leaves the store as it is.
"""

import json
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import msgpack
import pytest
from log_reads import plain, poll
from prometheus_client import CollectorRegistry
from trainer_runs import SMALL, Bytes, assert_same_bytes, store_bytes

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.errors import (
    DualstreamError,
    MissingTopicError,
    OffsetLostError,
    StoreLockedError,
    TopicRecreatedError,
)
from feature_store.schema import MAX_MESSAGE_BYTES, Click, Impression, ItemFeatures, UserFeatures
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import LocalFeed
from stream_trainer.file_frames import FileRecord
from stream_trainer.file_log import FileEventLog
from stream_trainer.file_writer import FileWriter
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.topics import create_topics
from stream_trainer.trainer import Summary, Trainer

TOPICS = ("items", "users", "impressions", "clicks")
NUM_CLICKS = 200
DAY_MS = 86_400_000


class Message(NamedTuple):
    """What is written, and why it is refused (None: it is not)."""

    topic: str
    key: bytes | None
    value: bytes | None
    ts_ms: int = DAY_MS
    reason: str | None = None


def good() -> Iterator[Message]:
    """A little shop: each user clicks one of the items shown, and then has more reviews."""
    rng = random.Random(5)
    for number in range(12):
        item = ItemFeatures(id=f"i{number}", ts_ms=DAY_MS, features={"category": f"c{number % 3}"})
        yield Message("items", item.id.encode(), encode(item))
    for number in range(NUM_CLICKS):
        ts_ms, user = DAY_MS + 1000 * number, f"u{rng.randrange(20)}"
        shown = [f"i{item}" for item in rng.sample(range(12), 4)]
        slate = Impression(impression_id=f"s{number}", user_id=user, ts_ms=ts_ms, items=shown)
        click = Click(impression_id=f"s{number}", user_id=user, item_id=rng.choice(shown), ts_ms=ts_ms + 500)
        user_now = UserFeatures(id=user, ts_ms=ts_ms + 700, features={"num_reviews": number})
        yield Message("impressions", user.encode(), encode(slate), ts_ms)
        yield Message("clicks", user.encode(), encode(click), ts_ms + 500)
        yield Message("users", user.encode(), encode(user_now), ts_ms + 700)


def bad(topic: str) -> list[Message]:
    """Every kind of bad message there is, for one topic; the changed field is one that the topic has."""
    fields: dict[str, object] = {"v": 1, "ts_ms": DAY_MS, "id": "u1", "user_id": "u1", "impression_id": "s"}
    fields |= {"item_id": "i1", "items": ["i1", "i2"]}
    numbers = "context" if topic == "impressions" else "features"
    nested = json.loads("[" * 30 + "]" * 30)
    messages = [
        (b"\x00 not an event", "malformed"),
        (msgpack.packb(fields)[:-3], "malformed"),
        (json.dumps(fields).encode() + b" " * MAX_MESSAGE_BYTES, "oversized"),
        (b"{" * 600_000, "oversized"),
        (msgpack.packb({**fields, "ts_ms": "soon"}), "wrong_type"),
        (json.dumps({**fields, "ts_ms": True}).encode(), "wrong_type"),
        (msgpack.packb({**fields, "ts_ms": -1}), "out_of_bounds"),
        (msgpack.packb({**fields, "v": 2}), "unknown_version"),
        (msgpack.packb({**fields, "extra": nested}), "too_deep"),
        (json.dumps({**fields, "extra": nested}).encode(), "too_deep"),
        (b'{"a":' * 10_000, "too_deep"),
        (b"\x91" * 60_000, "too_deep"),
        (msgpack.packb({**fields, "id": "x", "user_id": "x"}), "key_mismatch"),
    ]
    if topic != "clicks":  # which have no number but their time
        messages += [
            (msgpack.packb({**fields, numbers: {"x": float("nan")}}), "not_finite"),
            (json.dumps({**fields, numbers: {"x": float("inf")}}).encode(), "not_finite"),
        ]
    found = [Message(topic, b"u1", value, DAY_MS, reason) for value, reason in messages]
    if topic in ("items", "users"):
        found.append(Message(topic, None, b"", DAY_MS, "malformed"))
    else:
        found.append(Message(topic, b"u1", b"", DAY_MS, "malformed"))
    return found


def with_bad(messages: Sequence[Message]) -> list[Message]:
    """Strew bad messages among the good. Those of `clicks` come last: draws hash the offsets of clicks."""
    rng = random.Random(6)
    mixed = list(messages)
    for topic in ("items", "users", "impressions"):
        for message in bad(topic):
            mixed.insert(rng.randrange(len(mixed) + 1), message)
    return mixed + bad("clicks")


def settings(root: Path, *more: str) -> Configuration:
    paths = [f"log.path={root / 'log'}", f"store.path={root / 'store'}"]
    return load_configuration(None, [*SMALL, *paths, *more], {})


def write(config: Configuration, messages: Sequence[Message], segment_bytes: int = 1 << 20) -> None:
    create_topics(FileEventLog(config.log.path), config.topics, num_partitions=2)
    writer = FileWriter(config.log.path, segment_bytes)
    for message in messages:
        writer.send(message.topic, message.key, message.value, message.ts_ms)
        if segment_bytes < 1 << 20:
            writer.flush()  # segments roll only between flushes
    writer.close()


def run(config: Configuration, registry: CollectorRegistry | None = None) -> Summary:
    event_log, store = FileEventLog(config.log.path), FeatureStore(config.store.path)
    metrics = TrainerMetrics(registry or CollectorRegistry())
    feed = LocalFeed(config, event_log, until_end=True)
    try:
        return Trainer(config, feed, store, metrics).run(threading.Event())
    finally:
        feed.close()
        store.close()


def records(log: Path, *topics: str) -> list[FileRecord]:
    event_log = FileEventLog(log)
    reader = event_log.reader()
    reader.assign(event_log.beginning_offsets(event_log.partitions(topics)))
    found: list[FileRecord] = []
    while more := poll(reader, 1000, 0):
        found += map(plain, more)
    reader.close()
    return found


def learned(config: Configuration) -> Bytes:
    """The store's bytes without what differs between two logs of one content: offsets and topic IDs."""
    families = store_bytes(config.store.path)
    del families["meta"][b"offsets"], families["meta"][b"topic_ids"]
    return families


@pytest.mark.parametrize("emit", ["on_click", "at_close"])
def test_bad_messages_are_set_aside_counted_and_change_nothing_else(tmp_path: Path, emit: str) -> None:
    clean = settings(tmp_path / "clean", f"join.emit={emit}")
    dirty = settings(tmp_path / "dirty", f"join.emit={emit}")
    messages = with_bad(list(good()))
    write(clean, [message for message in messages if message.reason is None])
    write(dirty, messages)
    registry = CollectorRegistry()
    expected = run(clean)
    summary = run(dirty, registry)

    assert expected.num_positives == summary.num_positives == NUM_CLICKS
    assert summary.num_events == len(messages)
    assert_same_bytes(learned(dirty), learned(clean))

    reasons = Counter(message.reason for message in messages if message.reason)
    assert len(reasons) == 8
    for reason, count in reasons.items():
        labels = {"reason": reason}
        assert registry.get_sample_value("dualstream_trainer_dead_letters_total", labels) == count
    for topic in TOPICS:
        count = sum(message.topic == topic for message in messages)
        labels = {"topic": topic}
        assert registry.get_sample_value("dualstream_trainer_events_total", labels) == count

    origins = {(r.topic, r.partition, r.offset): r for r in records(dirty.log.path, *TOPICS)}
    letters = records(dirty.log.path, "dead-letters")
    found: Counter[tuple[str, bytes | None, bytes | None, str]] = Counter()
    for letter in letters:
        headers = {name: content.decode() for name, content in letter.headers}
        place = (headers["origin_topic"], int(headers["origin_partition"]), int(headers["origin_offset"]))
        origin = origins[place]
        assert (letter.key, letter.value) == (origin.key, origin.value)
        assert headers["detail"]
        found[origin.topic, letter.key, letter.value, headers["reason"]] += 1
    assert found == Counter((m.topic, m.key, m.value, m.reason) for m in messages if m.reason)

    again = run(dirty)
    assert again.num_events == 0
    assert len(records(dirty.log.path, "dead-letters")) == len(letters)


@pytest.fixture
def committed(tmp_path: Path) -> tuple[Configuration, Bytes]:
    """A log of many small segments, learned to its end, and the store's bytes."""
    config = settings(tmp_path)
    write(config, list(good()), segment_bytes=1000)
    run(config)
    return config, store_bytes(config.store.path)


def refused(config: Configuration, error: type[DualstreamError]) -> str:
    with pytest.raises(error) as caught:
        run(config)
    assert type(caught.value) is error
    return str(caught.value)


@pytest.mark.parametrize("topic", [*TOPICS, "dead-letters"])
def test_a_missing_topic_is_named_before_anything_is_learned(tmp_path: Path, topic: str) -> None:
    config = settings(tmp_path)
    write(config, list(good()))
    shutil.rmtree(config.log.path / topic)
    assert topic in refused(config, MissingTopicError)
    assert not any(store_bytes(config.store.path).values())


def test_a_recreated_topic_is_refused(committed: tuple[Configuration, Bytes]) -> None:
    config, before = committed
    shutil.rmtree(config.log.path / "clicks")
    write(config, [m for m in good() if m.topic == "clicks"])
    message = refused(config, TopicRecreatedError)
    assert "'clicks' was deleted and made again" in message
    assert store_bytes(config.store.path) == before


def test_records_that_retention_deleted_unread_are_said_to_be_lost(
    committed: tuple[Configuration, Bytes],
) -> None:
    config, _ = committed
    event_log, clicks = FileEventLog(config.log.path), TopicPartition("clicks", 0)
    learned_to = next_offset(config, clicks)
    write(config, [m for m in good() if m.topic == "clicks"], segment_bytes=1000)
    event_log.delete_before(clicks, learned_to)
    run(config)  # nothing unread is gone
    before = store_bytes(config.store.path)
    write(config, [m for m in good() if m.topic == "clicks"], segment_bytes=1000)
    event_log.delete_before(clicks, 10**9)
    num_lost = event_log.beginning_offsets([clicks])[clicks] - next_offset(config, clicks)
    assert num_lost > 1
    message = refused(config, OffsetLostError)
    assert "clicks" in message
    assert str(num_lost) in message
    assert store_bytes(config.store.path) == before


def test_a_log_that_ends_before_the_stored_offset_is_refused(committed: tuple[Configuration, Bytes]) -> None:
    """As after restoring the log from an older backup."""
    config, before = committed
    for segment in sorted((config.log.path / "clicks" / "0").glob("*.log"))[1:]:
        segment.unlink()
    assert "clicks" in refused(config, OffsetLostError)
    assert store_bytes(config.store.path) == before


def test_a_second_trainer_on_the_same_store_is_refused(tmp_path: Path) -> None:
    config = settings(tmp_path)
    write(config, list(good()))
    first = FeatureStore(config.store.path)
    try:
        message = refused(config, StoreLockedError)
    finally:
        first.close()
    assert str(config.store.path) in message
    assert run(config).num_positives == NUM_CLICKS


def test_refusals_end_the_process_with_codes_of_their_own() -> None:
    errors = (MissingTopicError, OffsetLostError, TopicRecreatedError, StoreLockedError)
    assert [error.exit_code for error in errors] == [5, 6, 7, 9]


def next_offset(config: Configuration, partition: TopicPartition) -> int:
    offsets = msgpack.unpackb(store_bytes(config.store.path)["meta"][b"offsets"])
    found: int = next(offset for topic, number, offset, _ in offsets if (topic, number) == partition)
    return found
