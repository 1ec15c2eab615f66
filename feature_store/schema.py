"""The events that come from outside, with their bounds.

Owns the shape of every message on the four topics. Never touches bytes: that is `codec.py`, which holds what
it reads to these bounds. Building an event checks nothing: who makes one keeps them, or readers refuse it.
Field names, units (`ts_ms` is milliseconds since 1970, UTC) and bounds are the contract with the shop.
"""

import sys
from enum import StrEnum
from typing import Annotated, Final, TypeAlias, final

from msgspec import Meta, Struct

SCHEMA_VERSION = 1
MAX_ID_CHARS = 128
MAX_SLATE_ITEMS = 200
MAX_FEATURES = 64
MAX_FEATURE_VALUES = 32
MAX_TEXT_CHARS = 1024
MAX_MESSAGE_BYTES = 64 * 1024
MAX_TS_MS = 253_402_300_799_999  # the last millisecond of the year 9999


class EventKind(StrEnum):
    """The four streams; also the keys of the topic configuration."""

    ITEM = "items"
    USER = "users"
    IMPRESSION = "impressions"
    CLICK = "clicks"


_MAX_FLOAT: Final = sys.float_info.max

Id: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_ID_CHARS)]
TsMs: TypeAlias = Annotated[int, Meta(ge=0, le=MAX_TS_MS)]
Text: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT_CHARS)]
Number: TypeAlias = Annotated[float, Meta(ge=-_MAX_FLOAT, le=_MAX_FLOAT)]  # finite: NaN keeps no bound either
FeatureValue: TypeAlias = Text | Number | Annotated[list[Text], Meta(max_length=MAX_FEATURE_VALUES)]
Features: TypeAlias = Annotated[dict[Id, FeatureValue], Meta(max_length=MAX_FEATURES)]


class _Event(Struct, frozen=True, gc=False, forbid_unknown_fields=True, tag_field="v", tag=SCHEMA_VERSION):
    """What all events share. `v` stands in the bytes only; `gc=False`: an event is never part of a cycle."""


@final
class Impression(_Event, frozen=True, kw_only=True):
    """A slate shown to a user, in display order."""

    impression_id: Id
    user_id: Id
    ts_ms: TsMs
    items: Annotated[list[Id], Meta(min_length=1, max_length=MAX_SLATE_ITEMS)]
    context: Annotated[dict[Id, Text | Number], Meta(max_length=MAX_FEATURES)] = {}


@final
class Click(_Event, frozen=True, kw_only=True):
    """One item of a slate was clicked."""

    impression_id: Id
    user_id: Id
    item_id: Id
    ts_ms: TsMs


class ItemFeatures(_Event, frozen=True, kw_only=True):
    """The newest features of an item: an upsert that takes effect from its place in the stream."""

    id: Id
    ts_ms: TsMs
    features: Features = {}


class UserFeatures(_Event, frozen=True, kw_only=True):
    """The newest features of a user: an upsert that takes effect from its place in the stream."""

    id: Id
    ts_ms: TsMs
    features: Features = {}


class Deleted(_Event, frozen=True, kw_only=True):
    """An empty value on `items` or `users`: the ID is gone. The time is the record's own."""

    kind: EventKind
    id: Id
    ts_ms: TsMs


Event: TypeAlias = Impression | Click | ItemFeatures | UserFeatures | Deleted
