"""The events that come from outside, with their bounds.

Owns the shape of every message on the four topics. Never touches bytes: that is `codec.py`.
Field names, units (`ts_ms` is milliseconds since 1970, UTC) and bounds are the contract with the shop.
"""

from enum import StrEnum
from typing import Annotated, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

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


Id: TypeAlias = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
TsMs: TypeAlias = Annotated[int, Field(ge=0, le=MAX_TS_MS)]
Text: TypeAlias = Annotated[str, Field(max_length=MAX_TEXT_CHARS)]
Number: TypeAlias = Annotated[float, Field(allow_inf_nan=False)]
FeatureValue: TypeAlias = Text | Number | Annotated[list[Text], Field(max_length=MAX_FEATURE_VALUES)]
Features: TypeAlias = Annotated[dict[Id, FeatureValue], Field(max_length=MAX_FEATURES)]


class _Event(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)


class Impression(_Event):
    """A slate shown to a user, in display order."""

    impression_id: Id
    user_id: Id
    ts_ms: TsMs
    items: Annotated[list[Id], Field(min_length=1, max_length=MAX_SLATE_ITEMS)]
    context: Annotated[dict[Id, Text | Number], Field(max_length=MAX_FEATURES)] = {}


class Click(_Event):
    """One item of a slate was clicked."""

    impression_id: Id
    user_id: Id
    item_id: Id
    ts_ms: TsMs


class ItemFeatures(_Event):
    """The newest features of an item: an upsert that takes effect from its place in the stream."""

    id: Id
    ts_ms: TsMs
    features: Features = {}


class UserFeatures(_Event):
    """The newest features of a user: an upsert that takes effect from its place in the stream."""

    id: Id
    ts_ms: TsMs
    features: Features = {}


class Deleted(_Event):
    """An empty value on `items` or `users`: the ID is gone. The time is the record's own."""

    kind: EventKind
    id: Id
    ts_ms: TsMs


Event: TypeAlias = Impression | Click | ItemFeatures | UserFeatures | Deleted
