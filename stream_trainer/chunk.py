"""What passes from the input side to the learning side: joined clicks and changes in order, and where the log
stood after them.

Owns the shapes and their bytes, because the two sides may be two processes. Never reads a log, joins or
learns.
"""

from typing import TypeAlias

import msgspec
from msgspec import Struct

from feature_store.schema import Features


class Joined(Struct, frozen=True, array_like=True, gc=False, tag=0):
    """A positive: a click whose impression is known, with where it stood in the log."""

    user_id: str
    item_id: str
    partition: int
    offset: int
    shown: tuple[str, ...] = ()


class Changed(Struct, frozen=True, array_like=True, gc=False, tag=1):
    """New features of an item or a user; None: it was deleted."""

    is_item: bool
    id: str
    features: Features | None


Fact: TypeAlias = Joined | Changed


class Place(Struct, frozen=True, array_like=True, gc=False):
    """Where one partition goes on: its next offset, and the event time it has reached, in ms."""

    topic: str
    partition: int
    next_offset: int
    latest_ts_ms: int


class Marks(Struct, frozen=True, array_like=True, gc=False):
    """How far event time has come, in ms; 0 before the first event."""

    watermark_ms: int = 0
    latest_click_ms: int = 0
    latest_event_ms: int = 0


class Position(Struct, frozen=True, array_like=True, gc=False):
    """What the input side needs to go on after a commit."""

    places: list[Place]
    topic_ids: dict[str, str]
    marks: Marks
    join: list[tuple[bytes, bytes]]
    """The entries that wait in the join, as the store has them."""


class Chunk(Struct, frozen=True, array_like=True, gc=False, tag=2):
    """What a stretch of the log comes to. Places, marks and join stand as after its last record."""

    facts: list[Fact]
    places: list[Place]
    marks: Marks
    join_changes: bytes
    """As `Joiner.take_changes` gave them."""
    join_counts: dict[str, int]
    num_impressions: int
    num_clicks: int
    num_events: dict[str, int]
    """Records by topic."""
    dead_letters: dict[str, int]
    """Messages sent there, by reason."""
    lag_records: int
    at_end: bool
    """Whether a bounded replay ends with this chunk."""


class Remainder(Struct, frozen=True, array_like=True, gc=False):
    """What of a chunk is not applied yet: a part of the commit, so that it may fall in the middle of one."""

    facts: list[Fact]
    marks: Marks


_remainder = msgspec.msgpack.Decoder(Remainder)


def decode_remainder(value: bytes) -> Remainder:
    """Return what `msgspec.msgpack.encode` made of a remainder."""
    return _remainder.decode(value)
