"""The live corpus: which items may be recommended and drawn as negatives right now.

Pure. Owns the list of item numbers in it, in an order that is a function of the stream (added at the end; a
deleted one's place is taken by the last), because negatives are drawn by place.
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

_NEVER_SEEN, _DELETED = -1, -2


class Corpus:
    """A set of item numbers with places 0 … len-1."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Start empty, or from what `take_changes` gave."""
        self._place_of: dict[int, int] = {
            int.from_bytes(key, "big"): int.from_bytes(value, "big", signed=True) for key, value in stored
        }
        live = sorted((place, number) for number, place in self._place_of.items() if place >= 0)
        assert [place for place, _ in live] == list(range(len(live))), "places of the corpus have gaps"
        self._numbers = np.zeros(max(1024, 2 * len(live)), np.int64)
        self._numbers[: len(live)] = [number for _, number in live]
        self._size = len(live)
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, number: int) -> bool:
        return self._place_of.get(number, _NEVER_SEEN) >= 0

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The item numbers by place: a view, valid until the next change."""
        return self._numbers[: self._size]

    def add(self, number: int) -> None:
        """Put an item in (an upsert); an item that is in stays where it is."""
        if number in self:
            return
        if self._size == len(self._numbers):
            self._numbers = np.concatenate([self._numbers, np.zeros_like(self._numbers)])
        self._set(number, self._size)
        self._numbers[self._size] = number
        self._size += 1

    def add_seen(self, numbers: Iterable[int]) -> None:
        """Put items in that were clicked without an upsert, unless they were deleted: a late click must not
        revive one.
        """
        known = self._place_of
        for number in [number for number in numbers if number not in known]:
            self.add(number)

    def remove(self, number: int) -> None:
        """Take an item out at once. An unknown item is remembered as deleted."""
        place = self._place_of.get(number, _NEVER_SEEN)
        self._set(number, _DELETED)
        if place < 0:
            return
        self._size -= 1
        last = int(self._numbers[self._size])
        if last != number:
            self._numbers[place] = last
            self._set(last, place)

    def take_changes(self) -> list[tuple[bytes, bytes]]:
        """Return what changed since the last call, for the commit."""
        changed, self._changed = sorted(self._changed), set()
        return [(n.to_bytes(4, "big"), self._place_of[n].to_bytes(4, "big", signed=True)) for n in changed]

    def _set(self, number: int, place: int) -> None:
        self._place_of[number] = place
        self._changed.add(number)
