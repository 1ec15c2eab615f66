"""The live corpus: which items may be recommended and drawn as negatives right now.

Pure. Owns the list of item numbers in it, in an order that is a function of the stream (added at the end; a
deleted one's place is taken by the last), because negatives are drawn by place.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

_NEVER_SEEN, _DELETED = -1, -2


class Corpus:
    """A set of item numbers with places 0 … len-1."""

    def __init__(self, stored: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """Start empty, or from what `take_changes` gave."""
        places = [
            (int.from_bytes(value, "big", signed=True), int.from_bytes(key, "big")) for key, value in stored
        ]
        self._place_of = np.full(max((number for _, number in places), default=0) + 1, _NEVER_SEEN)
        for place, number in places:
            self._place_of[number] = place
        live = sorted((place, number) for place, number in places if place >= 0)
        assert [place for place, _ in live] == list(range(len(live))), "places of the corpus have gaps"
        self._numbers = np.zeros(max(1024, 2 * len(live)), np.int64)
        self._numbers[: len(live)] = [number for _, number in live]
        self._size = len(live)
        self._changed: set[int] = set()

    def __len__(self) -> int:
        return self._size

    def __contains__(self, number: int) -> bool:
        return self._place(number) >= 0

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

    def add_seen(self, numbers: Sequence[int]) -> list[int]:
        """Put items in that were clicked without an upsert, unless they were deleted: a late click must not
        revive one. Return the new ones.
        """
        numbers_n = np.array(numbers, np.int64)
        self._make_room(int(numbers_n.max(initial=0)))
        new = list(dict.fromkeys(numbers_n[self._place_of[numbers_n] == _NEVER_SEEN].tolist()))
        for number in new:
            self.add(number)
        return new

    def remove(self, number: int) -> None:
        """Take an item out at once. An unknown item is remembered as deleted."""
        place = self._place(number)
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
        places = self._place_of[np.array(changed, np.int64)].tolist()
        return [
            (number.to_bytes(4, "big"), place.to_bytes(4, "big", signed=True))
            for number, place in zip(changed, places, strict=True)
        ]

    def _place(self, number: int) -> int:
        return int(self._place_of[number]) if number < len(self._place_of) else _NEVER_SEEN

    def _make_room(self, number: int) -> None:
        if number >= len(self._place_of):
            self._place_of = np.append(self._place_of, np.full(number + 1, _NEVER_SEEN))

    def _set(self, number: int, place: int) -> None:
        self._make_room(number)
        self._place_of[number] = place
        self._changed.add(number)
