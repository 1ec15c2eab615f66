"""Changes of entries that come under ascending sequence numbers and go, in bytes, and what a commit writes of
them.

Pure. Whoever keeps changes between two commits need not read them: the process that owns the store does.
They take memory by what changed in a commit's interval, also of what comes and goes. What an entry is, is not
known here.
"""

from collections.abc import Callable, Iterator
from typing import Any, Generic, NamedTuple, TypeVar

import msgpack
import msgspec
from msgspec import Raw, Struct

_Form = TypeVar("_Form")
COUNTER_KEY = b"sequence.last"
"""The key of the last sequence given; an entry stands under its own in 8 bytes, the highest first."""


class Changes(Struct, Generic[_Form], frozen=True, array_like=True, gc=False):
    """What changed in a while: entries by sequence, and which of those told before are gone."""

    last_sequence: int
    entries: dict[int, _Form]
    """Read back they stay in their bytes, as the store has them."""
    gone: list[int]


class EncodedChanges(NamedTuple):
    """Stands in a commit for pairs of keys and values: changes as `encode_changes` makes them, in order."""

    encoded: list[bytes]


encode_changes: Callable[[Changes[Any]], bytes] = msgspec.msgpack.Encoder().encode
decode_changes: Callable[[bytes], Changes[Raw]] = msgspec.msgpack.Decoder(Changes[Raw]).decode


class GatheredChanges:
    """Those of one commit, later ones on top."""

    def __init__(self, stored_counter: bytes | None) -> None:
        """Start from what the store holds under `COUNTER_KEY`."""
        self._entries: dict[int, Raw | None] = {}
        self._last = self._last_stored = 0 if stored_counter is None else int(msgpack.unpackb(stored_counter))

    def add(self, encoded: bytes) -> None:
        """Put later changes on top; an entry that comes and goes within the commit leaves nothing."""
        changes = decode_changes(encoded)
        self._last = changes.last_sequence
        self._entries.update(changes.entries)
        for sequence in changes.gone:
            if sequence > self._last_stored:
                del self._entries[sequence]
            else:
                self._entries[sequence] = None

    def pairs(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Yield what the store is to hear of, None for what it is to delete."""
        for sequence, value in self._entries.items():
            yield sequence.to_bytes(8, "big"), None if value is None else bytes(value)
        if self._last > self._last_stored:
            yield COUNTER_KEY, msgpack.packb(self._last)
