"""Per-ID rows: a bounded tier of memory over the rows in RocksDB.

Owns which rows are in memory, and which of those differ from the store. Never writes the store: it hands out
what is dirty and is told when that is durable. Lets rows be read and changed where they stand; no Python runs
per row. Legend of shapes: R capacity in rows, W width of a row in floats, n rows of one call.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count

import numpy as np
import numpy.typing as npt

from feature_store.errors import SettingsError, StoreCorruptError
from feature_store.index import SlotIndex
from feature_store.row_chunk import RowChunk
from feature_store.row_layout import RowLayout

I64 = npt.NDArray[np.int64]
_CHUNK_ROWS = 4096
ReadRows = Callable[[list[bytes]], list[bytes | None]]


class RowTable:
    """The rows of one kind of ID. Slots are places in `rows_RW`, valid until the next `begin_batch`."""

    def __init__(
        self, name: str, layout: RowLayout, index: SlotIndex, read: ReadRows, capacity: int, seed: int
    ) -> None:
        self.name = name
        self.layout = layout
        self.num_read = 0
        self.num_evicted = 0
        self._index = index
        self._read = read
        self._seed = seed
        # The system maps a page when it is first touched, so an empty table costs nothing.
        self.rows_RW = np.zeros((capacity, layout.width), np.float32)
        self._ints_RW = self.rows_RW.view(np.int32)
        self._dirty_R = np.zeros(capacity, bool)
        self._leaving_R = np.zeros(capacity, bool)
        self._set_aside: deque[RowChunk] = deque()
        self._used_R = np.full(capacity, -1, np.int64)
        self._free = np.empty(0, np.int64)
        self._high_water = 0
        self._batch = 0

    @property
    def capacity(self) -> int:
        """Rows that fit in memory."""
        return len(self._dirty_R)

    @property
    def num_resident(self) -> int:
        """Rows in memory now."""
        return self._high_water - len(self._free)

    @property
    def num_dirty(self) -> int:
        """Rows that differ from the store."""
        return int(np.count_nonzero(self._dirty_R[: self._high_water]))

    @property
    def needs_commit(self) -> bool:
        """Whether so many rows are dirty that the next batch may find none to evict."""
        return self.num_dirty > self.capacity // 2

    @property
    def batch(self) -> int:
        """The number of the batch for which slots are valid now."""
        return self._batch

    def begin_batch(self) -> None:
        """Allow rows of earlier batches to be evicted; slots handed out before are void."""
        self._batch += 1

    def slots(self, keys: Sequence[str] | I64) -> I64:
        """Return the slot of each key (n,), bringing rows into memory: from the store, or new ones.

        Raises:
            SettingsError: one batch needs more rows than memory holds.
        """
        slots = self._index.find(keys)
        missing = np.flatnonzero(slots < 0)
        if len(missing):
            self._used_R[slots[slots >= 0]] = self._batch  # bringing the others in must not evict these
            slots[missing] = self._load(keys, missing)
        self._used_R[slots] = self._batch
        return slots

    def absent(self, keys: Sequence[str] | I64) -> list[bytes]:
        """Return, as the store knows them, those of these distinct keys whose rows are not in memory."""
        slots = self._index.find(keys)
        return self._index.stored_keys(_at(keys, np.flatnonzero(slots < 0)))

    def peek(self, keys: Sequence[str] | I64, name: str, at_hand: ReadRows) -> npt.NDArray[np.int32]:
        """Return an integer field of the rows of these keys (n, width) without bringing any into memory: of
        those that are there or whose bytes are `at_hand`, -1 for others.
        """
        slots, span = self._index.find(keys), self.layout.span(name)
        values = np.full((len(slots), span.stop - span.start), -1, np.int32)
        values[slots >= 0] = self._ints_RW[slots[slots >= 0], span]
        absent = np.flatnonzero(slots < 0)
        rows = at_hand(self._index.stored_keys(_at(keys, absent)))
        whole = [row if row is not None and len(row) == 4 * self.layout.width else b"" for row in rows]
        known = np.array([len(row) > 0 for row in whole], bool)
        found = np.frombuffer(b"".join(whole), np.int32)
        values[absent[known]] = found.reshape(-1, self.layout.width)[:, span]
        return values

    def floats(self, slots: I64, name: str) -> npt.NDArray[np.float32]:
        """Return a copy of a field of some rows, (n, width)."""
        return self.rows_RW[slots, self.layout.span(name)]

    def ints(self, slots: I64, name: str) -> npt.NDArray[np.int32]:
        """Return a copy of an integer field of some rows, (n, width)."""
        return self._ints_RW[slots, self.layout.span(name)]

    def write(
        self, slots: I64, values: Mapping[str, npt.NDArray[np.float32] | npt.NDArray[np.int32]]
    ) -> None:
        """Set fields of some rows; of repeated slots the last counts. Integers go to integer fields."""
        self._before_change(slots)
        for name, value in values.items():
            target = self._ints_RW if value.dtype == np.int32 else self.rows_RW
            target[slots, self.layout.span(name)] = value
        self._dirty_R[slots] = True

    def reset(self, slots: I64, keys: Sequence[bytes]) -> None:
        """Forget what rows hold: they start again as the rows of new IDs do (a deletion)."""
        self._before_change(slots)
        self.rows_RW[slots] = self.layout.new_rows(self._seed, keys)
        self._dirty_R[slots] = True

    def update(self, slots: I64, change: Callable[[npt.NDArray[np.float32], I64], None]) -> None:
        """Let `change` alter rows where they stand: of all rows (R, W), those at these slots alone."""
        self._before_change(slots)
        change(self.rows_RW, slots)
        self._dirty_R[slots] = True

    def take_dirty(self) -> Iterator[RowChunk]:
        """Return the rows that differ from the store, as they are now, and regard them as stored.

        They are copied bit by bit as the iterator is used, so that nobody waits for a commit's worth at once;
        a row that is about to change before its turn is copied then. One is to be used up before the next.
        """
        assert not self._leaving_R.any(), "the rows taken before are not all handed out"
        slots = np.flatnonzero(self._dirty_R[: self._high_water])
        self._dirty_R[slots] = False
        self._leaving_R[slots] = True
        return self._leave(slots)

    def _leave(self, slots: I64) -> Iterator[RowChunk]:
        for start in range(0, len(slots), _CHUNK_ROWS):
            chunk = slots[start : start + _CHUNK_ROWS]
            left = chunk[self._leaving_R[chunk]]
            if len(left):
                yield self._copied(left)
            while self._set_aside:
                yield self._set_aside.popleft()

    def _before_change(self, slots: I64) -> None:
        """Copy those of these rows that are yet to be handed out."""
        leaving = slots[self._leaving_R[slots]]
        if len(leaving):
            self._set_aside.append(self._copied(np.unique(leaving)))

    def _copied(self, slots: I64) -> RowChunk:
        self._leaving_R[slots] = False
        return RowChunk(self._index.keys_at(slots), self.rows_RW[slots])

    def _load(self, keys: Sequence[str] | I64, missing: I64) -> I64:
        wanted = _at(keys, missing)
        unique = list(dict.fromkeys(wanted))
        slots = self._take_slots(len(unique))
        stored_keys = self._index.stored_keys(unique)
        self._fill(slots, stored_keys, self._read(stored_keys))
        self._index.put(unique, slots)
        self._used_R[slots] = self._batch
        if len(unique) == len(wanted):
            return slots
        place_of = dict(zip(unique, count(), strict=False))
        return slots[[place_of[key] for key in wanted]]

    def _fill(self, slots: I64, keys: list[bytes], values: list[bytes | None]) -> None:
        fresh = [i for i, value in enumerate(values) if value is None]
        known = np.delete(slots, fresh)
        if len(known):
            data = b"".join(filter(None, values))
            if len(data) != len(known) * self.layout.width * 4:
                raise StoreCorruptError(
                    f"table '{self.name}': stored rows do not have {self.layout.width} floats; "
                    "was the store made with other [model] settings?"
                )
            self.rows_RW[known] = np.frombuffer(data, np.float32).reshape(len(known), -1)
            self.num_read += len(known)
        if fresh:
            self.rows_RW[slots[fresh]] = self.layout.new_rows(self._seed, [keys[i] for i in fresh])
            self._dirty_R[slots[fresh]] = True

    def _take_slots(self, num: int) -> I64:
        unused = min(num - len(self._free), self.capacity - self._high_water)
        if unused > 0:
            self._free = np.concatenate([self._free, np.arange(self._high_water, self._high_water + unused)])
            self._high_water += unused
        if len(self._free) < num:
            self._evict(num - len(self._free))
        taken, self._free = self._free[:num], self._free[num:]
        return taken

    def _evict(self, needed: int) -> None:
        """Free the clean rows unused for longest: an eighth of memory, so that the search is rare."""
        idle = np.flatnonzero(~self._dirty_R & (self._used_R < self._batch) & (self._used_R >= 0))
        if len(idle) < needed:
            raise SettingsError(
                f"store.row_memory_mib holds only {self.capacity} rows of table '{self.name}', "
                "too few for one batch; raise it"
            )
        num = min(len(idle), max(needed, self.capacity // 8))
        victims = idle[np.argpartition(self._used_R[idle], num - 1)[:num]]
        self._before_change(victims)
        self._index.drop(victims)
        self._used_R[victims] = -1
        self._free = np.concatenate([self._free, victims])
        self.num_evicted += num


def _at(keys: Sequence[str] | I64, places: I64) -> list[str | int]:
    if isinstance(keys, np.ndarray):
        numbers: list[str | int] = keys[places].tolist()
        return numbers
    return [keys[place] for place in places.tolist()]
