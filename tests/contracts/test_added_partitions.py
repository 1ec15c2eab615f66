"""Partitions that topics get while they are read, over the embedded log and a real Kafka broker."""

import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient

from feature_store.codec import encode
from feature_store.configuration import Configuration, LogSettings, TopicSettings
from feature_store.errors import LogError
from feature_store.schema import Click, ItemFeatures
from stream_trainer.event_log import EventLog, TopicPartition
from stream_trainer.file_segments import segment_path, topic_folder
from stream_trainer.ingest import Ingest, Merged
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics

LONG_S = 60.0


class Clock:
    """Seconds that pass only when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["file", "kafka"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Configuration:
    log = LogSettings(kind="file", path=tmp_path / "log")
    if request.param == "kafka":
        log = LogSettings(kind="kafka", bootstrap_servers=request.getfixturevalue("kafka_bootstrap"))
    prefix = uuid.uuid4().hex[:8]
    topics = TopicSettings(**{name: f"{prefix}-{name}" for name in TopicSettings.model_fields})
    return Configuration(log=log, topics=topics)


@pytest.fixture
def log(config: Configuration) -> Iterator[EventLog]:
    with closing(open_log(config.log)) as opened:
        create_topics(opened, config.topics, num_partitions=1)
        yield opened


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def live(config: Configuration, log: EventLog, clock: Clock) -> Iterator[Ingest]:
    with closing(Ingest(config, log, Counter(), False, clock)) as opened:
        yield opened


@pytest.fixture
def add_partition(config: Configuration) -> Callable[[str], None]:
    def to_files(topic: str) -> None:
        folder = topic_folder(config.log.path, topic) / "1"
        folder.mkdir()
        segment_path(folder, 0).touch()

    def to_kafka(topic: str) -> None:
        with closing(KafkaAdminClient(bootstrap_servers=config.log.bootstrap_servers)) as admin:
            admin.create_partitions({topic: 2})

    return to_files if config.log.kind == "file" else to_kafka


def send_items(log: EventLog, topic: str, num: int, start_ms: int) -> None:
    with closing(log.writer()) as writer:
        for n in range(num):
            item = ItemFeatures(id=f"item {n}", ts_ms=start_ms + n)
            writer.send(topic, item.id.encode(), encode(item), 0)


def read(live: Ingest, clock: Clock, num: int) -> list[Merged]:
    """Read so many, and what else comes, while time passes."""
    events: list[Merged] = []
    for _ in range(200):
        events += live.next_events(1000, 0.1)
        if len(events) >= num:
            break
        clock.now_s += 1
    return events


def test_they_are_read_from_their_first_record(
    config: Configuration, log: EventLog, live: Ingest, clock: Clock, add_partition: Callable[[str], None]
) -> None:
    topic = config.topics.items
    live.start({}, {}, {})
    assert TopicPartition(topic, 0) in live.take_begun()
    send_items(log, topic, 20, start_ms=1)
    assert len(read(live, clock, 20)) == 20
    add_partition(topic)
    send_items(log, topic, 20, start_ms=100)
    events = read(live, clock, 20)
    assert sorted(event.ts_ms for *_, event in events if event) == list(range(100, 120))
    assert {partition.partition for partition, *_ in events} == {0, 1}
    assert next(offset for partition, _, offset, _ in events if partition.partition == 1) == 0
    assert live.take_begun() == {TopicPartition(topic, 1): 0}
    assert live.lag_records == 0


def test_the_others_wait_for_them_as_for_each_other(
    config: Configuration, log: EventLog, live: Ingest, clock: Clock, add_partition: Callable[[str], None]
) -> None:
    """What comes at once into an old partition and a new one is in order of event time."""
    live.start({}, {}, {})
    add_partition(config.topics.clicks)
    clock.now_s += LONG_S
    live.next_events(10, 0)
    with closing(log.writer()) as writer:
        for n in range(40):
            click = Click(impression_id=str(n), user_id=f"user {n}", item_id="a", ts_ms=1000 - n // 20)
            writer.send(config.topics.clicks, click.user_id.encode(), encode(click), 0)
    places = [(ts_ms, *partition) for partition, ts_ms, _, _ in read(live, clock, 40)]
    assert len({partition for _, _, partition in places}) == 2
    assert places == sorted(places)


def test_a_log_that_does_not_answer_is_asked_again(
    config: Configuration,
    log: EventLog,
    live: Ingest,
    clock: Clock,
    add_partition: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(topics: object) -> list[TopicPartition]:
        raise LogError("no broker")

    live.start({}, {}, {})
    live.take_begun()
    add_partition(config.topics.users)
    with monkeypatch.context() as broken:
        broken.setattr(log, "partitions", fail)
        clock.now_s += LONG_S
        live.next_events(10, 0)
    assert "no broker" in caplog.text
    assert live.take_begun() == {}
    clock.now_s += LONG_S
    live.next_events(10, 0)
    assert live.take_begun() == {TopicPartition(config.topics.users, 1): 0}
