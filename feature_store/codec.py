"""Bytes ↔ events: the only place that decodes what comes from outside. msgpack written, msgpack or JSON read.

Pure. Owns every decision about what a message may be. Never reads a log, never counts, and lets nothing out
but an event that keeps all bounds of `schema.py`, or a `DecodeError`: whatever the bytes are, the caller can
send the message to the dead letters and go on.
"""

import math
from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import msgpack
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from feature_store.errors import DecodeError, DecodeReason
from feature_store.schema import (
    MAX_FEATURES,
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

MAX_DEPTH: Final = 8
"""Lists and maps inside each other, fields that we ignore included. Our own fields need two."""

_MAX_ARRAY_ITEMS: Final = 4096
"""msgpack allocates what a list's header claims before it reads the list: a thousand nested headers must stay
cheap.
"""
_MAX_ECHO_CHARS: Final = 40

_Fields: TypeAlias = dict[str, Any]
_MODELS: Final[Mapping[EventKind, type[Impression | Click | ItemFeatures | UserFeatures]]] = MappingProxyType(
    {
        EventKind.ITEM: ItemFeatures,
        EventKind.USER: UserFeatures,
        EventKind.IMPRESSION: Impression,
        EventKind.CLICK: Click,
    }
)
_LISTS: Final = {kind: TypeAdapter[list[Event]](list[model]) for kind, model in _MODELS.items()}  # type: ignore[valid-type]
_KNOWN_KEYS: Final = {kind: frozenset({"v", *model.model_fields}) for kind, model in _MODELS.items()}
_KEY_FIELD: Final = {
    EventKind.ITEM: "id",
    EventKind.USER: "id",
    EventKind.IMPRESSION: "user_id",
    EventKind.CLICK: "user_id",
}
_MAP_FIELD: Final = {
    EventKind.ITEM: "features",
    EventKind.USER: "features",
    EventKind.IMPRESSION: "context",
    EventKind.CLICK: None,
}
_OUT_OF_BOUNDS: Final = frozenset(
    {"string_too_short", "string_too_long", "too_short", "too_long", "less_than_equal", "greater_than_equal"}
)


def encode(event: Event) -> bytes:
    """Return the value to write: a msgpack map with the schema version.

    Raises:
        ValueError: the event is a deletion (send an empty value under its key), or larger than readers accept
            (many IDs, all long and not ASCII).

    >>> click = Click(impression_id="i1", user_id="u1", item_id="a", ts_ms=7)
    >>> decode(EventKind.CLICK, b"u1", encode(click), timestamp_ms=0) == click
    True
    """
    if isinstance(event, Deleted):
        raise ValueError("a deletion has no bytes: send an empty value under its key")
    value: bytes = msgpack.packb({"v": SCHEMA_VERSION, **event.__dict__})
    if len(value) > MAX_MESSAGE_BYTES:
        name = type(event).__name__
        raise ValueError(f"the {name} takes {len(value)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    return value


def decode(kind: EventKind, key: bytes | None, value: bytes | None, timestamp_ms: int) -> Event:
    """Return the event of one record. `timestamp_ms` is the record's own: the time of a deletion.

    Raises:
        DecodeError: the message is not acceptable; says which field and why.
    """
    (event,) = decode_many(kind, [(key, value, timestamp_ms)])
    if isinstance(event, DecodeError):
        raise event
    return event


def decode_many(
    kind: EventKind, records: Sequence[tuple[bytes | None, bytes | None, int]]
) -> list[Event | DecodeError]:
    """Return the event of each (key, value, timestamp_ms), or why there is none, in the same order.

    Validates all at once, which is several times cheaper; a bad message among them costs that, no more.

    >>> decode_many(EventKind.ITEM, [(b"a", b"", 7), (b"a", b'{"v": 1, "id": "a"}', 8)])  # doctest: +ELLIPSIS
    [Deleted(kind=..., id='a', ts_ms=7), DecodeError("malformed: field 'ts_ms': field required")]
    """
    parsed = [_parse(kind, *record) for record in records]
    validated = iter(_validate(kind, [fields for fields in parsed if type(fields) is dict]))
    owner_of = attrgetter(_KEY_FIELD[kind])
    results: list[Event | DecodeError] = []
    for (key, _, _), fields in zip(records, parsed, strict=True):
        event = next(validated) if isinstance(fields, dict) else fields
        if not isinstance(event, DecodeError) and (key is None or key != owner_of(event).encode()):
            event = _key_mismatch(kind, key, owner_of(event))
        results.append(event)
    return results


def _parse(
    kind: EventKind, key: bytes | None, value: bytes | None, timestamp_ms: int
) -> _Fields | Deleted | DecodeError:
    """Return the fields of one message, not yet validated; deletions and what does not parse are final."""
    try:
        return _parse_fields(kind, value) if value else _deletion(kind, key, timestamp_ms)
    except DecodeError as error:
        return error


def _parse_fields(kind: EventKind, value: bytes) -> _Fields:
    if len(value) > MAX_MESSAGE_BYTES:
        detail = f"the value has {len(value)} bytes; at most {MAX_MESSAGE_BYTES} are accepted"
        raise DecodeError(DecodeReason.OVERSIZED, detail)
    # JSON text starts below 0x80; a msgpack map or list starts at 0x80 or above.
    fields = _parse_json(value) if value[0] < 0x80 else _parse_msgpack(value)
    if not isinstance(fields, dict):
        detail = f"the value is {_shown(fields)}, not a map of fields"
        raise DecodeError(DecodeReason.WRONG_TYPE, detail)
    version = fields.get("v")
    if type(version) is not int or version != SCHEMA_VERSION:
        found = f"is {_shown(version)}" if "v" in fields else "is missing"
        detail = f"field 'v' {found}; this program reads version {SCHEMA_VERSION}"
        raise DecodeError(DecodeReason.UNKNOWN_VERSION, detail)
    known = _KNOWN_KEYS[kind]
    if not fields.keys() <= known:
        for name, content in fields.items():
            if name not in known:
                _check_plain(name, content)
    entries = fields.get(_MAP_FIELD[kind])
    if type(entries) is dict and len(entries) > MAX_FEATURES:  # validation would explain each, then count
        detail = f"field '{_MAP_FIELD[kind]}' has {len(entries)} entries; at most {MAX_FEATURES} are accepted"
        raise DecodeError(DecodeReason.OUT_OF_BOUNDS, detail)
    return fields


def _parse_msgpack(value: bytes) -> object:
    try:
        return msgpack.unpackb(value, max_array_len=_MAX_ARRAY_ITEMS)
    except msgpack.StackError:
        raise _too_deep("the value") from None
    except ValueError as error:  # all of msgpack's own, and UnicodeDecodeError
        raise DecodeError(DecodeReason.MALFORMED, f"not msgpack: {_reason(error)}") from None


def _parse_json(value: bytes) -> object:
    try:
        return from_json(value)  # takes NaN and Infinity: validation refuses them and names the field
    except ValueError as error:
        if "recursion limit" in str(error):
            raise _too_deep("the value") from None
        detail = f"neither a msgpack map nor JSON: {_reason(error)}"
        raise DecodeError(DecodeReason.MALFORMED, detail) from None


def _deletion(kind: EventKind, key: bytes | None, timestamp_ms: int) -> Deleted:
    """A record without a time of its own (Kafka says -1) still deletes: its time is then 0."""
    if kind not in (EventKind.ITEM, EventKind.USER):
        raise DecodeError(DecodeReason.MALFORMED, f"the value is empty; {kind.value} cannot be deleted")
    if not key:
        detail = "the value is empty and there is no key to say what to delete"
        raise DecodeError(DecodeReason.MALFORMED, detail)
    try:
        return Deleted(kind=kind, id=key.decode(), ts_ms=min(max(timestamp_ms, 0), MAX_TS_MS))
    except UnicodeDecodeError as error:
        raise DecodeError(DecodeReason.MALFORMED, f"the key is not UTF-8: {_reason(error)}") from None
    except ValidationError as error:
        raise _explain(error) from None


def _validate(kind: EventKind, messages: list[_Fields]) -> Sequence[Event | DecodeError]:
    try:
        return _LISTS[kind].validate_python(messages)
    except ValidationError:
        return [_validate_one(kind, fields) for fields in messages]


def _validate_one(kind: EventKind, fields: _Fields) -> Event | DecodeError:
    try:
        return _MODELS[kind].model_validate(fields)
    except ValidationError as error:
        try:
            for name, content in fields.items():
                _check_plain(name, content)
        except DecodeError as plainer:
            return plainer
        return _explain(error)


def _check_plain(field: object, content: object) -> None:
    """Refuse what is nested too deeply, and what JSON could not say: bytes, msgpack extensions, keys that are
    not text.

    Needed for fields that we ignore, which validation does not look into; of a refused message it is the
    plainer reason.
    """
    if type(field) is not str:
        raise DecodeError(DecodeReason.WRONG_TYPE, f"a field's name is {_shown(field)}, not text")
    waiting = [(content, 1)]
    while waiting:
        node, depth = waiting.pop()
        if isinstance(node, str | int | float | None):
            continue
        if depth > MAX_DEPTH:
            raise _too_deep(f"field '{_cut(field)}'")
        if type(node) is list:
            waiting += [(child, depth + 1) for child in node]
        elif type(node) is dict:
            if not all(type(name) is str for name in node):
                raise DecodeError(DecodeReason.WRONG_TYPE, f"field '{_cut(field)}': a map key is not text")
            waiting += [(child, depth + 1) for child in node.values()]
        else:
            detail = f"field '{_cut(field)}' holds {_shown(node)}; text, numbers, lists and maps are accepted"
            raise DecodeError(DecodeReason.WRONG_TYPE, detail)


def _explain(invalid: ValidationError) -> DecodeError:
    """Name the first bad field and what was wrong; of a union's errors, the one about bounds says most."""
    errors = invalid.errors(include_url=False, include_context=False)
    place = errors[0]["loc"][:2]
    reasons: dict[DecodeReason, dict[str, object]] = {}
    for error in errors:
        if error["loc"][:2] == place:
            message = error["msg"].removeprefix("Input should be ")
            reasons.setdefault(_reason_of(error["type"], error["input"]), {})[message] = error["input"]
    reason = next(r for r in (*_BY_PRECISION, *reasons) if r in reasons)
    messages = reasons[reason]
    said = " or ".join(messages)
    got = "" if "Field required" in messages else f", got {_shown(next(iter(messages.values())))}"
    name = ".".join(_cut(str(part)) for part in place)
    return DecodeError(reason, f"field '{name}': {said[0].lower()}{said[1:]}{got}")


_BY_PRECISION: Final = (DecodeReason.NOT_FINITE, DecodeReason.OUT_OF_BOUNDS)


def _reason_of(error_type: str, given: object) -> DecodeReason:
    if isinstance(given, float) and not math.isfinite(given):
        return DecodeReason.NOT_FINITE
    if error_type in _OUT_OF_BOUNDS:
        return DecodeReason.OUT_OF_BOUNDS
    return DecodeReason.MALFORMED if error_type in ("missing", "string_unicode") else DecodeReason.WRONG_TYPE


def _key_mismatch(kind: EventKind, key: bytes | None, owner: str) -> DecodeError:
    found = "there is no key" if key is None else f"the key is {_shown(key)}"
    detail = f"{found}, but {_KEY_FIELD[kind]} is {_shown(owner)}: {kind.value} must be keyed by it"
    return DecodeError(DecodeReason.KEY_MISMATCH, detail)


def _too_deep(what: str) -> DecodeError:
    return DecodeError(DecodeReason.TOO_DEEP, f"{what} is nested more than {MAX_DEPTH} levels deep")


def _reason(error: ValueError) -> str:
    return str(error)[:100] or type(error).__name__


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_ECHO_CHARS else text[:_MAX_ECHO_CHARS] + "…"


def _shown(given: object) -> str:
    """Describe a value in few characters, whatever its size: repr of deep nesting would itself overflow."""
    if isinstance(given, str | bytes):
        return repr(given[:_MAX_ECHO_CHARS]) + ("…" if len(given) > _MAX_ECHO_CHARS else "")
    if given is None or isinstance(given, bool):
        return "null" if given is None else str(given).lower()
    if isinstance(given, float):
        return repr(given)
    if isinstance(given, int):
        return str(given) if given.bit_length() <= 64 else "an integer of more than 64 bits"
    name = type(given).__name__
    return {"list": "a list", "dict": "a map"}.get(name, f"a value of type {name}")
