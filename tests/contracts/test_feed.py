"""What every feed keeps, the one in this process and the one beside it: the same facts from the same log."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from learning import shop_events
from log_reads import poll

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.errors import MissingTopicError, OffsetLostError
from feature_store.schema import Click, Deleted, Event, Impression, ItemFeatures
from feature_store.sequenced import GatheredChanges
from feature_store.settings import load_configuration
from stream_trainer.chunk import Changed, Chunk, Fact, Marks, Place, Position, Positives
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import Feed
from stream_trainer.feed_process import open_feed
from stream_trainer.file_log import FileEventLog
from stream_trainer.file_writer import FileWriter
from stream_trainer.topics import create_topics
from stream_trainer.waiting import Waiting

NOWHERE = Position([], {}, Marks(), [])
LIMIT_S = 30
Opener = Callable[[bool], Feed]


@pytest.fixture
def log(tmp_path: Path) -> FileEventLog:
    event_log = FileEventLog(tmp_path)
    create_topics(event_log, Configuration().topics, num_partitions=2)
    return event_log


@pytest.fixture(params=["here", "beside"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Open feeds over the log in the test's folder; they are closed at its end."""
    settings = [f"log.path={tmp_path}", f"join.own_process={str(request.param == 'beside').lower()}"]
    feeds: list[Feed] = []

    def opener(until_end: bool) -> Feed:
        feeds.append(open_feed(load_configuration(None, settings, {}), until_end))
        return feeds[-1]

    yield opener
    for feed in feeds:
        feed.close()


def write(log: FileEventLog, events: list[Event]) -> None:
    writer = log.writer()
    for event in events:
        owner = event.user_id if isinstance(event, Click | Impression) else event.id
        value = b"" if isinstance(event, Deleted) else encode(event)
        writer.send(topic_of(event), owner.encode(), value, event.ts_ms)
    writer.close()


def topic_of(event: Event) -> str:
    if isinstance(event, Deleted):
        return event.kind.value
    topics = {"Impression": "impressions", "Click": "clicks", "ItemFeatures": "items"}
    return topics.get(type(event).__name__, "users")


def read_to_end(feed: Feed, position: Position) -> list[Chunk]:
    feed.start(position)
    chunks: list[Chunk] = []
    while not (chunks and chunks[-1].at_end):
        chunk = feed.next_chunk(LIMIT_S)
        assert chunk is not None
        chunks.append(chunk)
    return chunks


def waiting(chunks: list[Chunk]) -> Waiting:
    return Waiting(fact for chunk in chunks for fact in chunk.facts)


def facts_of(chunks: list[Chunk]) -> list[Fact]:
    """Return the facts, however they were cut into chunks."""
    return waiting(chunks).rest()


def after(chunks: list[Chunk], position: Position, topic_ids: dict[str, str]) -> Position:
    """Return where a trainer stands that committed after these chunks."""
    places = {(place.topic, place.partition): place for place in position.places}
    changes = GatheredChanges(None)
    for chunk in chunks:
        places |= {(place.topic, place.partition): place for place in chunk.places}
        if chunk.join_changes:
            changes.add(chunk.join_changes)
    join = [(key, value) for key, value in changes.pairs() if value is not None]
    return Position(list(places.values()), topic_ids, chunks[-1].marks, join)


def test_a_log_becomes_joined_clicks_and_changes_in_order(opened: Opener, log: FileEventLog) -> None:
    item = ItemFeatures(id="a", ts_ms=1, features={"category": "c", "price": 2.5, "tags": ["x", "y"]})
    shown = Impression(impression_id="1", user_id="u", ts_ms=2, items=["a", "b"])
    click = Click(impression_id="1", user_id="u", item_id="b", ts_ms=70_003)
    write(log, [item, shown, click, click])
    writer = log.writer()
    writer.send("users", b"u", b"", 70_004)
    writer.send("clicks", b"u", b"not an event", 70_005)
    writer.close()
    chunks = read_to_end(opened(True), NOWHERE)
    assert facts_of(chunks) == [
        Changed(True, "a", {"category": "c", "price": 2.5, "tags": ["x", "y"]}),
        Positives(["u"], ["b"], [places(chunks)["clicks"].partition], [0], [()]),
        Changed(False, "u", None),
    ]
    last = chunks[-1]
    assert last.marks == Marks(10_004, 70_003, 70_004)
    assert {topic: place.next_offset for topic, place in places(chunks).items()} == {
        "items": 1,
        "impressions": 1,
        "clicks": 3,
        "users": 1,
    }
    assert (last.lag_records, last.num_impressions, last.num_clicks) == (0, 0, 0)
    assert {name: count for name, count in last.join_counts.items() if count} == {
        "joined": 1,
        "duplicates": 1,
        "closed": 1,
    }
    assert sum((chunk.num_events.get("clicks", 0) for chunk in chunks), 0) == 3
    assert [chunk.dead_letters for chunk in chunks if chunk.dead_letters] == [{"malformed": 1}]
    reader = log.reader()
    reader.assign({TopicPartition("dead-letters", 0): 0})
    assert [record.value for record in poll(reader, 10, 0)] == [b"not an event"]
    reader.close()


def places(chunks: list[Chunk]) -> dict[str, Place]:
    """Return the last place of each topic, all of whose records are in one partition."""
    return {place.topic: place for chunk in chunks for place in chunk.places if place.next_offset}


def test_a_partition_is_begun_though_it_is_empty(opened: Opener, log: FileEventLog, tmp_path: Path) -> None:
    """What comes into it after a commit, and is deleted before it is read, is missed by the next start."""
    write(log, [ItemFeatures(id="a", ts_ms=1)])
    topic_ids = log.topic_ids(["items", "users", "impressions", "clicks"])
    position = after(read_to_end(opened(True), NOWHERE), NOWHERE, topic_ids)
    begun = sorted((place.topic, place.next_offset) for place in position.places)
    assert begun == sorted(
        [(topic, 0) for topic in (*topic_ids, "users", "impressions", "clicks")] + [("items", 1)]
    )
    for n in range(3):  # a segment each
        writer = FileWriter(tmp_path, segment_bytes=1)
        click = Click(impression_id=f"{n}", user_id="u", item_id="a", ts_ms=n + 2)
        writer.send("clicks", b"u", encode(click), click.ts_ms)
        writer.close()
    for partition in (0, 1):
        log.delete_before(TopicPartition("clicks", partition), 3)
    with pytest.raises(OffsetLostError, match="deleted before they were read"):
        opened(True).start(position)


def test_both_give_the_same_and_go_on_where_a_commit_stood(opened: Opener, log: FileEventLog) -> None:
    """The log has more than one chunk; a feed that starts after the first ones gives exactly the rest."""
    write(log, shop_events(1, 900))
    here = open_feed(load_configuration(None, [f"log.path={log._root}", "join.own_process=false"], {}), True)
    whole = read_to_end(here, NOWHERE)
    here.close()
    assert [chunk.facts for chunk in read_to_end(opened(True), NOWHERE)] == [chunk.facts for chunk in whole]
    feed, first = opened(True), list[Chunk]()
    topic_ids = feed.start(NOWHERE)
    while not facts_of(first):
        chunk = feed.next_chunk(LIMIT_S)
        assert chunk is not None
        first.append(chunk)
    assert len(waiting(first)) < len(waiting(whole))
    rest = read_to_end(opened(True), after(first, NOWHERE, topic_ids))
    assert facts_of([*first, *rest]) == facts_of(whole)
    assert rest[-1].marks == whole[-1].marks
    assert after([*first, *rest], NOWHERE, {}) == after(whole, NOWHERE, {})


def test_a_second_start_goes_on(opened: Opener, log: FileEventLog) -> None:
    write(log, shop_events(1, 10))
    feed = opened(True)
    chunks = read_to_end(feed, NOWHERE)
    write(log, [ItemFeatures(id="late", ts_ms=10**7)])
    more = read_to_end(feed, after(chunks, NOWHERE, log.topic_ids(["items"])))
    assert facts_of(more) == [Changed(True, "late", {})]


def test_live_it_waits_for_more(opened: Opener, log: FileEventLog) -> None:
    feed = opened(False)
    feed.start(NOWHERE)
    waited = feed.next_chunk(0.01)
    assert waited is None or not waited.facts
    write(log, [ItemFeatures(id="a", ts_ms=1)])
    deadline_s = time.monotonic() + LIMIT_S
    found: list[Fact] = []
    while not found and time.monotonic() < deadline_s:
        chunk = feed.next_chunk(0.1)
        found += [] if chunk is None else chunk.facts
    assert found == [Changed(True, "a", {})]


def test_what_is_not_there_is_told_as_it_is(opened: Opener, log: FileEventLog) -> None:
    ahead = Position([Place("items", 0, 7, 0)], {}, Marks(), [])
    with pytest.raises(OffsetLostError, match="7"):
        opened(True).start(ahead)
    for path in sorted((log._root / "clicks").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (log._root / "clicks").rmdir()
    with pytest.raises(MissingTopicError, match="clicks"):
        opened(True).start(NOWHERE)
