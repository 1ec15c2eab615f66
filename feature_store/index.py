"""Which slot of memory holds which ID: what a table asks, and the answer for IDs that have a number for life.
`id_index.py` has that for those that do not.

Pure. Owns the maps only; rows and their bytes are `rows.py`'s.
"""

from collections.abc import Sequence
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


class SlotIndex(Protocol):
    """Maps keys to slots and back. Slots are small integers; -1 means not in memory."""

    def find(self, keys: Sequence[str] | I64) -> I64:
        """Return each key's slot, -1 where there is none."""

    def put(self, keys: Sequence[str | int], slots: I64) -> None:
        """Record that these keys, none of them in memory, now have these slots."""

    def drop(self, slots: I64) -> None:
        """Forget the keys at these slots."""

    def keys_at(self, slots: I64) -> list[bytes]:
        """Return the stored key of each slot."""

    def stored_keys(self, keys: Sequence[str | int]) -> list[bytes]:
        """Return the keys as the store knows them."""


class NumberIndex:
    """By number (see `numbering.py`): an array, so that finding thousands of items costs microseconds."""

    def __init__(self, capacity: int, keys: list[bytes]) -> None:
        self._keys = keys  # shared with the numbering, which appends to it
        self._slot_of = np.full(1024, -1, np.int64)
        self._number_at = np.full(capacity, -1, np.int64)

    def find(self, keys: Sequence[str] | I64) -> I64:
        """Return each number's slot, -1 where there is none."""
        if len(self._keys) > len(self._slot_of):
            grown = np.full(2 * len(self._keys), -1, np.int64)
            grown[: len(self._slot_of)] = self._slot_of
            self._slot_of = grown
        return self._slot_of[np.asarray(keys, np.int64)]

    def put(self, keys: Sequence[str | int], slots: I64) -> None:
        """Record the numbers' slots."""
        numbers = np.asarray(keys, np.int64)
        self._slot_of[numbers] = slots
        self._number_at[slots] = numbers

    def drop(self, slots: I64) -> None:
        """Forget the numbers at these slots."""
        self._slot_of[self._number_at[slots]] = -1

    def keys_at(self, slots: I64) -> list[bytes]:
        """Return the ID at each slot, UTF-8."""
        return list(map(self._keys.__getitem__, self._number_at[slots].tolist()))

    def stored_keys(self, keys: Sequence[str | int]) -> list[bytes]:
        """Return the IDs of numbers in UTF-8."""
        return list(map(self._keys.__getitem__, cast(Sequence[int], keys)))
