"""What a commit writes of changes by sequence: no more than the store must hear of."""

import msgpack

from feature_store.sequenced import COUNTER_KEY, Changes, GatheredChanges, encode_changes
from stream_trainer.join_entries import EarlyClick, Origin, decode_entry


def key(sequence: int) -> bytes:
    return sequence.to_bytes(8, "big")


def entry(name: str) -> EarlyClick:
    return EarlyClick(name, "u", "item", 5, Origin(0, 7))


def told(last: int, entries: dict[int, str], gone: tuple[int, ...] = ()) -> bytes:
    named = {sequence: entry(name) for sequence, name in entries.items()}
    return encode_changes(Changes(last, named, list(gone)))


def written(stored_last: int | None, *told: bytes) -> dict[bytes, object]:
    """Return what one commit writes to a store that had been told of sequences up to the last."""
    changes = GatheredChanges(None if stored_last is None else msgpack.packb(stored_last))
    for encoded in told:
        changes.add(encoded)
    pairs = list(changes.pairs())
    assert len(dict(pairs)) == len(pairs)
    return {
        key: value if value is None or key == COUNTER_KEY else decode_entry(value) for key, value in pairs
    }


def counter(sequence: int) -> dict[bytes, bytes]:
    return {COUNTER_KEY: msgpack.packb(sequence)}


def test_later_changes_come_on_top_and_what_comes_and_goes_leaves_nothing() -> None:
    told_twice = told(2, {1: "a", 2: "b"}), told(3, {1: "changed", 3: "c"}, gone=(2,))
    assert written(None, *told_twice) == {key(1): entry("changed"), key(3): entry("c"), **counter(3)}
    assert written(None) == {}


def test_what_the_store_holds_is_deleted_there() -> None:
    told_twice = told(2, {2: "b"}, gone=(1,)), told(2, {}, gone=(2,))
    assert written(1, *told_twice) == {key(1): None, **counter(2)}


def test_without_a_new_entry_the_counter_stays() -> None:
    assert written(5, told(5, {4: "changed"}, gone=(3,))) == {key(4): entry("changed"), key(3): None}
