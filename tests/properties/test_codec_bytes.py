"""Bytes to events: round trips, and a decoder that survives any bytes."""

import json
from collections.abc import Callable
from typing import Any

import msgpack
from hypothesis import example, given
from hypothesis import strategies as st
from msgspec import convert
from msgspec.structs import asdict

from feature_store.codec import decode, decode_many, encode
from feature_store.schema import (
    MAX_ID_CHARS,
    MAX_TS_MS,
    Click,
    Deleted,
    Event,
    EventKind,
    Impression,
    ItemFeatures,
    UserFeatures,
)

NAMES = ["v", "id", "ts_ms", "user_id", "item_id", "impression_id", "items", "features", "context", "x"]


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def key_of(event: Event) -> bytes:
    return (event.user_id if isinstance(event, Impression | Click) else event.id).encode()


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_ID_CHARS)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
numbers = st.floats(allow_nan=False, allow_infinity=False)
times = st.integers(0, MAX_TS_MS)
features = st.dictionaries(ids, texts | numbers | st.lists(texts, max_size=5), max_size=5)
events: st.SearchStrategy[tuple[EventKind, Event]] = st.one_of(
    st.tuples(
        st.just(EventKind.CLICK),
        st.builds(Click, impression_id=ids, user_id=ids, item_id=ids, ts_ms=times),
    ),
    st.tuples(
        st.just(EventKind.IMPRESSION),
        st.builds(
            Impression,
            impression_id=ids,
            user_id=ids,
            ts_ms=times,
            items=st.lists(ids, min_size=1, max_size=5),
            context=st.dictionaries(ids, texts | numbers, max_size=3),
        ),
    ),
    st.tuples(st.just(EventKind.ITEM), st.builds(ItemFeatures, id=ids, ts_ms=times, features=features)),
    st.tuples(st.just(EventKind.USER), st.builds(UserFeatures, id=ids, ts_ms=times, features=features)),
)


@given(events)
def test_what_is_encoded_decodes_to_the_same_event(pair: tuple[EventKind, Event]) -> None:
    kind, event = pair
    assert decode(kind, key_of(event), encode(event), timestamp_ms=0) == event


@given(events, st.sampled_from(["", " ", "\n\t "]))
def test_json_decodes_to_the_same_event(pair: tuple[EventKind, Event], space: str) -> None:
    kind, event = pair
    value = space + json.dumps({"v": 1, **asdict(event)})
    assert decode(kind, key_of(event), value.encode(), timestamp_ms=0) == event


@given(events, st.sampled_from([as_json, msgpack.packb]))
def test_an_ignored_field_changes_nothing_else(
    pair: tuple[EventKind, Event], write: Callable[[Any], bytes]
) -> None:
    kind, event = pair
    value = write({"more": [1], "v": 1, **asdict(event)})
    assert decode(kind, key_of(event), value, timestamp_ms=0) == event


any_text = st.text(st.characters())  # lone surrogates too
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | any_text | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text | st.binary(), inner, max_size=4),
    max_leaves=20,
)
fields = st.fixed_dictionaries(
    {"v": st.just(1) | plain},
    optional={
        name: st.sampled_from(["u", "a", 5]) | plain
        for name in (
            "id",
            "ts_ms",
            "user_id",
            "item_id",
            "impression_id",
            "items",
            "features",
            "context",
            "x",
        )
    },
)
json_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=20,
)
messages = st.one_of(
    st.binary(max_size=300),
    st.binary(max_size=100).map(lambda tail: b"{" + tail),
    fields.map(lambda content: msgpack.packb(content, unicode_errors="surrogatepass")),
    st.dictionaries(st.sampled_from(NAMES), json_plain).map(as_json),
    events.flatmap(lambda pair: st.binary(max_size=3).map(lambda noise: encode(pair[1])[:-1] + noise)),
)


@given(st.sampled_from(EventKind), st.none() | st.binary(max_size=20), st.none() | messages, st.integers())
@example(EventKind.CLICK, b"u", b"\xde\xff\xff\xa1a" * 1000, 0)
@example(EventKind.CLICK, b"u", b"\xd6\xff\xff\xff\xff\xff", 0)
@example(EventKind.CLICK, b"u", b'{"v":1' + b"1" * 5000 + b"}", 0)
@example(EventKind.ITEM, b"a", msgpack.packb({"v": 1, "features": {f"f{i}": [[]] for i in range(64)}}), 0)
def test_any_bytes_give_an_event_or_a_short_reason(
    kind: EventKind, key: bytes | None, value: bytes | None, timestamp_ms: int
) -> None:
    (result,), errors = decode_many(kind, [(key, value, timestamp_ms)])
    assert (result is None) == (list(errors) == [0])
    if result is None:
        assert 0 < len(errors[0].detail.encode()) < 400
    else:
        assert key == key_of(result)
        if not isinstance(result, Deleted):
            assert convert(asdict(result), type(result)) == result
