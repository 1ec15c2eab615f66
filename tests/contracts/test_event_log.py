"""What every event log must do: the same tests over the embedded log and a real Kafka broker."""

import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from log_reads import plain, poll

from feature_store.configuration import LogSettings
from feature_store.errors import LogError, MissingTopicError, OffsetLostError
from stream_trainer.event_log import EventLog, EventReader, Record, TopicPartition
from stream_trainer.file_frames import FileRecord
from stream_trainer.open_log import open_log

Drop = Callable[[str], None]


def _drop_from_kafka(address: str) -> Drop:
    def drop(topic: str) -> None:
        with closing(KafkaAdminClient(bootstrap_servers=address)) as admin:
            admin.delete_topics([topic])

    return drop


@pytest.fixture(params=["file", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> LogSettings:
    if request.param == "file":
        return LogSettings(kind="file", path=tmp_path / "log")
    return LogSettings(kind="kafka", bootstrap_servers=request.getfixturevalue("kafka_bootstrap"))


@pytest.fixture
def log(settings: LogSettings) -> Iterator[EventLog]:
    with closing(open_log(settings)) as opened:
        yield opened


@pytest.fixture
def drop(settings: LogSettings) -> Drop:
    if settings.kind == "file":
        return lambda topic: shutil.rmtree(settings.path / topic)
    return _drop_from_kafka(settings.bootstrap_servers)


@pytest.fixture
def topic(log: EventLog) -> str:
    name = f"contract-{uuid.uuid4().hex[:8]}"
    log.create_topics({name: 3})
    return name


@pytest.fixture
def reader(log: EventLog) -> Iterator[EventReader]:
    with closing(log.reader()) as opened:
        yield opened


def write(log: EventLog, topic: str, pairs: list[tuple[bytes | None, bytes | None]]) -> None:
    writer = log.writer()
    for number, (key, value) in enumerate(pairs):
        writer.send(topic, key, value, 1000 + number)
    writer.close()


def numbered(count: int, num_keys: int = 7) -> list[tuple[bytes | None, bytes | None]]:
    return [(b"key-%d" % (number % num_keys), b"%d" % number) for number in range(count)]


def read_all(reader: EventReader, count: int, max_records: int = 100) -> list[Record]:
    records: list[Record] = []
    deadline_s = time.monotonic() + 20
    while len(records) < count and time.monotonic() < deadline_s:
        records += poll(reader, max_records, 0.5)
    return records


def from_start(log: EventLog, topic: str) -> dict[TopicPartition, int]:
    return dict.fromkeys(log.partitions([topic]), 0)


def test_records_come_back_in_the_order_of_their_partition(
    log: EventLog, topic: str, reader: EventReader
) -> None:
    write(log, topic, numbered(500))
    reader.assign(from_start(log, topic))
    records = read_all(reader, 500)
    assert len(records) == 500
    assert len({record.partition for record in records}) > 1
    for partition in range(3):
        mine = [record for record in records if record.partition == partition]
        assert [record.offset for record in mine] == list(range(len(mine)))
        values = [int(record.value or b"") for record in mine]
        assert values == sorted(values)
    assert sorted(int(record.value or b"") for record in records) == list(range(500))


def test_a_key_stays_in_one_partition(log: EventLog, topic: str, reader: EventReader) -> None:
    write(log, topic, numbered(60, num_keys=20))
    write(log, topic, numbered(60, num_keys=20))
    reader.assign(from_start(log, topic))
    records = read_all(reader, 120)
    assert len({(record.key, record.partition) for record in records}) == 20
    assert len({record.partition for record in records}) > 1


def test_everything_of_a_record_comes_back(log: EventLog, topic: str, reader: EventReader) -> None:
    headers = (("origin", b"clicks"), ("reason", b""), ("origin", b"\x00\xff"), ("größe", b"1"))
    writer = log.writer()
    writer.send(topic, b"k", b"\x00value\xff", 1_400_000_000_123, headers)
    writer.send(topic, b"k", None, 0)
    writer.send(topic, b"k", b"", 1)
    writer.close()
    reader.assign(from_start(log, topic))
    first, deleted, empty = read_all(reader, 3)
    where = (topic, first.partition)
    assert plain(first) == FileRecord(*where, 0, 1_400_000_000_123, b"k", b"\x00value\xff", headers)
    assert plain(deleted) == FileRecord(*where, 1, 0, b"k", None)
    assert plain(empty) == FileRecord(*where, 2, 1, b"k", b"")


def test_a_record_needs_no_key(log: EventLog, topic: str, reader: EventReader) -> None:
    write(log, topic, [(None, b"dead"), (None, None)])
    reader.assign(from_start(log, topic))
    records = read_all(reader, 2)
    assert [record.key for record in records] == [None, None]
    assert {record.value or b"" for record in records} == {b"dead", b""}


def test_reading_resumes_at_an_offset(log: EventLog, topic: str, reader: EventReader) -> None:
    write(log, topic, [(b"same", b"%d" % number) for number in range(50)])
    (partition,) = {name for name, end in ends_of(log, topic).items() if end}
    reader.assign({partition: 37})
    assert [record.value for record in read_all(reader, 13)] == [b"%d" % number for number in range(37, 50)]
    reader.assign({partition: 50})
    assert poll(reader, 10, 0.2) == []
    write(log, topic, [(b"same", b"later")])
    assert [(record.offset, record.value) for record in read_all(reader, 1)] == [(50, b"later")]


def ends_of(log: EventLog, topic: str) -> dict[TopicPartition, int]:
    reader = log.reader()
    reader.assign(from_start(log, topic))
    ends = reader.end_offsets()
    reader.close()
    return ends


def test_end_and_beginning_offsets(log: EventLog, topic: str, reader: EventReader) -> None:
    reader.assign(from_start(log, topic))
    assert reader.end_offsets() == {TopicPartition(topic, number): 0 for number in range(3)}
    write(log, topic, numbered(90))
    assert sum(reader.end_offsets().values()) == 90
    assert log.beginning_offsets(log.partitions([topic])) == dict.fromkeys(log.partitions([topic]), 0)
    write(log, topic, numbered(5))
    assert sum(reader.end_offsets().values()) == 95
    assert all(isinstance(name, TopicPartition) for name in reader.end_offsets())


def test_an_empty_poll_keeps_to_its_timeout(log: EventLog, topic: str, reader: EventReader) -> None:
    reader.assign(from_start(log, topic))
    for timeout_s in (0.0, 0.3):
        started_s = time.monotonic()
        assert poll(reader, 10, timeout_s) == []
        assert timeout_s * 0.9 <= time.monotonic() - started_s < timeout_s + 0.5


def test_a_poll_returns_no_more_than_asked(log: EventLog, topic: str, reader: EventReader) -> None:
    write(log, topic, numbered(100))
    reader.assign(from_start(log, topic))
    sizes = []
    while sum(sizes) < 100:
        sizes.append(len(poll(reader, 7, 1.0)))
        assert 1 <= sizes[-1] <= 7
    assert poll(reader, 7, 0.1) == []


def test_flushed_records_are_there_for_others_while_the_writer_lives(
    log: EventLog, topic: str, reader: EventReader
) -> None:
    writer = log.writer()
    reader.assign(from_start(log, topic))
    for number in range(3):
        writer.send(topic, b"k", b"%d" % number, number)
        writer.flush()
        assert [record.value for record in read_all(reader, 1)] == [b"%d" % number]
    writer.close()


def test_paused_partitions_are_not_returned(log: EventLog, topic: str, reader: EventReader) -> None:
    write(log, topic, numbered(200, num_keys=30))
    reader.assign(from_start(log, topic))
    paused = TopicPartition(topic, 1)
    num_paused = reader.end_offsets()[paused]
    assert num_paused > 0
    first = poll(reader, 20, 5.0)
    reader.pause([paused])
    rest = read_all(reader, 200 - num_paused - sum(record.partition != 1 for record in first))
    assert all(record.partition != 1 for record in rest)
    assert poll(reader, 10, 0.3) == []
    reader.resume([paused])
    last = read_all(reader, num_paused - sum(record.partition == 1 for record in first))
    assert len(first) + len(rest) + len(last) == 200
    mine = [record.offset for record in (*first, *last) if record.partition == 1]
    assert mine == list(range(num_paused))


def test_all_that_was_paused_is_returned_after_a_resume(
    log: EventLog, topic: str, reader: EventReader
) -> None:
    """Paused one by one in the middle, as the merge does; nothing new arrives to wake the client."""
    write(log, topic, numbered(3_000, num_keys=60))
    offsets = from_start(log, topic)
    reader.assign(offsets)
    records = poll(reader, 50, 5.0)
    for partition in offsets:
        reader.pause([partition])
        records += poll(reader, 50, 0.2)
    assert poll(reader, 50, 0.2) == []
    assert sum(reader.positions().values()) == len(records)
    reader.resume(list(offsets))
    records += read_all(reader, 3_000 - len(records))
    for partition, end in ends_of(log, topic).items():
        got = [record.offset for record in records if record.partition == partition.partition]
        assert got == list(range(end))


def test_an_offset_beyond_the_end_is_lost(log: EventLog, topic: str, reader: EventReader) -> None:
    write(log, topic, [(b"k", b"v")] * 5)
    (partition,) = {name for name, end in ends_of(log, topic).items() if end}
    with pytest.raises(
        OffsetLostError, match=rf"{topic}.*{partition.partition}.*next is 9.*ends at 5: 4 records"
    ):
        reader.assign({partition: 9})


def test_missing_topics_are_named(log: EventLog, topic: str) -> None:
    with pytest.raises(MissingTopicError, match="no-such-1, no-such-2"):
        log.partitions(["no-such-2", topic, "no-such-1"])
    with pytest.raises(MissingTopicError, match="no-such-1"):
        log.topic_ids(["no-such-1"])
    writer = log.writer()
    with pytest.raises(MissingTopicError, match="no-such-1"):
        writer.send("no-such-1", b"k", b"v", 0)
    writer.close()


def test_an_impossible_topic_name_is_refused(log: EventLog) -> None:
    with pytest.raises(LogError):
        log.create_topics({"../outside": 1})


def test_making_topics_leaves_those_that_exist_alone(log: EventLog, topic: str) -> None:
    write(log, topic, numbered(10))
    log.create_topics({topic: 9, f"{topic}-b": 2})
    assert log.partitions([f"{topic}-b", topic]) == [
        *(TopicPartition(topic, number) for number in range(3)),
        *(TopicPartition(f"{topic}-b", number) for number in range(2)),
    ]
    assert sum(ends_of(log, topic).values()) == 10


def test_a_recreated_topic_has_another_id(log: EventLog, topic: str, drop: Drop) -> None:
    before = log.topic_ids([topic])
    assert before == log.topic_ids([topic])
    uuid.UUID(before[topic])
    drop(topic)
    deadline_s = time.monotonic() + 10
    while time.monotonic() < deadline_s:
        try:
            log.partitions([topic])
        except MissingTopicError:
            break
    log.create_topics({topic: 3})
    assert log.topic_ids([topic])[topic] != before[topic]


def test_a_record_that_is_too_large_is_refused(log: EventLog, topic: str, reader: EventReader) -> None:
    writer = log.writer()
    with pytest.raises(LogError, match=topic):
        writer.send(topic, b"k", bytes(2 << 20), 0)
    writer.send(topic, b"k", b"fits", 0)
    writer.close()
    reader.assign(from_start(log, topic))
    assert [record.value for record in read_all(reader, 1)] == [b"fits"]


def test_closing_twice_and_reporting_progress_do_no_harm(log: EventLog, topic: str) -> None:
    reader, writer = log.reader(), log.writer()
    reader.assign(from_start(log, topic))
    reader.report_progress({TopicPartition(topic, 0): 0})
    for thing in (reader, reader, writer, writer):
        thing.close()
