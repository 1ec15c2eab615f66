"""What passes from the input side to the learning side: joined clicks and changes in order, and where the log
stood after them.

Owns the shapes and their bytes, because the two sides may be two processes. Never reads a log, joins or
learns.
"""

from collections.abc import Iterable
from itertools import groupby
from typing import TypeAlias, cast

import msgspec
from msgspec import Struct

from feature_store.errors import StoreCorruptError
from feature_store.schema import Features


class Joined(Struct, frozen=True, gc=False):
    """A positive: a click whose impression is known, with where it stood in the log."""

    user_id: str
    item_id: str
    partition: int
    offset: int
    shown: tuple[str, ...] = ()


class Positives(Struct, frozen=True, array_like=True, gc=False, tag=0):
    """Positives that follow each other, as columns of equal length: objects for each would take the learning
    side longer than what it learns them by.
    """

    user_ids: list[str]
    item_ids: list[str]
    partitions: list[int]
    offsets: list[int]
    shown: list[tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.user_ids)


class Changed(Struct, frozen=True, array_like=True, gc=False, tag=1):
    """New features of an item or a user; None: it was deleted."""

    is_item: bool
    id: str
    features: Features | None


Fact: TypeAlias = Positives | Changed


def as_facts(happened: Iterable[Joined | Changed]) -> list[Fact]:
    """Return what happened with positives that follow each other as columns.

    >>> facts = as_facts([Joined("u", "a", 0, 7), Joined("v", "b", 1, 9), Changed(True, "a", None)])
    >>> [len(fact) if isinstance(fact, Positives) else fact for fact in facts]
    [2, Changed(is_item=True, id='a', features=None)]
    """
    facts: list[Fact] = []
    for kind, group in groupby(happened, type):
        if kind is Changed:
            facts += cast(Iterable[Changed], group)
            continue
        joined = cast(list[Joined], list(group))
        facts.append(
            Positives(
                [one.user_id for one in joined],
                [one.item_id for one in joined],
                [one.partition for one in joined],
                [one.offset for one in joined],
                [one.shown for one in joined],
            )
        )
    return facts


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
    """Return what `msgspec.msgpack.encode` made of a remainder.

    Raises:
        StoreCorruptError: it is not in the form that this program writes.
    """
    try:
        return _remainder.decode(value)
    except msgspec.DecodeError as error:
        raise StoreCorruptError(
            f"what waits to be learned is not in this program's form: {error}. Was the store made by another "
            "version? Start with a new store.path"
        ) from error
