"""The trainer's input side over the embedded log: where it ends, and what becomes of bad messages."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from log_reads import plain, poll

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.errors import MissingTopicError
from feature_store.schema import Click, ItemFeatures
from stream_trainer import ingest as ingest_module
from stream_trainer.event_log import EventWriter, Headers
from stream_trainer.file_frames import MAX_RECORD_BYTES, FileRecord
from stream_trainer.file_log import FileEventLog
from stream_trainer.ingest import Ingest, Merged
from stream_trainer.topics import create_topics

CONFIG = Configuration()


class Clock:
    """Seconds that pass only when told."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def log(tmp_path: Path) -> FileEventLog:
    event_log = FileEventLog(tmp_path)
    create_topics(event_log, CONFIG.topics, num_partitions=1)
    return event_log


@pytest.fixture
def writer(log: FileEventLog) -> Iterator[EventWriter]:
    opened = log.writer()
    yield opened
    opened.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def bounded(log: FileEventLog, clock: Clock) -> Iterator[Ingest]:
    opened = Ingest(CONFIG, log, Counter(), True, clock)
    yield opened
    opened.close()


@pytest.fixture
def live(log: FileEventLog, clock: Clock) -> Iterator[Ingest]:
    opened = Ingest(CONFIG, log, Counter(), False, clock)
    yield opened
    opened.close()


def send_items(writer: EventWriter, *times: int) -> None:
    for ts_ms in times:
        writer.send("items", b"a", encode(ItemFeatures(id="a", ts_ms=ts_ms)), 0)
    writer.flush()


def send_clicks(writer: EventWriter, *times: int) -> None:
    for ts_ms in times:
        click = Click(impression_id="i", user_id="u", item_id="a", ts_ms=ts_ms)
        writer.send("clicks", b"u", encode(click), 0)
    writer.flush()


def places(events: list[Merged]) -> list[tuple[str, int]]:
    return [(partition.topic, ts_ms) for partition, ts_ms, _, _ in events]


def test_a_bounded_replay_ends_where_the_log_ended_at_its_start(bounded: Ingest, writer: EventWriter) -> None:
    """What is written meanwhile is for the next run, and does not hold back the rest."""
    send_items(writer, 1, 2)
    send_clicks(writer, 1, 2, 3)
    bounded.start({}, {}, {})
    send_items(writer, 3, 4)
    assert places(bounded.next_events(2, 0)) == [("clicks", 1), ("items", 1)]
    send_items(writer, 5)
    events = []
    for _ in range(5):
        events += bounded.next_events(100, 0)
    assert places(events) == [("clicks", 2), ("items", 2), ("clicks", 3)]
    assert bounded.at_end


def test_a_bounded_replay_ends_though_every_poll_finds_more(
    bounded: Ingest, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "_POLL_RECORDS", 3)
    send_clicks(writer, 50, 60)
    send_items(writer, *range(1, 20), 70, 71)
    bounded.start({}, {}, {})
    events: list[Merged] = []
    for _ in range(60):
        send_clicks(writer, 80)
        events += bounded.next_events(100, 0)
    assert sorted(ts_ms for _, ts_ms in places(events)) == [*range(1, 20), 50, 60, 70, 71]
    assert bounded.at_end
    assert bounded.lag_records == 0


def test_live_a_silent_partition_holds_back_the_rest_only_for_a_while(
    live: Ingest, writer: EventWriter, clock: Clock
) -> None:
    send_items(writer, 1, 2)
    live.start({}, {}, {})
    assert live.next_events(100, 0) == []
    clock.now_s += CONFIG.join.idle_timeout_seconds
    assert places(live.next_events(100, 0) + live.next_events(100, 0)) == [("items", 1), ("items", 2)]
    assert not live.at_end
    assert live.lag_records == 0


def test_a_full_partition_is_paused_and_read_on_later(
    bounded: Ingest, writer: EventWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "_POLL_RECORDS", 2)
    monkeypatch.setattr(ingest_module, "_MAX_WAITING", 4)
    send_items(writer, *range(50))
    send_clicks(writer, *range(50))
    bounded.start({}, {}, {})
    events: list[Merged] = []
    for _ in range(200):
        events += bounded.next_events(3, 0)
        assert bounded.lag_records == 100 - len(events)
    assert places(events) == [(topic, ts_ms) for ts_ms in range(50) for topic in ("clicks", "items")]
    assert bounded.at_end


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"k" * 500_000, b"\xc1" * 500_000, ()),
        (b"k" * 1_000_000, b"\xc1", ()),
        (b"k", b"\xc1" * 1_040_000, ()),
        (b"k", b"\xc1", (("h", b"x" * 1_000_000),)),
        (b"k", b"\xc1", (("h", b""),) * 65_535),
    ],
)
def test_a_message_as_large_as_the_log_allows_is_buried_too(
    log: FileEventLog, bounded: Ingest, writer: EventWriter, key: bytes, value: bytes, headers: Headers
) -> None:
    writer.send("clicks", key, value, 7, headers)
    writer.flush()
    bounded.start({}, {}, {})
    ((_, _, _, event),) = bounded.next_events(10, 0)
    assert event is None
    bounded.flush_dead_letters()
    (letter,) = dead_letters(log)
    named = dict(letter.headers)
    assert named["truncated_from_bytes"] == str(len(key) + len(value)).encode()
    assert (named["origin_topic"], named["origin_offset"]) == (b"clicks", b"0")
    assert letter.key is not None
    assert letter.value is not None
    assert key.startswith(letter.key)
    assert value.startswith(letter.value)
    assert len(letter.value) == min(len(value), 900_000)
    assert len(letter.key) + len(letter.value) < MAX_RECORD_BYTES


def test_a_dead_letter_keeps_its_message_whole_with_its_own_headers(
    log: FileEventLog, bounded: Ingest, writer: EventWriter
) -> None:
    writer.send("clicks", None, b"{}", 7, (("trace", b"42"),))
    writer.flush()
    bounded.start({}, {}, {})
    bounded.next_events(10, 0)
    bounded.flush_dead_letters()
    assert dead_letters(log) == [
        FileRecord(
            "dead-letters",
            0,
            0,
            7,
            None,
            b"{}",
            (
                ("origin_topic", b"clicks"),
                ("origin_partition", b"0"),
                ("origin_offset", b"0"),
                ("reason", b"unknown_version"),
                ("detail", b"field 'v' is missing; this program reads version 1"),
                ("trace", b"42"),
            ),
        )
    ]


def test_an_event_far_ahead_of_its_record_does_not_take_time_along(
    log: FileEventLog, bounded: Ingest, writer: EventWriter
) -> None:
    """An hour is allowed: `join.max_ahead_seconds`. A record without a time of its own is believed."""
    century_ms, now_ms = 4_102_444_800_000, 1_700_000_000_000
    dated = [
        (now_ms, 5),
        (now_ms, 3_600_000),
        (now_ms, 3_600_001),
        (now_ms, century_ms - now_ms),
        (now_ms, 6),
    ]
    for at_ms, ahead_ms in [*dated, (0, century_ms)]:
        click = Click(impression_id="i", user_id="u", item_id="a", ts_ms=at_ms + ahead_ms)
        writer.send("clicks", b"u", encode(click), at_ms)
    writer.flush()
    bounded.start({}, {}, {})
    events = bounded.next_events(10, 0)
    assert [event is None for _, _, _, event in events] == [False, False, True, True, False, False]
    latest = now_ms + 3_600_000
    assert [ts_ms for _, ts_ms, _, _ in events] == [now_ms + 5, *[latest] * 4, century_ms]
    bounded.flush_dead_letters()
    named = [dict(letter.headers) for letter in dead_letters(log)]
    assert [each["reason"] for each in named] == [b"ahead_of_time"] * 2
    assert (
        b"2402444800 s after the record was written; join.max_ahead_seconds allows 3600" in named[1]["detail"]
    )


def dead_letters(log: FileEventLog) -> list[FileRecord]:
    reader = log.reader()
    reader.assign(log.beginning_offsets(log.partitions(["dead-letters"])))
    found = [plain(record) for record in poll(reader, 10, 0)]
    reader.close()
    return found


def test_a_missing_dead_letter_topic_is_found_at_the_start(tmp_path: Path) -> None:
    event_log = FileEventLog(tmp_path)
    event_log.create_topics(dict.fromkeys(CONFIG.topics.kinds(), 1))
    opened = Ingest(CONFIG, event_log, Counter(), True, Clock())
    with pytest.raises(MissingTopicError, match="dead-letters"):
        opened.start({}, {}, {})
    opened.close()
