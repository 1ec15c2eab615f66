"""The fold of operations over users' rows: equal to a plain loop, and never a look into the future."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from learning import World, configuration, user_table
from msgspec.structs import replace

from feature_store.row_layout import Field, RowLayout
from stream_trainer.examples import NO_ITEM, Examples, ExampleWidths, UserOp, UserOps, fold_users

LENGTH, WIDTHS = 3, ExampleWidths(history=3, augmented=2, values=1, numbers=1, shown=2)
LAYOUT = RowLayout(
    (
        Field("mean", 2, "float"),
        Field("mean_count", 1, "float"),
        Field("history", LENGTH, "int", -1),
        Field("values", 1, "int", -1),
        Field("numbers", 1, "float", float("nan")),
    ),
    "adam",
)

USERS = st.sampled_from(["a", "b", "c", "d"])
OPS = st.lists(
    st.one_of(
        st.builds(
            lambda user, item, offset, shown: UserOp(user, item, 1, offset, tuple(shown)),
            USERS,
            st.integers(0, 5),
            st.integers(0, 2**40),
            st.lists(st.integers(0, 5), max_size=4),
        ),
        st.builds(
            lambda user, value, number: UserOp(user, features=((value,), (number,))),
            USERS,
            st.integers(-1, 5),
            st.sampled_from([0.5, 2.0, float("nan")]),
        ),
        USERS.map(UserOp),
    ),
    max_size=20,
)


class Loop:
    """The same fold, one operation after the other over dictionaries."""

    def __init__(self, means: dict[str, float]) -> None:
        self.users: dict[str, dict[str, Sequence[float]]] = {}
        for user, mean in means.items():
            self.row(user)["mean"] = [mean, -mean]

    def row(self, user: str) -> dict[str, Sequence[float]]:
        fresh = {"mean": [0.0, 0.0], "history": [-1] * LENGTH, "values": [-1], "numbers": [float("nan")]}
        return self.users.setdefault(user, fresh)

    def fold(self, ops: list[UserOp]) -> list[tuple[object, ...]]:
        examples: list[tuple[object, ...]] = []
        for op in ops:
            row = self.row(op.user_id)
            if op.item != NO_ITEM:
                shown = [*op.shown, -1, -1][:2]
                known = [list(row[name]) for name in ("history", "mean", "values", "numbers")]
                examples.append((op.user_id, op.item, 1, op.offset, *known, shown))
                row["history"] = [*row["history"][1:], op.item]
            elif op.features is not None:
                row["values"], row["numbers"] = list(op.features[0]), list(op.features[1])
            else:
                del self.users[op.user_id]
        return examples


def as_tuples(examples: Examples) -> list[tuple[object, ...]]:
    names = ("history", "augmented", "values", "numbers", "shown")
    return [
        (
            user,
            *(int(record[n]) for n in ("item", "partition", "offset")),
            *(record[n].tolist() for n in names),
        )
        for user, record in zip(examples.users, examples.records, strict=True)
    ]


@settings(deadline=None)
@given(st.lists(OPS, min_size=1, max_size=3), st.dictionaries(USERS, st.sampled_from([0.25, 3.0])))
def test_the_fold_is_a_plain_loop(batches: list[list[UserOp]], means: dict[str, float]) -> None:
    table, loop = user_table(LAYOUT, 16), Loop(means)
    for user, mean in means.items():
        table.write(table.slots([user]), {"mean": np.array([[mean, -mean]], np.float32)})
    for ops in batches:
        table.begin_batch()
        assert repr(as_tuples(fold_users(table, UserOps(ops), WIDTHS))) == repr(
            loop.fold(ops)
        )  # nan equals nan
    for user in sorted(loop.users):
        slot = table.slots([user])
        assert table.ints(slot, "history")[0].tolist() == loop.row(user)["history"]
        assert table.ints(slot, "values")[0].tolist() == loop.row(user)["values"]
        assert table.floats(slot, "mean")[0].tolist() == loop.row(user)["mean"]


def test_users_are_found_where_they_stand_looked_up_or_not_and_only_in_their_batch() -> None:
    table = user_table(LAYOUT)
    ops = UserOps(UserOp(user, 1, 0, n) for n, user in enumerate(["a", "b", "a"]))
    new = fold_users(table, ops, WIDTHS)
    rehearsed = Examples(["c", "b"], new.records[:2])
    both = Examples.concatenate([new, rehearsed])
    assert both.find(table).tolist() == table.slots(["a", "b", "a", "c", "b"]).tolist()
    assert both.first(2).find(table).tolist() == table.slots(["a", "b"]).tolist()
    assert rehearsed.find(table).tolist() == table.slots(["c", "b"]).tolist()
    table.begin_batch()
    with pytest.raises(AssertionError, match="earlier batch"):
        both.find(table)


def test_an_example_does_not_hold_its_own_item() -> None:
    table = user_table(LAYOUT, 16)
    ops = UserOps([UserOp("a", 7, 0, 1), UserOp("b", 8, 0, 2), UserOp("a", 9, 0, 3)])
    assert fold_users(table, ops, WIDTHS).records["history"].tolist() == [[-1] * 3, [-1] * 3, [-1, -1, 7]]
    ops = UserOps([UserOp("a", 5, 0, 4)])
    assert fold_users(table, ops, WIDTHS).records["history"].tolist() == [[-1, 7, 9]]


def test_every_part_may_be_absent() -> None:
    fields = (Field("history", 0, "int"), Field("values", 0, "int"), Field("numbers", 0, "float"))
    table = user_table(RowLayout(fields, "adam"), 4)
    ops = UserOps([UserOp("a", 1), UserOp("a", features=((), ())), UserOp("a"), UserOp("a", 2)])
    examples = fold_users(table, ops, ExampleWidths(0, 0, 0, 0, 0))
    assert examples.records["item"].tolist() == [1, 2]


SETTINGS = (
    "model.hidden=[8]",
    "model.history_length=5",
    "learning.batch_size=6",
    "learning.shared_negatives=8",
    "learning.rehearsal_ratio=3",
    "learning.rehearsal_capacity=40",
    'features.user_categorical={country=1}',
    'features.user_numeric=["age"]',
)  # fmt: skip
NUM_ITEMS = 150


def stream(world: World, seed: int) -> list[UserOp]:
    """Return clicks, each on an item of its own, among upserts and deletions of users."""
    rng = np.random.default_rng(seed)
    ops: list[UserOp] = []
    for item in rng.permutation(NUM_ITEMS).tolist():
        user = f"u{rng.integers(8)}"
        if rng.random() < 0.2:
            ops.append(world.upsert(user, {"country": f"c{rng.integers(9)}", "age": float(rng.integers(99))}))
        if rng.random() < 0.05:
            ops.append(UserOp(user))
        ops.append(world.click(user, f"i{item}", len(ops)))
    return ops


def learned(world: World, ops: list[UserOp]) -> list[tuple[Examples, int]]:
    world.add_items({f"i{n}": {"category": f"c{n % 3}"} for n in range(NUM_ITEMS)})
    world.learn_all(ops)
    return world.steps


def known_until(steps: list[tuple[Examples, int]], offset: int) -> list[tuple[str, bytes]]:
    """Return users and bytes of all examples up to an event, the rehearsed that accompany them included."""
    known = []
    for examples, num_new in steps:
        early = int((examples.records["offset"][:num_new] <= offset).sum())
        ratio = (len(examples) - num_new) // num_new
        places = [*range(early), *range(num_new, num_new + ratio * early)]
        known += [(examples.users[p], examples.records[p].tobytes()) for p in places]
        if early < num_new:
            break
    return known


@pytest.mark.parametrize("place", [1, 40, 41, 100])
def test_nothing_that_comes_later_changes_what_an_example_sees(place: int) -> None:
    """Everything after a place of the stream is replaced: examples up to it, new or rehearsed, stay."""
    first, second = World(configuration(*SETTINGS)), World(configuration(*SETTINGS))
    before = stream(first, seed=1)
    offset = max(op.offset for op in before[:place] if op.is_positive)
    for world in (first, second):
        stream(world, seed=1)  # the same numbers of items and values
    after = before[:place] + [replace(op, offset=op.offset + 1000) for op in stream(second, seed=2)]
    one, other = known_until(learned(first, before), offset), known_until(learned(second, after), offset)
    assert len(one) > place / 2
    assert one == other
    assert known_until(first.steps, 10**6) != known_until(second.steps, 10**6)


def test_histories_and_means_are_of_the_past_also_through_rehearsal() -> None:
    """Every item is clicked once, so each item of a history tells when it was learned."""
    world = World(configuration(*SETTINGS))
    ops = stream(world, seed=3)
    when = {op.item: op.offset for op in ops if op.is_positive}
    steps = learned(world, ops)
    num_rehearsed = 0
    for examples, num_new in steps:
        num_rehearsed += len(examples) - num_new
        for record in examples.records:
            past = [when[item] for item in record["history"].tolist() if item >= 0]
            assert past == sorted(past)
            assert all(offset < record["offset"] for offset in past)
            assert past or not record["augmented"].any()  # no mean without a past
    assert num_rehearsed > 300
    assert any(record["augmented"].any() for examples, _ in steps for record in examples.records)
