"""Numbers for IDs: items and feature values get small integers for life, in the order of their first
appearance.

Pure. A number makes histories, negatives and features arrays instead of strings. The order is a function of
the stream, and the numbers are part of the commit, so a replay gives the same ones.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from feature_store.errors import StoreCorruptError
from feature_store.id_index import IdIndex


class Numbering:
    """A growing list of IDs and the way back."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Start empty, or from what `take_changes` gave: (number, ID) pairs in any order.

        Raises:
            StoreCorruptError: the stored numbers are not 0, 1, 2, ….
        """
        pairs = sorted((int.from_bytes(key, "big"), value) for key, value in stored)
        self.keys: list[bytes] = [key for _, key in pairs]  # UTF-8: rows are stored under them
        if [number for number, _ in pairs] != list(range(len(pairs))):
            raise StoreCorruptError("stored numbers of IDs have gaps; restore the store from a backup")
        self._index = IdIndex()
        self._index.put([key.decode() for key in self.keys], np.arange(len(self.keys)))
        self._num_stored = len(self.keys)

    def __len__(self) -> int:
        return len(self.keys)

    def numbers(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the IDs' numbers (n,), giving new ones the next, in their order.

        >>> Numbering().numbers(["a", "b", "a"]).tolist()
        [0, 1, 0]
        """
        numbers = self._index.find(names)
        missing = np.flatnonzero(numbers < 0)
        if len(missing):
            new = list(dict.fromkeys(names[place] for place in missing.tolist()))
            self._index.put(new, np.arange(len(self.keys), len(self.keys) + len(new)))
            self.keys += map(str.encode, new)
            numbers[missing] = self._index.find([names[place] for place in missing.tolist()])
        return numbers

    def number(self, name: str) -> int:
        """Return the number of one. Who has many asks for all at once, who asks often remembers them."""
        return int(self.numbers([name])[0])

    def name(self, number: int) -> str:
        """Return the ID that has this number."""
        return self.keys[number].decode()

    def find(self, names: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return the IDs' numbers (n,), -1 for those that have none."""
        return self._index.find(names)

    def take_changes(self) -> list[tuple[bytes, bytes]]:
        """Return the pairs added since the last call, for the commit."""
        start, self._num_stored = self._num_stored, len(self.keys)
        return [(n.to_bytes(4, "big"), self.keys[n]) for n in range(start, len(self.keys))]
