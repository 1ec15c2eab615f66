"""What the commit writes of the join: no more than the store must hear of."""

import msgpack

from stream_trainer.join_changes import JoinChanges
from stream_trainer.join_entries import COUNTER_KEY


def key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def counter(sequence: int) -> dict[bytes, bytes | None]:
    return {COUNTER_KEY: msgpack.packb(sequence)}


def test_later_changes_come_on_top_and_what_comes_and_goes_leaves_nothing() -> None:
    changes = JoinChanges(None)
    changes.add({key(1): b"a", key(2): b"b", **counter(2)})
    changes.add({key(1): b"changed", key(2): None, key(3): b"c", **counter(3)})
    assert dict(changes.take()) == {key(1): b"changed", key(3): b"c", **counter(3)}
    assert dict(changes.take()) == {}


def test_what_the_store_holds_is_deleted_there() -> None:
    changes = JoinChanges(None)
    changes.add({key(1): b"a", **counter(1)})
    changes.take()
    changes.add({key(1): None, key(2): b"b", **counter(2)})
    changes.add({key(2): None})
    assert dict(changes.take()) == {key(1): None, **counter(2)}


def test_after_a_restart_the_stored_counter_says_what_the_store_may_hold() -> None:
    changes = JoinChanges(msgpack.packb(5))
    changes.add({key(5): None, key(6): b"a", key(7): b"b", **counter(7)})
    changes.add({key(6): None})
    assert dict(changes.take()) == {key(5): None, key(7): b"b", **counter(7)}
