"""Partitions that topics get while they are read, over the embedded log and a real Kafka broker."""

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.errors import KafkaTimeoutError

from feature_store.codec import encode
from feature_store.configuration import Configuration, LogSettings, TopicSettings
from feature_store.schema import Click, ItemFeatures
from stream_trainer import ingest as ingest_module
from stream_trainer import kafka_reader
from stream_trainer.chunk import Marks, Place, Position
from stream_trainer.event_log import EventLog, TopicPartition
from stream_trainer.feed import LocalFeed
from stream_trainer.file_segments import segment_path, topic_folder
from stream_trainer.ingest import Ingest, Merged
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics


class Clock:
    """Seconds that pass only when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(params=["file", "kafka"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Configuration:
    log = LogSettings(kind="file", path=tmp_path / "log")
    if request.param == "kafka":
        address = request.getfixturevalue("kafka_bootstrap")
        client = {"metadata_max_age_ms": 500}  # how often it looks for partitions
        log = LogSettings(kind="kafka", bootstrap_servers=address, client=client)
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
    """Read so many and what else comes, for twenty seconds at most."""
    events: list[Merged] = []
    deadline_s = time.monotonic() + 20
    while len(events) < num and time.monotonic() < deadline_s:
        events += live.next_events(1000, 0.1)
        clock.now_s += 1
    return events


def await_partition(live: Ingest, topic: str) -> None:
    """Wait until Kafka's client has heard of a second partition; a folder tells at once."""
    consumer = getattr(live._reader, "_consumer", None)
    deadline_s = time.monotonic() + 20
    while consumer is not None and len(consumer.partitions_for_topic(topic)) < 2:
        assert time.monotonic() < deadline_s
        assert not live._reader.poll(1, 0.1)


def await_begun(live: Ingest, clock: Clock) -> dict[TopicPartition, int]:
    """Return what is begun next."""
    deadline_s = time.monotonic() + 20
    while not (begun := live.take_begun()):
        assert time.monotonic() < deadline_s
        live.next_events(10, 0.1)
        clock.now_s += 1
    return begun


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
    live.take_begun()
    add_partition(config.topics.clicks)
    await_begun(live, clock)
    with closing(log.writer()) as writer:
        for n in range(40):
            click = Click(impression_id=str(n), user_id=f"user {n}", item_id="a", ts_ms=1000 - n // 20)
            writer.send(config.topics.clicks, click.user_id.encode(), encode(click), 0)
    places = [(ts_ms, *partition) for partition, ts_ms, _, _ in read(live, clock, 40)]
    assert len({partition for _, _, partition in places}) == 2
    assert places == sorted(places)


def test_a_full_partition_stays_paused(
    config: Configuration,
    log: EventLog,
    live: Ingest,
    clock: Clock,
    add_partition: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What waits for a silent partition is bounded, also when another one is added meanwhile."""
    monkeypatch.setattr(ingest_module, "_MAX_WAITING", 10)
    monkeypatch.setattr(ingest_module, "_POLL_RECORDS", 5)
    send_items(log, config.topics.items, 100, start_ms=1)
    live.start({}, {}, {})
    for _ in range(20):
        assert live.next_events(1000, 0.1) == []
    add_partition(config.topics.users)
    await_partition(live, config.topics.users)
    clock.now_s = 40.0  # the others are waited for no more, the new one is
    for _ in range(20):
        assert live.next_events(1000, 0.1) == []
    assert TopicPartition(config.topics.users, 1) in live.take_begun()
    assert live.lag_records == 100
    assert len(live._merge) < 20
    events = read(live, clock, 100)
    assert [offset for _, _, offset, _ in events] == list(range(100))


def test_a_commit_says_where_they_begin_before_anything_comes(
    config: Configuration, log: EventLog, clock: Clock, add_partition: Callable[[str], None]
) -> None:
    topic = config.topics.items
    with closing(LocalFeed(config, open_log(config.log), until_end=False, now=clock)) as feed:
        feed.start(Position([], {}, Marks(), []))
        places = [Place(topic, 0, 0, 0), *feed.next_chunk(0).places]
        add_partition(topic)
        for _ in range(100):
            clock.now_s += 1
            places += feed.next_chunk(0.1).places
        assert places.count(Place(topic, 1, 0, 0)) == 1


@pytest.mark.parametrize("config", ["kafka"], indirect=True)  # a folder always answers
def test_kafka_is_asked_again_where_they_begin(
    config: Configuration,
    log: EventLog,
    live: Ingest,
    clock: Clock,
    add_partition: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """While it does not answer, or has no leader for them."""
    errors = iter([KafkaTimeoutError(), KeyError("a partition")])
    consumer = live._reader._consumer  # type: ignore[attr-defined]
    ask = consumer.beginning_offsets

    def answer(*args: object, **options: object) -> object:
        for error in errors:
            raise error
        return ask(*args, **options)

    live.start({}, {}, {})
    live.take_begun()
    monkeypatch.setattr(consumer, "beginning_offsets", answer)
    monkeypatch.setattr(kafka_reader, "_PATIENCE_S", 0.0)
    add_partition(config.topics.users)
    assert await_begun(live, clock) == {TopicPartition(config.topics.users, 1): 0}
    assert caplog.text.count("new partitions are looked for later") == 2
    assert "has no leader" in caplog.text


@pytest.mark.parametrize("config", ["file"], indirect=True)
def test_a_folder_that_is_being_made_is_looked_at_again(
    config: Configuration, log: EventLog, live: Ingest, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    live.start({}, {}, {})
    live.take_begun()
    made = topic_folder(config.log.path, config.topics.users) / "1"
    made.mkdir()
    for _ in range(100):
        live.next_events(10, 0)
        clock.now_s += 1
    assert caplog.text.count("new partitions are looked for later") == 3
    segment_path(made, 0).touch()
    assert await_begun(live, clock) == {TopicPartition(config.topics.users, 1): 0}
