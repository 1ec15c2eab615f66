"""What the next commit writes of the join, gathered from the changes that chunks bring.

Pure. Owns only which of them the store must hear of; what an entry is, is `join_entries.py`'s.
"""

from collections.abc import Iterable, Mapping

import msgpack

from stream_trainer.join_entries import COUNTER_KEY


class JoinChanges:
    """What changed in the join since the last commit, gathered from what `take_changes` gave meanwhile."""

    def __init__(self, stored_counter: bytes | None) -> None:
        """Start from what the store holds under `COUNTER_KEY`."""
        self._changes: dict[bytes, bytes | None] = {}
        self._last_stored = _last_key(stored_counter)

    def add(self, changes: Mapping[bytes, bytes | None]) -> None:
        """Put later changes on top; an entry that comes and goes between two commits leaves nothing."""
        self._changes.update(changes)
        for key in [key for key, value in changes.items() if value is None and key > self._last_stored]:
            del self._changes[key]

    def take(self) -> Iterable[tuple[bytes, bytes | None]]:
        """Return all changes for the commit: to be iterated over when it suits, there may be many."""
        changes, self._changes = self._changes, {}
        if COUNTER_KEY in changes:
            self._last_stored = _last_key(changes[COUNTER_KEY])
        return changes.items()


def _last_key(counter: bytes | None) -> bytes:
    return (0 if counter is None else int(msgpack.unpackb(counter))).to_bytes(8, "big")
