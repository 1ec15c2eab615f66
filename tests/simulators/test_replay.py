"""Replay: topics, keys and times of the records, the pace, and the order that the log gives back."""

from pathlib import Path

import msgspec
import pytest
from log_reads import poll

from feature_store.codec import decode
from feature_store.configuration import TopicSettings
from feature_store.errors import SettingsError
from feature_store.schema import Click, EventKind, Impression, ItemFeatures, UserFeatures
from simulators.dataset import load_dataset
from simulators.replay import replay
from simulators.synthetic import generate
from simulators.timeline import num_events, timeline
from stream_trainer.file_log import FileEventLog
from stream_trainer.topics import create_topics

EVENTS = [
    (EventKind.ITEM, ItemFeatures(id="i1", ts_ms=1_000, features={"category": "C"})),
    (EventKind.IMPRESSION, Impression(impression_id="0", user_id="u1", ts_ms=2_000, items=["i1", "i2"])),
    (EventKind.CLICK, Click(impression_id="0", user_id="u1", item_id="i1", ts_ms=5_000)),
    (EventKind.USER, UserFeatures(id="u1", ts_ms=61_000, features={"num_reviews": 1.0})),
]
TOPICS = TopicSettings(items="shop-items", users="shop-users")


class Shop:
    """A writer and a clock in one: notes what is sent, flushed and waited for, and when."""

    def __init__(self, stop_after_s: float = float("inf")) -> None:
        self.now_s = 100.0
        self.sent = []
        self.flushed_at_s = []
        self._stop_at_s = self.now_s + stop_after_s

    def send(self, topic, key, value, timestamp_ms, headers=()):
        self.sent.append((self.now_s, topic, key, value, timestamp_ms))

    def flush(self):
        self.flushed_at_s.append((self.now_s, len(self.sent)))

    def close(self):
        raise AssertionError("the writer belongs to the caller")

    def now(self):
        return self.now_s

    def wait(self, seconds):
        assert seconds >= 0
        self.now_s += seconds
        return self.now_s >= self._stop_at_s


def test_records_are_the_events():
    shop = Shop()
    counts = replay(iter(EVENTS), shop, TOPICS, now=shop.now, wait=shop.wait)
    assert counts == dict.fromkeys(EventKind, 1)
    assert [(topic, key, ts_ms) for _, topic, key, _, ts_ms in shop.sent] == [
        ("shop-items", b"i1", 1_000),
        ("impressions", b"u1", 2_000),
        ("clicks", b"u1", 5_000),
        ("shop-users", b"u1", 61_000),
    ]
    for (kind, event), (_, _, key, value, ts_ms) in zip(EVENTS, shop.sent, strict=True):
        assert decode(kind, key, value, ts_ms) == event
    assert {at_s for at_s, *_ in shop.sent} == {100.0}  # as fast as it goes: no waiting
    assert shop.flushed_at_s[-1] == (100.0, 4)


def test_pace_follows_event_time():
    for speed, expected in ((1.0, [100, 101, 104, 160]), (10.0, [100, 100.1, 100.4, 106])):
        shop = Shop()
        replay(iter(EVENTS), shop, TOPICS, speed=speed, now=shop.now, wait=shop.wait)
        assert [at_s for at_s, *_ in shop.sent] == pytest.approx(expected)
        assert any(at_s < shop.now_s - 2 and num == 3 for at_s, num in shop.flushed_at_s)  # not held back


def test_a_replay_that_is_late_catches_up():
    shop = Shop()

    def slow_events():
        for pair in EVENTS:
            yield pair
            shop.now_s += 30.0

    replay(slow_events(), shop, TOPICS, speed=1.0, now=shop.now, wait=shop.wait)
    assert [at_s for at_s, *_ in shop.sent] == [100.0, 130.0, 160.0, 190.0]


def test_a_replay_can_be_stopped():
    shop = Shop(stop_after_s=20)
    counts = replay(iter(EVENTS), shop, TOPICS, speed=1.0, now=shop.now, wait=shop.wait)
    assert EventKind.USER not in counts
    assert shop.now_s <= 121
    assert shop.flushed_at_s[-1][1] == len(shop.sent) == 3


def test_a_speed_must_be_positive():
    for speed in (0.0, -1.0, float("nan")):
        with pytest.raises(SettingsError, match="speed"):
            replay(iter(EVENTS), Shop(), TOPICS, speed=speed)


def test_the_bar_shows_how_far_it_is(capsys: pytest.CaptureFixture[str]):
    replay(iter(EVENTS), Shop(), TOPICS, num_events=4, show_progress=True)
    assert "4/4" in capsys.readouterr().err
    replay(iter(EVENTS), Shop(), TOPICS, num_events=4)
    assert capsys.readouterr().err == ""


def test_the_log_gives_back_what_was_replayed(tmp_path: Path):
    generate(tmp_path / "data", 40, 30, 300, 3, seed=0)
    dataset = load_dataset(tmp_path / "data")
    log = FileEventLog(tmp_path / "log")
    topics = TopicSettings()
    create_topics(log, topics)
    writer = log.writer()
    counts = replay(timeline(dataset, 0), writer, topics)
    writer.close()
    assert sum(counts.values()) == num_events(dataset)

    reader = log.reader()
    reader.assign(log.beginning_offsets(log.partitions(list(topics.kinds()))))
    records = []
    while polled := poll(reader, 1000, 0.0):
        records += polled
    reader.close()
    log.close()
    kinds = topics.kinds()
    events = [decode(kinds[r.topic], r.key, r.value, r.timestamp) for r in records]
    in_order = sorted(events, key=msgspec.json.encode)
    assert in_order == sorted((e for _, e in timeline(dataset, 0)), key=msgspec.json.encode)
    place = {r.key: r.partition for r in records if r.topic == topics.impressions}
    assert all(place[r.key] == r.partition for r in records if r.topic == topics.clicks)
