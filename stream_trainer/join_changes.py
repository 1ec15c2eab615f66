"""What the next commit writes of the join, gathered from the changes that chunks bring.

Pure. Owns only which of them the store must hear of; what an entry is, is `join_entries.py`'s.
"""

from collections.abc import Iterator

import msgpack

from stream_trainer.join_entries import COUNTER_KEY, decode_changes


class JoinChanges:
    """What changed in the join since the last commit, gathered from what the joiner told meanwhile."""

    def __init__(self, stored_counter: bytes | None) -> None:
        """Start from what the store holds under `COUNTER_KEY`."""
        self._changes: dict[int, bytes | None] = {}
        self._last_stored = 0 if stored_counter is None else int(msgpack.unpackb(stored_counter))
        self._last = self._last_stored

    def add(self, encoded: bytes) -> None:
        """Put later changes on top; an entry that comes and goes between two commits leaves nothing."""
        if not encoded:
            return
        changes = decode_changes(encoded)
        self._last = changes.last_sequence
        # Copied: they are views, and the smallest would keep all that came with it in memory.
        self._changes.update(zip(changes.entries, map(bytes, changes.entries.values()), strict=True))
        for sequence in changes.gone:
            if sequence > self._last_stored:
                del self._changes[sequence]
            else:
                self._changes[sequence] = None

    def take(self) -> Iterator[tuple[bytes, bytes | None]]:
        """Return all changes for the commit: to be iterated over when it suits, there may be many."""
        changes, self._changes = self._changes, {}
        before, self._last_stored = self._last_stored, self._last
        return _pairs(changes, self._last if self._last > before else None)


def _pairs(changes: dict[int, bytes | None], counter: int | None) -> Iterator[tuple[bytes, bytes | None]]:
    for sequence, value in changes.items():
        yield sequence.to_bytes(8, "big"), value
    if counter is not None:
        yield COUNTER_KEY, msgpack.packb(counter)
