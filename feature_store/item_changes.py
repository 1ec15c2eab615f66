"""Which items changed lately: what serving follows between two full refreshes.

Pure. An item changes when it comes into the corpus, leaves it, or gets features; rows that moved are no
change, because nearly all move with every batch. Only the newest are kept, in stream order, so the bytes are
a function of the stream and not of its commits.
"""

from collections import deque
from collections.abc import Iterable

import msgpack
import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
KEY = b"item_changes"
"""Where the trainer keeps them, in `meta`."""
_KEPT = 16_384


class ItemChanges:
    """The numbers of the items that changed last, and how many changes there ever were."""

    def __init__(self, stored: bytes | None = None) -> None:
        """Start with no change, or from what `encode` gave."""
        total, numbers = (0, b"") if stored is None else msgpack.unpackb(stored)
        self.total: int = total
        self._numbers = deque(np.frombuffer(numbers, "<i4").tolist(), _KEPT)
        self._encoded = total, stored

    def add(self, numbers: Iterable[int]) -> None:
        """Note changes of items, in their order."""
        for number in numbers:
            self._numbers.append(number)
            self.total += 1

    def knows(self, total: int) -> bool:
        """Return whether all changes after the first `total` are kept, and there were so many at all."""
        return self.total - len(self._numbers) <= total <= self.total

    def since(self, total: int) -> I64:
        """Return which items (n,) changed after the first `total` changes, each once; of more changes than
        are kept, those that are.
        """
        newest = list(self._numbers)[-max(self.total - total, 0) :] if self.total > total else []
        return np.unique(np.array(newest, np.int64))

    def encode(self) -> bytes:
        """Return the bytes for the commit: the same object as before where nothing changed."""
        total, encoded = self._encoded
        if encoded is None or total != self.total:
            encoded = msgpack.packb((self.total, np.array(self._numbers, "<i4").tobytes()))
            self._encoded = self.total, encoded
        return encoded
