"""What the commit writes of the join: no more than the store must hear of."""

import msgpack

from stream_trainer.join_changes import JoinChanges
from stream_trainer.join_entries import (
    COUNTER_KEY,
    Changes,
    EarlyClick,
    Origin,
    decode_entry,
    encode_changes,
)


def key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def entry(name: str) -> EarlyClick:
    return EarlyClick(name, "u", "item", 5, Origin(0, 7))


def told(last: int, entries: dict[int, str], gone: tuple[int, ...] = ()) -> bytes:
    named = {sequence: entry(name) for sequence, name in entries.items()}
    return encode_changes(Changes(last, named, list(gone)))


def taken(changes: JoinChanges) -> dict[bytes, object]:
    pairs = list(changes.take())
    assert len(dict(pairs)) == len(pairs)
    return {
        key: value if value is None or key == COUNTER_KEY else decode_entry(value) for key, value in pairs
    }


def counter(sequence: int) -> dict[bytes, bytes]:
    return {COUNTER_KEY: msgpack.packb(sequence)}


def test_later_changes_come_on_top_and_what_comes_and_goes_leaves_nothing() -> None:
    changes = JoinChanges(None)
    changes.add(told(2, {1: "a", 2: "b"}))
    changes.add(told(3, {1: "changed", 3: "c"}, gone=(2,)))
    assert taken(changes) == {key(1): entry("changed"), key(3): entry("c"), **counter(3)}
    assert taken(changes) == {}


def test_what_the_store_holds_is_deleted_there() -> None:
    changes = JoinChanges(None)
    changes.add(told(1, {1: "a"}))
    changes.take()
    changes.add(told(2, {2: "b"}, gone=(1,)))
    changes.add(told(2, {}, gone=(2,)))
    assert taken(changes) == {key(1): None, **counter(2)}


def test_nothing_is_no_change() -> None:
    changes = JoinChanges(msgpack.packb(5))
    changes.add(b"")
    assert taken(changes) == {}


def test_after_a_restart_the_stored_counter_says_what_the_store_may_hold() -> None:
    changes = JoinChanges(msgpack.packb(5))
    changes.add(told(7, {6: "a", 7: "b"}, gone=(5,)))
    changes.add(told(7, {}, gone=(6,)))
    assert taken(changes) == {key(5): None, key(7): entry("b"), **counter(7)}
