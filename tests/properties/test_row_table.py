"""Whatever the batches, evictions and commits, a row's bytes are what a plain dictionary would hold."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.id_index import IdIndex
from feature_store.index import NumberIndex, SlotIndex
from feature_store.row_layout import Field, RowLayout
from feature_store.rows import RowTable

LAYOUT = RowLayout(
    (Field("embedding", 2, "learned", 1.0), Field("code", 1, "int", -1), Field("count", 1, "float", 3.0)),
    "adagrad",
)
IDS = [f"id{n}" for n in range(24)]
Calls = list[list[int]]
Batches = list[tuple[Calls, str, bool]]
MAKE_INDEX: dict[str, Callable[[int], SlotIndex]] = {
    "by-id": IdIndex,
    "by-number": lambda capacity: NumberIndex(capacity, [name.encode() for name in IDS]),
}


def dirty(table: RowTable) -> list[tuple[bytes, bytes]]:
    return [pair for chunk in table.take_dirty() for pair in chunk.pairs()]


@st.composite
def scenarios(draw: st.DrawFn) -> tuple[int, Batches]:
    """Draw a capacity, and batches of at most half as many distinct rows.

    A batch is some calls of `slots`, what is done to their rows, and whether it ends in a commit.
    """
    capacity = draw(st.sampled_from([2, 4, 10]))
    rows = st.lists(st.integers(0, capacity + capacity // 2), min_size=1, max_size=capacity // 2)
    calls = st.lists(rows, min_size=1, max_size=2).filter(
        lambda calls: len({number for call in calls for number in call}) <= capacity // 2
    )
    done = st.sampled_from(["look", "look", "update", "write", "reset"])
    return capacity, draw(st.lists(st.tuples(calls, done, st.booleans()), max_size=40))


class Model:
    """An unbounded dictionary of rows, changed one by one."""

    def __init__(self) -> None:
        self.rows: dict[int, np.ndarray] = {}

    def row(self, number: int) -> np.ndarray:
        return self.rows.setdefault(number, LAYOUT.new_rows(5, [IDS[number].encode()])[0])

    def change(self, number: int, how: str, amount: int) -> None:
        row = self.row(number)
        if how == "update":
            row += np.float32(amount)
        elif how == "write":
            row.view(np.int32)[2] = amount
            row[3] = amount
        elif how == "reset":
            row[:] = LAYOUT.new_rows(5, [IDS[number].encode()])[0]


def change(table: RowTable, slots: np.ndarray, numbers: list[int], how: str, amount: int) -> None:
    """Do to distinct rows of the table what `Model.change` does to one."""
    if how == "update":
        table.update(slots, lambda rows, at: np.add.at(rows, at, np.float32(amount)))
    elif how == "write":
        codes = np.full((len(slots), 1), amount, np.int32)
        table.write(slots, {"code": codes, "count": codes.astype(np.float32)})
    elif how == "reset":
        table.reset(slots, [IDS[number].encode() for number in numbers])


@pytest.mark.parametrize("kind", MAKE_INDEX)
@settings(deadline=None, max_examples=200)
@given(scenario=scenarios())
def test_rows_are_those_of_a_dictionary(kind: str, scenario: tuple[int, Batches]) -> None:
    capacity, batches = scenario
    stored: dict[bytes, bytes] = {}
    index = MAKE_INDEX[kind](capacity)
    table = RowTable("item", LAYOUT, index, lambda keys: [stored.get(key) for key in keys], capacity, seed=5)
    model = Model()

    def slots(numbers: list[int]) -> np.ndarray:
        if isinstance(index, NumberIndex):
            return table.slots(np.array(numbers, np.int64))
        return table.slots([IDS[number] for number in numbers])

    for amount, (calls, how, commits) in enumerate(batches, start=1):
        if table.needs_commit:
            stored.update(dirty(table))
        table.begin_batch()
        places = [slots(numbers) for numbers in calls]
        for numbers, found in zip(calls, places, strict=True):  # slots of earlier calls still hold
            expected = b"".join(model.row(number).tobytes() for number in numbers)
            assert table.rows_RW[found].tobytes() == expected
        touched = sorted({number for numbers in calls for number in numbers})
        change(table, slots(touched), touched, how, amount)
        for number in touched:
            model.change(number, how, amount)
        if commits:
            stored.update(dirty(table))
        assert table.num_resident <= capacity
    stored.update(dirty(table))
    assert stored == {IDS[number].encode(): row.tobytes() for number, row in model.rows.items()}
