"""What waits in the join, and its bytes in the store: slates for their clicks, clicks for their slate.

Pure. Owns the shapes and their form; what becomes of them is `join.py`'s.
"""

from collections.abc import Callable
from typing import TypeAlias

import msgspec
from msgspec import Struct

from feature_store.errors import StoreCorruptError


class Origin(Struct, frozen=True, array_like=True, gc=False):
    """Where a click stands in its topic: what draws for it are a hash of."""

    partition: int
    offset: int


class Slate(Struct, array_like=True, tag="impression", gc=False):
    """An impression that waits. `sequence` is its place among all that ever waited."""

    impression_id: str
    user_id: str
    ts_ms: int
    items: list[str]
    sequence: int
    clicked: dict[str, Origin | None]
    """The items clicked so far: with their origin while they wait for the close, None once emitted."""


class EarlyClick(Struct, frozen=True, array_like=True, tag="click", gc=False):
    """A click that waits for its impression."""

    impression_id: str
    user_id: str
    item_id: str
    ts_ms: int
    origin: Origin


Entry: TypeAlias = Slate | EarlyClick


_decode: Callable[[bytes], Entry] = msgspec.msgpack.Decoder(Entry).decode


def decode_entry(value: bytes) -> Entry:
    """Return what the store holds of an entry.

    Raises:
        StoreCorruptError: it is not in this program's form.
    """
    try:
        return _decode(value)
    except msgspec.DecodeError as error:
        raise StoreCorruptError(
            f"what waits in the join is not in this program's form: {error}. Was the store made by another "
            "version? Start with a new store.path"
        ) from error
