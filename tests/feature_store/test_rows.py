"""Rows: their layout, what new ones hold, and what the bounded tier of memory promises."""

from collections.abc import Callable
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import SettingsError, StoreCorruptError
from feature_store.id_index import IdIndex
from feature_store.index import NumberIndex, SlotIndex
from feature_store.row_layout import Field, RowLayout
from feature_store.rows import RowTable

FIELDS = (
    Field("code", 2, "int", -1),
    Field("embedding", 3, "learned", 0.5),
    Field("price", 1, "float", float("nan")),
    Field("augmented", 2, "learned"),
    Field("count", 1, "float", 7.0),
)
LAYOUT = RowLayout(FIELDS, "adam")
PLAIN = RowLayout((Field("value", 1, "float"),), "adam")
KEYS = ["a", "b", "c"]


def setting(value: np.ndarray | float) -> Callable[[np.ndarray, np.ndarray], None]:
    """Return a change that sets rows where they stand."""

    def change(rows: np.ndarray, slots: np.ndarray) -> None:
        rows[slots] = value

    return change


def dirty(table: RowTable) -> list[tuple[bytes, bytes]]:
    return [pair for chunk in table.take_dirty() for pair in chunk.pairs()]


class Stored:
    """Rows as the store has them, and what was asked for."""

    def __init__(self) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.asked: list[list[bytes]] = []

    def read(self, keys: list[bytes]) -> list[bytes | None]:
        self.asked.append(keys)
        return [self.rows.get(key) for key in keys]

    def table(self, capacity: int, layout: RowLayout = PLAIN, index: SlotIndex | None = None) -> RowTable:
        return RowTable("user", layout, index or IdIndex(capacity), self.read, capacity, seed=0)


def put(table: RowTable, keys: list[str], value: float) -> None:
    """Write one number into rows."""
    slots = table.slots(keys)
    table.write(slots, {"value": np.full((len(keys), 1), value, np.float32)})


def test_learned_fields_come_first_then_plain_ones_then_the_optimiser() -> None:
    spans = {field.name: LAYOUT.span(field.name) for field in FIELDS}
    assert spans == {
        "embedding": slice(0, 3),
        "augmented": slice(3, 5),
        "code": slice(5, 7),
        "price": slice(7, 8),
        "count": slice(8, 9),
    }
    assert (LAYOUT.num_learned, LAYOUT.num_values) == (5, 9)
    assert LAYOUT.width == 9 + 2 * 5 + 1
    assert RowLayout(FIELDS, "adagrad").width == 9 + 1
    assert PLAIN.width == 1
    with pytest.raises(KeyError, match="nothing"):
        LAYOUT.span("nothing")


def test_new_rows_hold_noise_of_their_id_and_constants() -> None:
    names = [f"id{n}".encode() for n in range(500)]
    rows = LAYOUT.new_rows(0, names)
    embedding = rows[:, :3]
    assert embedding.min() >= -0.5
    assert embedding.max() <= 0.5
    assert abs(embedding.mean()) < 0.03
    assert abs(embedding.std() - 0.5 / 3**0.5) < 0.02
    assert len(np.unique(embedding, axis=0)) == 500
    assert (rows[:, 3:5] == 0).all()
    assert (rows.view(np.int32)[:, 5:7] == -1).all()
    assert np.isnan(rows[:, 7]).all()
    assert (rows[:, 8] == 7).all()
    assert (rows[:, 9:] == 0).all()


def test_new_rows_depend_on_seed_and_id_alone() -> None:
    names = [b"a", b"b", b"c"]
    rows = LAYOUT.new_rows(0, names)
    assert LAYOUT.new_rows(0, names[::-1]).tobytes() == rows[::-1].tobytes()
    assert LAYOUT.new_rows(0, [b"b"]).tobytes() == rows[1:2].tobytes()
    assert not np.array_equal(LAYOUT.new_rows(1, names)[:, :3], rows[:, :3])


@pytest.mark.parametrize("order", [KEYS, KEYS[::-1]])
def test_arrival_order_does_not_matter(order: list[str]) -> None:
    table = Stored().table(10, LAYOUT)
    for key in order:
        table.slots([key])
    assert table.rows_RW[table.slots(KEYS)].tobytes() == LAYOUT.new_rows(
        0, [key.encode() for key in KEYS]
    ).tobytes()  # fmt: skip


def test_a_key_that_repeats_in_a_call_is_one_row() -> None:
    table = Stored().table(4)
    slots = table.slots(["a", "b", "a", "a"])
    assert slots[0] == slots[2] == slots[3] != slots[1]
    assert table.num_resident == 2
    assert table.slots(["a"])[0] == slots[0]


def test_fields_are_written_and_read_back_by_kind() -> None:
    table = Stored().table(4, LAYOUT)
    slots = table.slots(KEYS)
    codes = np.array([[1, 2], [2**31 - 1, -5]], np.int32)
    table.write(slots[:2], {"code": codes, "price": np.array([[1.5], [-2.0]], np.float32)})
    assert table.ints(slots[:2], "code").tolist() == codes.tolist()
    assert table.floats(slots[:2], "price").tolist() == [[1.5], [-2.0]]
    assert table.ints(slots[2:], "code").tolist() == [[-1, -1]]
    rows = table.rows_RW[slots]
    rows[:, 0] = 9.0
    assert table.floats(slots, "embedding")[0, 0] != 9.0  # a copy
    table.update(slots, setting(rows))
    assert table.floats(slots, "embedding")[:, 0].tolist() == [9.0] * 3


def test_reset_makes_a_row_new_again() -> None:
    table = Stored().table(4, LAYOUT)
    slots = table.slots(KEYS)
    table.update(slots, setting(1.0))
    dirty(table)
    table.reset(slots[1:2], [b"b"])
    assert dirty(table) == [(b"b", LAYOUT.new_rows(0, [b"b"]).tobytes())]


def test_what_changed_is_handed_out_once() -> None:
    table = Stored().table(8)
    put(table, ["a", "b"], 1.0)
    assert dict(dirty(table)) == {b"a": np.float32(1).tobytes(), b"b": np.float32(1).tobytes()}
    assert dirty(table) == []
    put(table, ["b"], 2.0)
    table.slots(["a"])
    assert table.num_dirty == 1
    assert dirty(table) == [(b"b", np.float32(2).tobytes())]


def test_a_commit_is_needed_when_more_than_half_of_memory_is_dirty() -> None:
    table = Stored().table(4)
    table.slots(["a", "b"])
    assert not table.needs_commit
    table.slots(["c"])
    assert table.needs_commit
    dirty(table)
    assert not table.needs_commit


def test_the_row_unused_for_longest_gives_way_and_comes_back_as_it_was() -> None:
    stored = Stored()
    table = stored.table(4)
    for batch, key in enumerate("abcd"):
        table.begin_batch()
        put(table, [key], batch)
    stored.rows.update(dirty(table))
    table.begin_batch()
    table.slots(["a"])
    table.begin_batch()
    put(table, ["e"], 9.0)
    stored.asked.clear()
    assert table.floats(table.slots(["a", "c", "d"]), "value")[:, 0].tolist() == [0, 2, 3]
    assert stored.asked == []
    table.begin_batch()
    assert table.floats(table.slots(["b"]), "value")[:, 0].tolist() == [1]
    assert stored.asked == [[b"b"]]
    assert (table.num_evicted, table.num_read, table.num_resident) == (2, 1, 4)


def test_loading_some_rows_of_a_call_evicts_none_of_the_others() -> None:
    """`a` is in memory and unused for longest: bringing `c` in must not take its place within the call."""
    stored = Stored()
    table = stored.table(2)
    put(table, ["a"], 1.0)
    table.begin_batch()
    put(table, ["b"], 2.0)
    stored.rows.update(dirty(table))
    table.begin_batch()
    slots = table.slots(["a", "c"])
    assert slots[0] != slots[1]
    assert table.floats(slots, "value")[:, 0].tolist() == [1, 0]


def test_rows_that_are_not_in_memory_are_named_as_the_store_knows_them() -> None:
    stored = Stored()
    table = stored.table(4)
    put(table, ["a", "ü"], 1)
    assert table.absent(["b", "a", "é", "ü"]) == [b"b", "é".encode()]
    numbered = stored.table(4, index=NumberIndex(4, [b"x", b"y", b"z"]))
    numbered.slots(np.array([1]))
    assert numbered.absent(np.array([0, 1, 2])) == [b"x", b"z"]
    assert stored.asked == [[b"a", "ü".encode()], [b"y"]], "it reads nothing"


def test_peeking_shows_rows_in_memory_and_those_at_hand_and_brings_none_in() -> None:
    stored = Stored()
    table = stored.table(4, LAYOUT)
    table.write(table.slots(["here"]), {"code": np.array([[7, 8]], np.int32)})
    row = LAYOUT.new_rows(0, [b"early"])[0]
    row[LAYOUT.span("code")].view(np.int32)[:] = [5, 6]
    damaged = row.tobytes()[:-4]  # refused when it is to be learned
    codes = table.peek(["early", "here", "nobody", "d"], "code", lambda _: [row.tobytes(), None, damaged])
    assert codes.tolist() == [[5, 6], [7, 8], [-1, -1], [-1, -1]]
    assert (table.num_resident, stored.asked) == (1, [[b"here"]])


def test_dirty_rows_and_rows_of_this_batch_never_give_way() -> None:
    stored = Stored()
    table = stored.table(2)
    put(table, ["a"], 1.0)
    table.begin_batch()
    put(table, ["b"], 2.0)
    table.begin_batch()
    with pytest.raises(SettingsError, match=r"store\.row_memory_mib .* 2 rows of table 'user'"):
        table.slots(["c"])
    stored.rows.update(dirty(table))
    table.slots(["a", "b"])
    with pytest.raises(SettingsError, match="too few for one batch"):
        table.slots(["c"])
    assert table.floats(table.slots(["a", "b"]), "value")[:, 0].tolist() == [1, 2]


def test_a_stored_row_of_another_width_is_refused() -> None:
    stored = Stored()
    stored.rows[b"a"] = bytes(8)
    with pytest.raises(StoreCorruptError, match=r"'user'.*1 floats"):
        stored.table(2).slots(["a"])


def test_numbers_find_their_rows_beyond_the_first_thousand() -> None:
    ids = [b"i%d" % n for n in range(1000)]
    table = Stored().table(3000, index=NumberIndex(3000, ids))
    before = table.slots(np.arange(1000))
    ids += [b"i%d" % n for n in range(1000, 2500)]
    after = table.slots(np.arange(2500))
    assert after[:1000].tolist() == before.tolist()
    assert len(set(after.tolist())) == 2500
    assert dict(dirty(table)).keys() == set(ids)


CHANGES = st.lists(
    st.tuples(st.sampled_from(["write", "update", "reset", "load", "pull"]), st.sets(st.integers(0, 19))),
    max_size=30,
)


@given(dirty_keys=st.sets(st.integers(0, 9)), changes=CHANGES)
def test_rows_on_their_way_out_are_handed_out_once_as_they_were(
    dirty_keys: set[int], changes: list[tuple[str, set[int]]]
) -> None:
    """Ten rows fit, of twenty: some are evicted on their way, and read again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("feature_store.rows._CHUNK_ROWS", 2)
        stored = Stored()
        table = stored.table(10)
        put(table, [str(key) for key in dirty_keys], 1.0)
        leaving, left = table.take_dirty(), list[tuple[bytes, bytes]]()

        def read(keys: list[bytes]) -> list[bytes | None]:
            """Take all that is left before a key is read that may be among it."""
            if {int(key) for key in keys} & dirty_keys:
                left.extend(pair for chunk in leaving for pair in chunk.pairs())
            return [dict(left).get(key) for key in keys]

        table._read = read
        value = 1.0
        for what, numbers in changes:
            table.begin_batch()
            if what == "pull":
                left.extend(pair for chunk in list(islice(leaving, 1)) for pair in chunk.pairs())
                continue
            keys = [str(number) for number in numbers][: table.capacity - table.num_dirty]
            slots, value = table.slots(keys), value + 1
            if what == "write":
                table.write(slots, {"value": np.full((len(slots), 1), value, np.float32)})
            elif what == "update":
                table.update(slots, setting(value))
            elif what == "reset":
                table.reset(slots, [key.encode() for key in keys])
        left.extend(pair for chunk in leaving for pair in chunk.pairs())
        assert sorted(left) == sorted((str(key).encode(), np.float32(1).tobytes()) for key in dirty_keys)
