"""What only a real broker can show: outages, retention, damage, client settings, reported progress."""

import gc
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka import TopicPartition as KafkaPartition
from kafka.errors import LogTruncationError
from log_reads import poll

from feature_store.codec import encode
from feature_store.configuration import Configuration, LogSettings, TopicSettings
from feature_store.errors import LogError, OffsetLostError, SettingsError
from feature_store.schema import ItemFeatures
from stream_trainer import kafka_reader
from stream_trainer.event_log import Record, TopicPartition
from stream_trainer.ingest import Ingest
from stream_trainer.kafka_log import KafkaEventLog
from stream_trainer.kafka_reader import KafkaReader
from stream_trainer.topics import create_topics

# kafka-python leaves it to the garbage collector to close a socket whose connection was refused.
pytestmark = pytest.mark.filterwarnings(r"ignore:unclosed .*laddr=\('0\.0\.0\.0':ResourceWarning")

CLICKS = TopicPartition("clicks", 0)


@pytest.fixture(autouse=True)
def _collect_refused_sockets(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.CRITICAL, "kafka")  # captured errors would hold on to the sockets
    yield
    gc.collect()


def settings(address: str, **client: str | int | float | bool) -> LogSettings:
    return LogSettings(kind="kafka", bootstrap_servers=address, client=client, group_id="progress-test")


def read(reader: KafkaReader, count: int, within_s: float = 20) -> list[Record]:
    records: list[Record] = []
    deadline_s = time.monotonic() + within_s
    while len(records) < count and time.monotonic() < deadline_s:
        records += poll(reader, 1000, 0.2)
    return records


def follow(reader: KafkaReader, seconds: float) -> dict[TopicPartition, int]:
    """Ask for more, and where reading stands, as the input side does; return where it stands in the end."""
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        assert poll(reader, 10, 0.1) == []
        standing = reader.positions()
    return standing


def append(log: KafkaEventLog, topic: str, *values: bytes) -> None:
    writer = log.writer()
    for value in values:
        writer.send(topic, b"k", value, 1)
        writer.flush()  # a batch each
    writer.close()


def test_unknown_client_settings_are_named_before_anything_connects() -> None:
    with pytest.raises(SettingsError, match=r"log\.client\.sasl_mechanisms"):
        KafkaEventLog(settings("127.0.0.1:1", sasl_mechanisms="PLAIN"))
    with pytest.raises(SettingsError, match=r"log\.client\.enable_auto_commit"):
        KafkaEventLog(settings("127.0.0.1:1", enable_auto_commit=True))


def test_client_settings_reach_the_clients_that_know_them(kafka_bootstrap: str) -> None:
    log = KafkaEventLog(settings(kafka_bootstrap, client_id="ours", fetch_max_wait_ms=123, batch_size=4567))
    reader, writer = log.reader(), log.writer()
    assert (reader._consumer.config["fetch_max_wait_ms"], reader._consumer.config["client_id"]) == (
        123,
        "ours",
    )
    assert writer._producer.config["batch_size"] == 4567
    for thing in (reader, writer, log):
        thing.close()


def test_an_impossible_client_setting_is_a_settings_error(kafka_bootstrap: str) -> None:
    log = KafkaEventLog(settings(kafka_bootstrap, compression_type="tape"))
    with pytest.raises(SettingsError, match="tape"):
        log.writer()


def test_no_broker_is_a_log_error() -> None:
    with pytest.raises(LogError, match=r"127\.0\.0\.1:1\b"):
        KafkaEventLog(settings("127.0.0.1:1", bootstrap_timeout_ms=200)).reader()


def test_retention_is_noticed_when_assigning_and_when_polling(kafka_bootstrap: str) -> None:
    log = KafkaEventLog(settings(kafka_bootstrap))
    topic = f"retention-{uuid.uuid4().hex[:8]}"
    log.create_topics({topic: 1})
    partition = TopicPartition(topic, 0)
    reader = log.reader()
    reader.assign({partition: 0})
    reader.pause([partition])
    append(log, topic, *(b"%d" % number for number in range(10)))
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    admin.delete_records({KafkaPartition(topic, 0): 6})
    admin.close()
    assert log.beginning_offsets([partition]) == {partition: 6}
    reader.resume([partition])
    with pytest.raises(OffsetLostError, match=r"next is 0, .* before 6: 6 records"):
        read(reader, 10, within_s=5)
    with pytest.raises(OffsetLostError, match=r"next is 4, .* before 6: 2 records"):
        reader.assign({partition: 4})
    reader.assign({partition: 6})
    assert [record.offset for record in read(reader, 4)] == [6, 7, 8, 9]
    reader.close()
    log.close()


def test_progress_is_there_for_operators(kafka_bootstrap: str) -> None:
    log = KafkaEventLog(settings(kafka_bootstrap))
    topic = f"progress-{uuid.uuid4().hex[:8]}"
    log.create_topics({topic: 1})
    append(log, topic, b"a", b"b")
    reader = log.reader()
    reader.assign({TopicPartition(topic, 0): 0})
    reader.report_progress({TopicPartition(topic, 0): 1})
    reader.report_progress({TopicPartition(topic, 0): 2})
    reader.close()
    log.close()
    admin = KafkaAdminClient(bootstrap_servers=kafka_bootstrap)
    (committed,) = admin.list_group_offsets(["progress-test"]).values()
    admin.close()
    assert committed[KafkaPartition(topic, 0)].offset == 2


def test_a_partition_without_a_leader_keeps_its_last_known_end(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of such a one the client gives nothing, and then looks for it in what it gave."""

    def fail(*_: object, **__: object) -> None:
        raise KeyError(KafkaPartition("leaderless", 0))

    monkeypatch.setattr(kafka_reader, "_PATIENCE_AT_START_S", 0.3)
    log, here = KafkaEventLog(settings(kafka_bootstrap)), TopicPartition("leaderless", 0)
    log.create_topics({"leaderless": 1})
    append(log, "leaderless", b"x")
    with closing(log.reader()) as reader:
        reader.assign({here: 0})
        with monkeypatch.context() as broken:
            broken.setattr(reader._side, "end_offsets", fail)
            assert reader.end_offsets() == {here: 1}
            broken.setattr(reader._consumer, "end_offsets", fail)
            with pytest.raises(LogError, match="no leader"):
                reader.assign({here: 0})
        append(log, "leaderless", b"y")
        assert reader.end_offsets() == {here: 2}
        assert reader._consumer.config["metadata_max_age_ms"] == 60_000


def test_records_that_the_cluster_lost_are_told_of_where_reading_stands(
    kafka_bootstrap: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, here = KafkaEventLog(settings(kafka_bootstrap)), TopicPartition("truncated", 0)
    log.create_topics({"truncated": 1})

    def lost(*_: object, **__: object) -> int:
        raise LogTruncationError({KafkaPartition(*here): None})

    with closing(log.reader()) as reader:
        reader.assign({here: 0})
        assert reader.positions() == {here: 0}
        monkeypatch.setattr(reader._consumer, "position", lost)
        with pytest.raises(OffsetLostError, match="already read"):
            reader.positions()
        with pytest.raises(OffsetLostError, match="already read"):
            reader.pause([here])


def flip_a_bit_of(segment: Path, needle: bytes) -> None:
    content = bytearray(segment.read_bytes())
    content[content.index(needle)] ^= 1
    segment.write_bytes(content)


def test_an_outage_is_waited_out_and_damage_stops_the_reader(
    tmp_path: Path, kafka_broker: Callable[..., AbstractContextManager[str]]
) -> None:
    with kafka_broker(tmp_path) as address:
        log = KafkaEventLog(settings(address))
        log.create_topics({"clicks": 1})
        append(log, "clicks", b"before")
        reader = log.reader()
        reader.assign({CLICKS: 0})
        assert [record.value for record in read(reader, 1)] == [b"before"]
        follower = ThreadPoolExecutor(1)
        followed = follower.submit(follow, reader, 6.0)
        time.sleep(0.5)
    assert followed.result() == {CLICKS: 1}
    follower.shutdown()
    started_s = time.monotonic()
    assert poll(reader, 10, 0.5) == []
    assert time.monotonic() - started_s < 1.5
    assert reader.end_offsets() == {CLICKS: 1}
    assert reader.take_added(["clicks"]) == {}
    reader.report_progress({CLICKS: 1})
    with kafka_broker(tmp_path, port=int(address.split(":")[1])):
        append(log, "clicks", b"after", b"needle", b"last")
        assert [record.value for record in read(reader, 3)] == [b"after", b"needle", b"last"]
    (segment,) = (tmp_path / "logs" / "clicks-0").glob("*.log")
    flip_a_bit_of(segment, b"needle")
    with kafka_broker(tmp_path, port=int(address.split(":")[1])):
        damaged = log.reader()
        damaged.assign({CLICKS: 0})
        assert [record.value for record in read(damaged, 2)] == [b"before", b"after"]
        for _ in range(2):
            with pytest.raises(LogError, match=r"clicks.*offset 2.*crc"):
                read(damaged, 1, within_s=5)
        damaged.close()
        reader.close()
        log.close()


def test_transactions_count_once_they_are_committed_and_their_marks_are_no_records(
    kafka_bootstrap: str,
) -> None:
    """A bounded replay knows that it is at the end also where a mark stands last."""
    mine = uuid.uuid4().hex[:8]
    topics = {kind: f"{kind}-{mine}" for kind in ("items", "users", "impressions", "clicks")}
    names = TopicSettings(**topics, dead_letters=f"dead-{mine}")
    config = Configuration(log=settings(kafka_bootstrap), topics=names)
    log = KafkaEventLog(config.log)
    create_topics(log, names, num_partitions=1)
    producer = KafkaProducer(bootstrap_servers=kafka_bootstrap, transactional_id=mine)
    producer.init_transactions()
    for ts_ms, is_meant in ((1, True), (2, False), (3, True)):
        producer.begin_transaction()
        producer.send(names.items, encode(ItemFeatures(id="a", ts_ms=ts_ms)), b"a")
        producer.flush()
        if is_meant:
            producer.commit_transaction()
        else:
            producer.abort_transaction()
    producer.close()
    ingest = Ingest(config, log, Counter(), True, time.monotonic)
    ingest.start({}, {}, {})
    seen, deadline_s = [], time.monotonic() + 20
    while not ingest.at_end and time.monotonic() < deadline_s:
        seen += [event.ts_ms for _, _, _, event in ingest.next_events(10, 0.2) if event is not None]
    assert ingest.at_end
    assert seen == [1, 3]
    assert ingest.lag_records == 0
    ingest.close()
    log.close()
