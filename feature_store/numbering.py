"""Numbers for IDs: items and feature values get small integers for life, in the order of their first
appearance.

Pure. A number makes histories, negatives and features arrays instead of strings. The order is a function of
the stream, and the numbers are part of the commit, so a replay gives the same ones.
"""

from collections.abc import Iterable

from feature_store.errors import StoreCorruptError


class Numbering:
    """A growing list of IDs and the way back."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Start empty, or from what `take_changes` gave: (number, ID) pairs in any order.

        Raises:
            StoreCorruptError: the stored numbers are not 0, 1, 2, ….
        """
        pairs = sorted((int.from_bytes(key, "big"), value.decode()) for key, value in stored)
        self.ids: list[str] = [name for _, name in pairs]
        if [number for number, _ in pairs] != list(range(len(pairs))):
            raise StoreCorruptError("stored numbers of IDs have gaps; restore the store from a backup")
        self._number_of = {name: number for number, name in enumerate(self.ids)}
        self._num_stored = len(self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def number(self, name: str) -> int:
        """Return the ID's number, giving it the next one if it is new.

        >>> numbering = Numbering()
        >>> [numbering.number(name) for name in ("a", "b", "a")]
        [0, 1, 0]
        """
        number = self._number_of.setdefault(name, len(self.ids))
        if number == len(self.ids):
            self.ids.append(name)
        return number

    def get(self, name: str) -> int:
        """Return the ID's number, -1 if it has none."""
        return self._number_of.get(name, -1)

    def take_changes(self) -> list[tuple[bytes, bytes]]:
        """Return the pairs added since the last call, for the commit."""
        start, self._num_stored = self._num_stored, len(self.ids)
        return [(n.to_bytes(4, "big"), self.ids[n].encode()) for n in range(start, len(self.ids))]
