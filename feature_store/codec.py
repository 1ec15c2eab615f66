"""Bytes ↔ events: the only place that decodes what comes from outside.

Pure. Owns the wire format (msgpack maps, JSON accepted, `v` = schema version) and the reason for every refusal. A message either becomes an event that keeps
all bounds of `schema.py`, or a DecodeError that says which field was wrong; nothing else can happen, whatever the bytes.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import msgpack
from pydantic import TypeAdapter, ValidationError

from feature_store.errors import DecodeError, DecodeReason
from feature_store.schema import (
    MAX_ID_CHARS,
    MAX_MESSAGE_BYTES,
    MAX_TS_MS,
    SCHEMA_VERSION,
    Click,
    Deleted,
    Event,
    EventKind,
    Impression,
    ItemFeatures,
    UserFeatures,
)

_MAX_DEPTH = 8
_ECHO_CHARS = 80
_ADAPTERS: dict[EventKind, TypeAdapter[Any]] = {
    EventKind.ITEM: TypeAdapter(list[ItemFeatures]),
    EventKind.USER: TypeAdapter(list[UserFeatures]),
    EventKind.IMPRESSION: TypeAdapter(list[Impression]),
    EventKind.CLICK: TypeAdapter(list[Click]),
}
_FIELDS = {
    EventKind.ITEM: frozenset(ItemFeatures.model_fields) | {"v"},
    EventKind.USER: frozenset(UserFeatures.model_fields) | {"v"},
    EventKind.IMPRESSION: frozenset(Impression.model_fields) | {"v"},
    EventKind.CLICK: frozenset(Click.model_fields) | {"v"},
}
_DELETABLE = (EventKind.ITEM, EventKind.USER)
_BOUNDS = ("too_long", "too_short", "greater_than", "less_than")

Message = tuple[bytes | None, bytes | None, int]


def encode(event: Event) -> bytes:
    """Return an event's bytes: a msgpack map with the schema version. A deletion is an empty value, not an event's bytes.

    >>> encode(Click(impression_id="i", user_id="u", item_id="a", ts_ms=1))[:4]
    b'\\x85\\xa1v\\x01'
    """
    if isinstance(event, Deleted):
        raise ValueError("a deletion has no bytes: send an empty value under its key")
    return msgpack.packb({"v": SCHEMA_VERSION, **event.model_dump()})


def decode(kind: EventKind, key: bytes | None, value: bytes | None, timestamp_ms: int) -> Event:
    """Return the event that a message of this kind of topic holds; `timestamp_ms` is the record's, for deletions.

    Raises:
        DecodeError: the message is bad; says the reason, the field, and what was expected.
    """
    result = decode_many(kind, [(key, value, timestamp_ms)])[0]
    if isinstance(result, DecodeError):
        raise result
    return result


def decode_many(kind: EventKind, messages: Sequence[Message]) -> list[Event | DecodeError]:
    """Return for each (key, value, record time) its event, or why it has none. Validates the list at once: three times as fast."""
    results: list[Event | DecodeError | None] = []
    fields: list[dict[str, Any]] = []
    for key, value, timestamp_ms in messages:
        try:
            if not value:
                results.append(_deleted(kind, key, timestamp_ms))
            else:
                fields.append(_parse(kind, value))
                results.append(None)
        except DecodeError as error:
            results.append(error)
    valid = iter(_validate(kind, fields))
    return [
        _check_key(key, next(valid)) if result is None else result
        for (key, _, _), result in zip(messages, results, strict=True)
    ]


def _deleted(kind: EventKind, key: bytes | None, timestamp_ms: int) -> Deleted:
    if kind not in _DELETABLE:
        _refuse(DecodeReason.MALFORMED, f"a message on '{kind.value}' is empty; only items and users can be deleted")
    if not key:
        _refuse(DecodeReason.MALFORMED, "an empty value deletes its key, but there is no key")
    try:
        name = key.decode()
    except UnicodeDecodeError:
        _refuse(DecodeReason.MALFORMED, "the key is not UTF-8")
    if len(name) > MAX_ID_CHARS:
        _refuse(DecodeReason.OUT_OF_BOUNDS, f"the key has {len(name)} characters; at most {MAX_ID_CHARS}")
    return Deleted(kind=kind, id=name, ts_ms=min(max(timestamp_ms, 0), MAX_TS_MS))


def _parse(kind: EventKind, value: bytes) -> dict[str, Any]:
    """Return the map in the bytes, its version checked, its values not yet."""
    if len(value) > MAX_MESSAGE_BYTES:
        _refuse(DecodeReason.OVERSIZED, f"{len(value)} bytes; at most {MAX_MESSAGE_BYTES}")
    is_json = value[:64].lstrip()[:1] == b"{"
    try:
        content = _load_json(value) if is_json else msgpack.unpackb(value)
    except DecodeError:
        raise
    except (RecursionError, msgpack.StackError):
        _refuse(DecodeReason.TOO_DEEP, f"nested deeper than {_MAX_DEPTH} levels")
    except (ValueError, msgpack.UnpackException) as error:
        _refuse(DecodeReason.MALFORMED, f"not {'JSON' if is_json else 'msgpack'}: {_short(error)}")
    if not isinstance(content, dict):
        _refuse(DecodeReason.WRONG_TYPE, f"a map is needed, not {type(content).__name__}")
    version = content.get("v")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        _refuse(
            DecodeReason.UNKNOWN_VERSION, f"v is {_short(repr(version))}; this program reads v = {SCHEMA_VERSION}"
        )
    if not content.keys() <= _FIELDS[kind] and _is_deep(content):
        _refuse(DecodeReason.TOO_DEEP, f"nested deeper than {_MAX_DEPTH} levels")
    return content


def _load_json(value: bytes) -> Any:
    return json.loads(value.decode(), parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    _refuse(DecodeReason.NOT_FINITE, f"a number is {name}")


def _is_deep(content: Any) -> bool:
    level = [content]
    for _ in range(_MAX_DEPTH):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True


def _validate(kind: EventKind, fields: list[dict[str, Any]]) -> list[Event | DecodeError]:
    adapter = _ADAPTERS[kind]
    try:
        return list(adapter.validate_python(fields))
    except ValidationError:
        return [_validate_one(adapter, one) for one in fields]


def _validate_one(adapter: TypeAdapter[Any], fields: dict[str, Any]) -> Event | DecodeError:
    try:
        event: Event = adapter.validate_python([fields])[0]
    except ValidationError as error:
        return DecodeError(*_explain(error, fields))
    return event


def _explain(error: ValidationError, fields: dict[str, Any]) -> tuple[DecodeReason, str]:
    details = error.errors(include_url=False, include_context=False)
    first = min(details, key=lambda detail: _RANK[_reason(detail["type"])])
    reason = DecodeReason.TOO_DEEP if _is_deep(fields) else _reason(first["type"])
    place = ".".join(_short(part, 40) for part in first["loc"][1:3])
    return reason, f"{place}: {first['msg']}, got {_short(repr(first['input']))}"


_RANK = {
    DecodeReason.NOT_FINITE: 0,
    DecodeReason.OUT_OF_BOUNDS: 1,
    DecodeReason.MALFORMED: 2,
    DecodeReason.WRONG_TYPE: 3,
}


def _reason(error_type: str) -> DecodeReason:
    if error_type == "finite_number":
        return DecodeReason.NOT_FINITE
    if any(bound in error_type for bound in _BOUNDS):
        return DecodeReason.OUT_OF_BOUNDS
    if error_type in ("missing", "string_unicode"):
        return DecodeReason.MALFORMED
    return DecodeReason.WRONG_TYPE


def _check_key(key: bytes | None, result: Event | DecodeError) -> Event | DecodeError:
    """Refuse a record that stands under another key than its ID: joins and compaction would go wrong in silence."""
    if isinstance(result, DecodeError):
        return result
    owner = result.user_id if isinstance(result, Impression | Click) else result.id
    if key == owner.encode():
        return result
    shown = "none" if key is None else _short(repr(key))
    return DecodeError(DecodeReason.KEY_MISMATCH, f"the record's key is {shown}, but its ID is '{_short(owner)}'")


def _refuse(reason: DecodeReason, detail: str) -> NoReturn:
    raise DecodeError(reason, detail)


def _short(value: object, num_chars: int = _ECHO_CHARS) -> str:
    text = str(value)
    return text if len(text) <= num_chars else text[: num_chars - 1] + "…"
