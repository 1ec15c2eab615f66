"""Bytes to events: what is accepted, and a refusal for every reason. Any bytes at all: `properties`."""

import gc
import json
import math
import tracemalloc
import weakref
from collections.abc import Callable
from typing import Any

import msgpack
import pytest

from feature_store.codec import decode, decode_many, encode
from feature_store.errors import DecodeError, DecodeReason
from feature_store.refusals import MAX_DEPTH
from feature_store.schema import (
    MAX_FEATURE_VALUES,
    MAX_FEATURES,
    MAX_ID_CHARS,
    MAX_MESSAGE_BYTES,
    MAX_SLATE_ITEMS,
    MAX_TEXT_CHARS,
    MAX_TS_MS,
    Click,
    Deleted,
    EventKind,
    Impression,
    ItemFeatures,
)

CLICK = {"v": 1, "impression_id": "i", "user_id": "u", "item_id": "a", "ts_ms": 5}
IMPRESSION = {"v": 1, "impression_id": "i", "user_id": "u", "ts_ms": 5, "items": ["a", "b"]}
ITEM = {"v": 1, "id": "a", "ts_ms": 5}
Write = Callable[[Any], bytes]


def as_json(content: Any) -> bytes:
    return json.dumps(content).encode()


def as_msgpack(content: Any) -> bytes:
    packed: bytes = msgpack.packb(content)
    return packed


def refusal(kind: EventKind, key: bytes | None, value: bytes | None) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(kind, key, value, 0)
    return caught.value


def test_encoded_is_a_map_with_the_version() -> None:
    event = Click(impression_id="i", user_id="u", item_id="a", ts_ms=5)
    assert msgpack.unpackb(encode(event)) == CLICK


def test_encode_refuses_a_deletion_and_what_no_reader_accepts() -> None:
    with pytest.raises(ValueError, match="empty value"):
        encode(Deleted(kind=EventKind.ITEM, id="a", ts_ms=5))
    slate = Impression(impression_id="i", user_id="u", ts_ms=5, items=["𝔸" * 128] * 200)
    with pytest.raises(ValueError, match=f"Impression takes .* at most {MAX_MESSAGE_BYTES}"):
        encode(slate)


def test_whole_numbers_are_numbers_and_defaults_fill_in() -> None:
    value = as_json({**ITEM, "features": {"price": 3, "tags": ["x", "y"], "brand": "b"}})
    event = decode(EventKind.ITEM, b"a", value, 0)
    assert event == ItemFeatures(id="a", ts_ms=5, features={"price": 3.0, "tags": ["x", "y"], "brand": "b"})
    assert decode(EventKind.ITEM, b"a", as_json(ITEM), 0) == ItemFeatures(id="a", ts_ms=5)


@pytest.mark.parametrize("write", [as_json, as_msgpack])
def test_unknown_fields_are_ignored(write: Write) -> None:
    value = write({**CLICK, "referrer": {"page": [1, 2.5, None, True]}})
    assert decode(EventKind.CLICK, b"u", value, 0) == decode(EventKind.CLICK, b"u", write(CLICK), 0)


def test_of_a_repeated_field_the_last_counts() -> None:
    text = b'{"v": 9, "v": 1, "id": "x", "id": "a", "ts_ms": 5}'
    assert decode(EventKind.ITEM, b"a", text, 0) == ItemFeatures(id="a", ts_ms=5)


@pytest.mark.parametrize("kind", [EventKind.ITEM, EventKind.USER])
@pytest.mark.parametrize("empty", [None, b""])
def test_an_empty_value_deletes(kind: EventKind, empty: bytes | None) -> None:
    assert decode(kind, "é".encode(), empty, 7) == Deleted(kind=kind, id="é", ts_ms=7)


def test_a_record_without_a_time_still_deletes() -> None:
    assert decode(EventKind.ITEM, b"a", None, -1) == Deleted(kind=EventKind.ITEM, id="a", ts_ms=0)
    assert decode(EventKind.ITEM, b"a", None, 2**62).ts_ms == MAX_TS_MS


@pytest.mark.parametrize(
    ("kind", "key", "value", "reason", "says"),
    [
        (EventKind.CLICK, b"u", None, DecodeReason.MALFORMED, "clicks cannot be deleted"),
        (EventKind.IMPRESSION, b"u", b"", DecodeReason.MALFORMED, "impressions cannot be deleted"),
        (EventKind.ITEM, None, None, DecodeReason.MALFORMED, "no key"),
        (EventKind.ITEM, b"", b"", DecodeReason.MALFORMED, "no key"),
        (EventKind.ITEM, b"\xff", b"", DecodeReason.MALFORMED, "not UTF-8"),
        (EventKind.ITEM, b"x" * (MAX_ID_CHARS + 1), b"", DecodeReason.OUT_OF_BOUNDS, "'id'"),
        (EventKind.CLICK, b"u", b"\xff", DecodeReason.WRONG_TYPE, "not a map"),
        (EventKind.CLICK, b"u", b"\xc1", DecodeReason.MALFORMED, "not msgpack"),
        (EventKind.CLICK, b"u", as_msgpack(CLICK)[:-1], DecodeReason.MALFORMED, "not msgpack"),
        (EventKind.CLICK, b"u", as_msgpack(CLICK) + b"\xc0", DecodeReason.MALFORMED, "extra data"),
        (EventKind.CLICK, b"u", as_json(CLICK)[:-1], DecodeReason.MALFORMED, "JSON"),
        (EventKind.CLICK, b"u", as_json(CLICK) + b"x", DecodeReason.MALFORMED, "trailing"),
        (EventKind.CLICK, b"u", b'{"v": 1, "\xff": 1}', DecodeReason.MALFORMED, "JSON"),
        (EventKind.CLICK, b"u", b"\x82\xa1v\x01\xa7user_id\xa1\xff", DecodeReason.MALFORMED, "utf-8"),
        (EventKind.CLICK, b"u", as_json({**CLICK, "item_id": "\ud800"}), DecodeReason.MALFORMED, "JSON"),
        (EventKind.CLICK, b"u", as_json({**CLICK, "\udfff": 0}), DecodeReason.MALFORMED, "JSON"),
        (EventKind.CLICK, b"u", b"\x81\x01\x01", DecodeReason.MALFORMED, "map key"),
        (EventKind.CLICK, b"u", b"\xdc\xff\0" * 1000 + b"\xc0" * 62_000, DecodeReason.MALFORMED, "(4096)"),
        (EventKind.ITEM, b"a", as_json({"v": 1, "id": "a"}), DecodeReason.MALFORMED, "'ts_ms'"),
        (EventKind.CLICK, b"u", b"[1]", DecodeReason.WRONG_TYPE, "a list, not a map"),
        (EventKind.CLICK, b"u", b"{" + b" " * MAX_MESSAGE_BYTES, DecodeReason.OVERSIZED, "65537 bytes"),
        (EventKind.CLICK, b"u", b'{"a":' * 10_000, DecodeReason.TOO_DEEP, "levels deep"),
        (EventKind.CLICK, b"u", b"\x91" * 60_000, DecodeReason.TOO_DEEP, "levels deep"),
        (EventKind.CLICK, b"u", b"\x81\xa1a" * 20_000, DecodeReason.TOO_DEEP, "levels deep"),
        (EventKind.CLICK, None, as_json(CLICK), DecodeReason.KEY_MISMATCH, "no key, but user_id is 'u'"),
        (EventKind.CLICK, b"", as_json(CLICK), DecodeReason.KEY_MISMATCH, "b''"),
        (EventKind.IMPRESSION, b"i", as_json(IMPRESSION), DecodeReason.KEY_MISMATCH, "b'i'"),
        (EventKind.ITEM, b"b", as_json(ITEM), DecodeReason.KEY_MISMATCH, "but id is 'a'"),
        (EventKind.USER, b"\xff", as_json(ITEM), DecodeReason.KEY_MISMATCH, "users must be keyed"),
    ],
)
def test_bytes_that_are_refused(
    kind: EventKind, key: bytes | None, value: bytes | None, reason: DecodeReason, says: str
) -> None:
    error = refusal(kind, key, value)
    assert (error.reason, says in error.detail) == (reason, True), error


def nested(depth: int) -> Any:
    return 1 if depth == 0 else [nested(depth - 1)]


UNVERSIONED = {name: content for name, content in CLICK.items() if name != "v"}


@pytest.mark.parametrize("write", [as_json, as_msgpack])
def test_the_version_is_needed_wherever_it_stands(write: Write) -> None:
    error = refusal(EventKind.CLICK, b"u", write(UNVERSIONED))
    assert (error.reason, "'v' is missing" in error.detail) == (DecodeReason.UNKNOWN_VERSION, True), error
    error = refusal(EventKind.CLICK, b"u", write({"v": 0, "never": ""}))
    assert (error.reason, "'v' is 0" in error.detail) == (DecodeReason.UNKNOWN_VERSION, True), error
    last = write({**UNVERSIONED, "v": 1})
    assert decode(EventKind.CLICK, b"u", last, 0) == decode(EventKind.CLICK, b"u", write(CLICK), 0)


@pytest.mark.parametrize("header", [b"\xdd", b"\xdf", b"\xdb", b"\xc6", b"\xdd\xff\xff\xff\xff\xdd"])
@pytest.mark.parametrize("field", ["items", "context", "more"])
def test_a_header_may_claim_any_length(header: bytes, field: str) -> None:
    start = as_msgpack({name: content for name, content in IMPRESSION.items() if name != "items"})[1:]
    value = b"\x85" + start + as_msgpack(field) + header + b"\xff" * 4 + b"\xa1a" * 1000
    tracemalloc.start()
    error = refusal(EventKind.IMPRESSION, b"u", value)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (error.reason, peak_bytes < 2**20) == (DecodeReason.MALFORMED, True), (error, peak_bytes)


REFUSED_FIELDS: list[tuple[EventKind, dict[str, Any], DecodeReason, str]] = [
    *(
        (EventKind.CLICK, {"v": v}, DecodeReason.UNKNOWN_VERSION, "'v' is")
        for v in (0, 2, "1", True, 1.0, None)
    ),
    *(
        (EventKind.CLICK, {"ts_ms": bad}, DecodeReason.WRONG_TYPE, "'ts_ms'")
        for bad in ("5", 5.0, True, None, [5])
    ),
    *(
        (EventKind.CLICK, {"item_id": bad}, DecodeReason.WRONG_TYPE, "'item_id'")
        for bad in (5, None, ["a"], {})
    ),
    (EventKind.CLICK, {"ts_ms": -1}, DecodeReason.OUT_OF_BOUNDS, "got -1"),
    (EventKind.CLICK, {"ts_ms": MAX_TS_MS + 1}, DecodeReason.OUT_OF_BOUNDS, "'ts_ms'"),
    (EventKind.CLICK, {"item_id": ""}, DecodeReason.OUT_OF_BOUNDS, "length >= 1, got ''"),
    (EventKind.CLICK, {"item_id": "x" * (MAX_ID_CHARS + 1)}, DecodeReason.OUT_OF_BOUNDS, "length <= 128"),
    (EventKind.CLICK, {"more": nested(MAX_DEPTH + 1)}, DecodeReason.TOO_DEEP, "'more'"),
    (EventKind.IMPRESSION, {"items": []}, DecodeReason.OUT_OF_BOUNDS, "'items'"),
    (EventKind.IMPRESSION, {"items": ["a"] * (MAX_SLATE_ITEMS + 1)}, DecodeReason.OUT_OF_BOUNDS, "'items'"),
    (EventKind.IMPRESSION, {"items": "ab"}, DecodeReason.WRONG_TYPE, "'items'"),
    (EventKind.IMPRESSION, {"items": ["a", 1]}, DecodeReason.WRONG_TYPE, "'items.1'"),
    (EventKind.IMPRESSION, {"items": ["a", ""]}, DecodeReason.OUT_OF_BOUNDS, "'items.1'"),
    (EventKind.IMPRESSION, {"context": {"x": ["a"]}}, DecodeReason.WRONG_TYPE, "'context.x'"),
    (
        EventKind.IMPRESSION,
        {"context": {str(i): 0 for i in range(99)}},
        DecodeReason.OUT_OF_BOUNDS,
        "99 entries",
    ),
    (EventKind.ITEM, {"features": {"x": True}}, DecodeReason.WRONG_TYPE, "'features.x'"),
    (EventKind.ITEM, {"features": {"x": {"y": 1}}}, DecodeReason.WRONG_TYPE, "a map"),
    (
        EventKind.ITEM,
        {"features": {"x": ["a", 1]}},
        DecodeReason.WRONG_TYPE,
        "'features.x': expected text, got 1",
    ),
    (EventKind.ITEM, {"features": [1]}, DecodeReason.WRONG_TYPE, "'features'"),
    (EventKind.ITEM, {"features": {"x": math.nan}}, DecodeReason.NOT_FINITE, "'features.x'"),
    (EventKind.ITEM, {"features": {"x": -math.inf}}, DecodeReason.NOT_FINITE, "'features.x'"),
    (EventKind.ITEM, {"features": {"": 1}}, DecodeReason.OUT_OF_BOUNDS, "'features.'"),
    (
        EventKind.ITEM,
        {"features": {"x": "y" * (MAX_TEXT_CHARS + 1)}},
        DecodeReason.OUT_OF_BOUNDS,
        "'features.x'",
    ),
    (
        EventKind.ITEM,
        {"features": {"x": ["y"] * (MAX_FEATURE_VALUES + 1)}},
        DecodeReason.OUT_OF_BOUNDS,
        "'features.x'",
    ),
    (
        EventKind.ITEM,
        {"features": {str(i): 0 for i in range(MAX_FEATURES + 1)}},
        DecodeReason.OUT_OF_BOUNDS,
        "length <= 64, got 65 entries",
    ),
    (EventKind.ITEM, {"features": {"x": nested(MAX_DEPTH)}}, DecodeReason.TOO_DEEP, "'features'"),
]
BASE = {
    EventKind.CLICK: (b"u", CLICK),
    EventKind.IMPRESSION: (b"u", IMPRESSION),
    EventKind.ITEM: (b"a", ITEM),
}


@pytest.mark.parametrize("write", [as_json, as_msgpack])
@pytest.mark.parametrize(("kind", "change", "reason", "says"), REFUSED_FIELDS)
def test_fields_that_are_refused_in_both_formats(
    write: Write, kind: EventKind, change: dict[str, Any], reason: DecodeReason, says: str
) -> None:
    key, base = BASE[kind]
    error = refusal(kind, key, write({**base, **change}))
    assert (error.reason, says in error.detail) == (reason, True), error
    assert isinstance(decode(kind, key, write(base), 0), Impression | Click | ItemFeatures)


def test_numbers_too_large_for_a_float_are_refused() -> None:
    huge = b'{"v": 1, "id": "a", "ts_ms": 5, "features": {"x": %s}}'
    assert refusal(EventKind.ITEM, b"a", huge % b"1e999").reason == DecodeReason.NOT_FINITE
    assert refusal(EventKind.ITEM, b"a", huge % (b"9" * 400)).reason == DecodeReason.WRONG_TYPE
    assert refusal(EventKind.ITEM, b"a", huge % b"NaN").reason == DecodeReason.NOT_FINITE


@pytest.mark.parametrize(
    "foreign", [b"bytes", msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 2), {b"k": 1}, [{b"k": 1}]]
)
@pytest.mark.parametrize("where", ["ignored", "features", "inside"])
def test_what_json_could_not_say_is_refused_in_msgpack_too(foreign: Any, where: str) -> None:
    change = {"features": {"x": foreign}} if where == "inside" else {where: foreign}
    assert refusal(EventKind.ITEM, b"a", as_msgpack({**ITEM, **change})).reason == DecodeReason.WRONG_TYPE


def test_a_field_name_of_bytes_is_refused() -> None:
    assert refusal(EventKind.ITEM, b"a", as_msgpack({**ITEM, b"k": 1})).reason == DecodeReason.WRONG_TYPE


def test_every_reason_has_an_example() -> None:
    """But for that which no message has by itself: it is dated long after its record was written."""
    marks = test_bytes_that_are_refused.pytestmark[0].args[1]
    given = {case[3] for case in marks} | {case[2] for case in REFUSED_FIELDS}
    assert given == set(DecodeReason) - {DecodeReason.AHEAD_OF_TIME}


@pytest.mark.parametrize("value", [b"\xc1", b"{}", as_json({**CLICK, "user_id": "x"}), b""])
def test_an_error_holds_nothing_of_what_was_read_with_it(value: bytes) -> None:
    """A dead letter waits for its turn, and only the garbage collector finds circles."""
    gc.disable()
    try:
        _, errors = decode_many(EventKind.CLICK, [(b"u", value, 0)])
        error = weakref.ref(errors[0])
        assert errors[0].__traceback__ is None
        del errors
        assert error() is None
    finally:
        gc.enable()


def test_one_bad_message_spoils_no_other() -> None:
    clicks = [Click(impression_id=str(i), user_id="u", item_id="a", ts_ms=i) for i in range(5)]
    good = [(b"u", encode(click), 0) for click in clicks]
    bad = [(b"u", as_json({**CLICK, "ts_ms": "5"}), 0), (b"x", as_json(CLICK), 0), (b"u", b"\xc1", 0)]
    events, errors = decode_many(
        EventKind.CLICK, [good[0], bad[0], *good[1:3], bad[1], good[3], bad[2], good[4]]
    )
    assert events == [clicks[0], None, *clicks[1:3], None, clicks[3], None, clicks[4]]
    assert {place: error.reason for place, error in errors.items()} == {
        1: DecodeReason.WRONG_TYPE,
        4: DecodeReason.KEY_MISMATCH,
        6: DecodeReason.MALFORMED,
    }
    assert decode_many(EventKind.CLICK, []) == ([], {})
