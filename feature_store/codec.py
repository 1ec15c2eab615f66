"""Bytes ↔ events: the only place that decodes what comes from outside. msgpack written, msgpack or JSON read.

Pure. Owns every decision about what a message may be. Never reads a log, never counts, and lets nothing out
but an event that keeps all bounds of `schema.py`, or a `DecodeError`: whatever the bytes are, the caller can
send the message to the dead letters and go on.
"""

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Final

import msgpack
import msgspec
from msgspec import Meta, Struct
from pydantic_core import from_json

from feature_store.errors import DecodeError, DecodeReason
from feature_store.refusals import check_plain, explain, key_mismatch, reason, shown, too_deep
from feature_store.schema import (
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

_MAX_ARRAY_ITEMS: Final = 4096
"""msgpack allocates what a list's header claims before it reads the list: a thousand nested headers must stay
cheap. (msgspec holds the header to the bound of our field first, and skips what is not ours.)
"""
_REFUSALS: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
_FIRST_OF_MSGPACK: Final = 0x80  # its maps and lists start here or above, JSON text below


class _OtherVersion(Struct, forbid_unknown_fields=True, tag_field="v", tag=0):
    """Never read: no text keeps its bounds. msgspec insists on `v` only where it tells two versions apart."""

    never: Annotated[str, Meta(min_length=1, max_length=0)]


class _Reader:
    """What is known of one kind. Its two decoders let pass what is good beyond doubt, in one step."""

    def __init__(
        self, kind: EventKind, model: type[Impression | Click | ItemFeatures | UserFeatures], key_field: str
    ) -> None:
        self.kind, self.model, self.key_field = kind, model, key_field
        self.owner_of: Callable[[Event], str] = attrgetter(key_field)
        self.from_msgpack: Callable[[bytes], Event] = msgspec.msgpack.Decoder(model | _OtherVersion).decode
        self.from_json: Callable[[bytes], Event] = msgspec.json.Decoder(model | _OtherVersion).decode


_READERS: Final[Mapping[EventKind, _Reader]] = MappingProxyType(
    {
        EventKind.ITEM: _Reader(EventKind.ITEM, ItemFeatures, "id"),
        EventKind.USER: _Reader(EventKind.USER, UserFeatures, "id"),
        EventKind.IMPRESSION: _Reader(EventKind.IMPRESSION, Impression, "user_id"),
        EventKind.CLICK: _Reader(EventKind.CLICK, Click, "user_id"),
    }
)


def encode(event: Event) -> bytes:
    """Return the value to write: a msgpack map with the schema version.

    Checks no bounds but the message's size: who builds an event keeps them, and readers check.

    Raises:
        ValueError: the event is a deletion (send an empty value under its key), or larger than readers accept
            (many IDs, all long and not ASCII).

    >>> click = Click(impression_id="i1", user_id="u1", item_id="a", ts_ms=7)
    >>> decode(EventKind.CLICK, b"u1", encode(click), timestamp_ms=0) == click
    True
    """
    if isinstance(event, Deleted):
        raise ValueError("a deletion has no bytes: send an empty value under its key")
    value = msgspec.msgpack.encode(event)
    if len(value) > MAX_MESSAGE_BYTES:
        name = type(event).__name__
        raise ValueError(f"the {name} takes {len(value)} bytes; at most {MAX_MESSAGE_BYTES} are read")
    return value


def decode(kind: EventKind, key: bytes | None, value: bytes | None, timestamp_ms: int) -> Event:
    """Return the event of one record. `timestamp_ms` is the record's own: the time of a deletion.

    Raises:
        DecodeError: the message is not acceptable; says which field and why.
    """
    (event,), errors = decode_many(kind, [(key, value, timestamp_ms)])
    if event is None:
        raise errors[0]
    return event


def decode_many(
    kind: EventKind, records: Iterable[tuple[bytes | None, bytes | None, int]]
) -> tuple[list[Event | None], dict[int, DecodeError]]:
    """Return the event of each (key, value, timestamp_ms) in the same order, and by place why there is none.

    One step for what is good beyond doubt; whatever that step refuses is read again, field by field, to be
    accepted after all (unknown fields are ignored) or explained.

    >>> decode_many(EventKind.ITEM, [(b"a", b"", 7), (b"a", b'{"v": 1, "id": "a"}', 8)])  # doctest: +ELLIPSIS
    ([Deleted(kind=..., id='a', ts_ms=7), None], \
{1: DecodeError("malformed: field 'ts_ms': required, but missing")})
    """
    reader = _READERS[kind]
    from_msgpack, owner_of = reader.from_msgpack, reader.owner_of
    events: list[Event | None] = []
    errors: dict[int, DecodeError] = {}
    for key, value, timestamp_ms in records:
        if value and value[0] >= _FIRST_OF_MSGPACK and len(value) <= MAX_MESSAGE_BYTES:
            try:
                event = from_msgpack(value)
                if owner_of(event).encode() == key:  # nearly all
                    events.append(event)
                    continue
            except _REFUSALS:
                pass  # the next step accepts it or says why not
        try:
            events.append(_read_slowly(reader, key, value, timestamp_ms))
        except DecodeError as error:
            # A new one: by its traceback it would hold this call, which holds it, and all that was read.
            errors[len(events)] = DecodeError(error.reason, error.detail)
            events.append(None)
    return events, errors


def _read_slowly(reader: _Reader, key: bytes | None, value: bytes | None, timestamp_ms: int) -> Event:
    """Take what the first step over msgpack is not for, or was too strict for; or raise why it is bad, or
    that it has the key of another.
    """
    if not value:
        return _deletion(reader.kind, key, timestamp_ms)
    if len(value) > MAX_MESSAGE_BYTES:
        detail = f"the value has {len(value)} bytes; at most {MAX_MESSAGE_BYTES} are accepted"
        raise DecodeError(DecodeReason.OVERSIZED, detail)
    event = (_read_again if value[0] >= _FIRST_OF_MSGPACK else _read_json)(reader, value)
    if (owner := reader.owner_of(event)).encode() != key:
        raise key_mismatch(reader.kind, reader.key_field, key, owner)
    return event


def _read_json(reader: _Reader, value: bytes) -> Event:
    try:
        return reader.from_json(value)
    except _REFUSALS:
        return _read_again(reader, value)


def _read_again(reader: _Reader, value: bytes) -> Event:
    """Return the event that the first step was too strict for, or raise why there is none."""
    fields = _parse(value)
    if not isinstance(fields, dict):
        detail = f"the value is {shown(fields)}, not a map of fields"
        raise DecodeError(DecodeReason.WRONG_TYPE, detail)
    version = fields.pop("v", fields)
    if type(version) is not int or version != SCHEMA_VERSION:
        found = "is missing" if version is fields else f"is {shown(version)}"
        detail = f"field 'v' {found}; this program reads version {SCHEMA_VERSION}"
        raise DecodeError(DecodeReason.UNKNOWN_VERSION, detail)
    for name in [name for name in fields if name not in reader.model.__struct_fields__]:
        check_plain(name, fields.pop(name))
    try:
        return msgspec.convert(fields, reader.model)
    except msgspec.ValidationError:
        for name, content in fields.items():
            check_plain(name, content)
        raise explain(reader.model, fields) from None


def _parse(value: bytes) -> object:
    is_msgpack = value[0] >= _FIRST_OF_MSGPACK
    try:  # from_json takes NaN and Infinity: validation refuses them and names the field
        return msgpack.unpackb(value, max_array_len=_MAX_ARRAY_ITEMS) if is_msgpack else from_json(value)
    except ValueError as error:  # all of msgpack's own, and UnicodeDecodeError
        if isinstance(error, msgpack.StackError) or "recursion limit" in str(error):
            raise too_deep("the value") from None
        found = "not msgpack" if is_msgpack else "neither a msgpack map nor JSON"
        raise DecodeError(DecodeReason.MALFORMED, f"{found}: {reason(error)}") from None


def _deletion(kind: EventKind, key: bytes | None, timestamp_ms: int) -> Deleted:
    """A record without a time of its own (Kafka says -1) still deletes: its time is then 0."""
    if kind not in (EventKind.ITEM, EventKind.USER):
        raise DecodeError(DecodeReason.MALFORMED, f"the value is empty; {kind.value} cannot be deleted")
    if not key:
        detail = "the value is empty and there is no key to say what to delete"
        raise DecodeError(DecodeReason.MALFORMED, detail)
    try:
        fields = {"kind": kind, "id": key.decode(), "ts_ms": min(max(timestamp_ms, 0), MAX_TS_MS)}
        return msgspec.convert(fields, Deleted)
    except UnicodeDecodeError as error:
        raise DecodeError(DecodeReason.MALFORMED, f"the key is not UTF-8: {reason(error)}") from None
    except msgspec.ValidationError:
        raise explain(Deleted, fields) from None
