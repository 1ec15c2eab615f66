"""Examples as columns: a positive, and what was known of its user at its own time.

Pure. Owns the record's layout, and the fold of a batch of user operations over user rows that fills it in. An
example is filled in before its own click enters its user's history, so that it never sees its answer. Legend:
B examples, O operations, L history length, D augmented width, C categorical values, N numeric features, H
shown negatives.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import astuple

from feature_store.rows import RowTable

NO_ITEM = -1
Records = npt.NDArray[np.void]
OpFeatures = tuple[tuple[int, ...], tuple[float, ...]]


class UserOp(Struct, frozen=True, gc=False):
    """One thing that happened to a user: a positive, an upsert of features, or a deletion."""

    user_id: str
    item: int = NO_ITEM
    """The item number of a positive; NO_ITEM for the others."""
    partition: int = 0
    offset: int = 0
    shown: tuple[int, ...] = ()
    features: OpFeatures | None = None
    """Value numbers and numbers of an upsert."""

    @property
    def is_positive(self) -> bool:
        """Whether this operation is an example to learn."""
        return self.item != NO_ITEM


class UserOps:
    """Operations in stream order, as columns of equal length; iterating gives them one by one."""

    def __init__(self, ops: Iterable[UserOp] = ()) -> None:
        self.users: list[str] = []
        self.items: list[int] = []
        self.partitions: list[int] = []
        self.offsets: list[int] = []
        self.shown: list[tuple[int, ...]] = []
        self.features: list[OpFeatures | None] = []
        for op in ops:
            self.append(op)

    @classmethod
    def of_positives(
        cls,
        users: list[str],
        items: list[int],
        partitions: list[int],
        offsets: list[int],
        shown: list[tuple[int, ...]],
    ) -> "UserOps":
        """Return positives; the lists become its own."""
        ops, features = cls(), list[OpFeatures | None]([None]) * len(users)
        ops._set_columns((users, items, partitions, offsets, shown, features))
        return ops

    def __len__(self) -> int:
        return len(self.users)

    def __iter__(self) -> Iterator[UserOp]:
        return map(UserOp, *self._columns())

    def __iadd__(self, others: "UserOps") -> "UserOps":
        for column, more in zip(self._columns(), others._columns(), strict=True):
            column.extend(more)
        return self

    def append(self, op: UserOp) -> None:
        """Put one behind the others."""
        for column, value in zip(self._columns(), astuple(op), strict=True):
            column.append(value)

    def take(self, num: int) -> "UserOps":
        """Take the first ones away."""
        taken = UserOps()
        taken._set_columns(tuple(column[:num] for column in self._columns()))
        self._set_columns(tuple(column[num:] for column in self._columns()))
        return taken

    def are_positive(self) -> npt.NDArray[np.bool_]:
        """Return which operations are examples to learn (O,)."""
        are_positive_O: npt.NDArray[np.bool_] = np.array(self.items, np.int64) != NO_ITEM
        return are_positive_O

    def deleted_users(self) -> list[str]:
        """Return whose rows the deletions among these empty."""
        if NO_ITEM not in self.items:
            return []
        each = zip(self.users, self.items, self.features, strict=True)
        return [user for user, item, features in each if item == NO_ITEM and features is None]

    def positives(self) -> "UserOps":
        """Return a copy of those that are examples to learn."""
        chosen = self.are_positive().tolist()
        positives = UserOps()
        positives._set_columns(tuple(list(compress(column, chosen)) for column in self._columns()))
        return positives

    def _columns(self) -> tuple[list[Any], ...]:
        return self.users, self.items, self.partitions, self.offsets, self.shown, self.features

    def _set_columns(self, columns: tuple[list[Any], ...]) -> None:
        self.users, self.items, self.partitions, self.offsets, self.shown, self.features = columns


@dataclass(frozen=True)
class ExampleWidths:
    """How wide the parts of an example are."""

    history: int
    augmented: int
    values: int
    numbers: int
    shown: int

    def dtype(self) -> np.dtype[np.void]:
        """The record: what the rehearsal memory keeps of each example, byte for byte."""
        return np.dtype(
            [
                ("item", "<i8"),
                ("partition", "<i8"),
                ("offset", "<i8"),
                ("history", "<i4", (self.history,)),
                ("augmented", "<f4", (self.augmented,)),
                ("values", "<i4", (self.values,)),
                ("numbers", "<f4", (self.numbers,)),
                ("shown", "<i8", (self.shown,)),
            ]
        )


class Examples(NamedTuple):
    """B examples: the users' IDs and a record array (B,)."""

    users: list[str]
    records: Records
    slots: npt.NDArray[np.int64] | None = None
    """Where the users' rows stand in memory; None, or -1, where nobody looked."""
    batch: int = -1
    """The table's batch in which somebody looked: after it the slots are others'."""

    def __len__(self) -> int:
        return len(self.users)

    @classmethod
    def concatenate(cls, parts: "Sequence[Examples]") -> "Examples":
        """Join several sets of examples in order."""
        users = [user for part in parts for user in part.users]
        slots = [np.full(len(part), -1) if part.slots is None else part.slots for part in parts]
        records = np.concatenate([part.records for part in parts])
        return cls(users, records, np.concatenate(slots), max(part.batch for part in parts))

    def first(self, num: int) -> "Examples":
        """Return the first of them."""
        slots = None if self.slots is None else self.slots[:num]
        return Examples(self.users[:num], self.records[:num], slots, self.batch)

    def find(self, table: RowTable) -> npt.NDArray[np.int64]:
        """Return where the users' rows stand (B,), looking up those that nobody has looked up."""
        if self.slots is None:
            return table.slots(self.users)
        assert self.batch in (-1, table.batch), "slots of an earlier batch"
        missing = np.flatnonzero(self.slots < 0)
        if len(missing):
            self.slots[missing] = table.slots([self.users[place] for place in missing.tolist()])
        return self.slots


def unfolded(positives: UserOps, widths: ExampleWidths) -> Examples:
    """Return what positives alone say of their examples: nothing of their users' rows, no history."""
    records = np.zeros(len(positives), widths.dtype())
    records["history"] = records["shown"] = NO_ITEM
    records["item"] = positives.items
    records["partition"] = positives.partitions
    records["offset"] = positives.offsets
    if widths.shown:
        for row, shown in enumerate(positives.shown):
            kept = shown[: widths.shown]
            records["shown"][row, : len(kept)] = kept
    return Examples(positives.users, records)


def fold_users(table: RowTable, ops: UserOps, widths: ExampleWidths) -> Examples:
    """Apply operations to their users' rows in stream order, and return the examples among them.

    Works in waves, the n-th operation of every user at once, because a user's own order matters and nobody
    else's does.
    """
    is_positive_O = ops.are_positive()
    users, records = unfolded(ops if is_positive_O.all() else ops.positives(), widths)[:2]
    if not len(ops):
        return Examples(users, records)
    slots_O = table.slots(ops.users)
    example_of_O = np.cumsum(is_positive_O) - 1
    for wave in _waves(slots_O):
        is_positive = is_positive_O[wave]
        _change_features(table, slots_O, wave[~is_positive].tolist(), ops)
        chosen = wave[is_positive]
        if len(chosen):
            _fill_and_remember(table, slots_O[chosen], records, example_of_O[chosen])
    return Examples(users, records, slots_O[is_positive_O], table.batch)


def _waves(slots_O: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Group positions so that group n holds the n-th occurrence of every slot.

    >>> [wave.tolist() for wave in _waves(np.array([5, 7, 5, 5]))]
    [[0, 1], [2], [3]]
    """
    order = np.argsort(slots_O, kind="stable")
    sorted_O = slots_O[order]
    starts = np.flatnonzero(np.r_[True, sorted_O[1:] != sorted_O[:-1]])
    rank_sorted = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    rank_O = np.empty(len(order), np.int64)
    rank_O[order] = rank_sorted
    by_rank = np.argsort(rank_O, kind="stable")
    return np.split(by_rank, np.cumsum(np.bincount(rank_O))[:-1])


def _change_features(
    table: RowTable, slots_O: npt.NDArray[np.int64], changes: list[int], ops: UserOps
) -> None:
    upserts = [i for i in changes if ops.features[i] is not None]
    if upserts:
        features = [ops.features[i] or ((), ()) for i in upserts]
        values = np.array([codes for codes, _ in features], np.int32)
        numbers = np.array([numbers for _, numbers in features], np.float32)
        table.write(slots_O[upserts], {"values": values, "numbers": numbers})
    deletes = [i for i in changes if ops.features[i] is None]
    if deletes:
        keys = [ops.users[i].encode() for i in deletes]
        table.reset(slots_O[deletes], keys)


def _fill_and_remember(
    table: RowTable, slots: npt.NDArray[np.int64], records: Records, rows: npt.NDArray[np.int64]
) -> None:
    history = table.ints(slots, "history")
    records["history"][rows] = history
    records["values"][rows] = table.ints(slots, "values")
    records["numbers"][rows] = table.floats(slots, "numbers")
    if records["augmented"].shape[1]:
        records["augmented"][rows] = table.floats(slots, "mean")
    if history.shape[1]:
        newest = records["item"][rows].astype(np.int32)[:, None]
        table.write(slots, {"history": np.concatenate([history[:, 1:], newest], axis=1)})
