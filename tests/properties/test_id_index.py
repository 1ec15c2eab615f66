"""Whatever comes, goes and comes back, an ID's place is what a dictionary would say."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store import id_index
from feature_store.id_index import IdIndex

NUM_PLACES = 12
Steps = list[tuple[list[str], set[int]]]
IDS = st.one_of(
    st.text(max_size=3),  # often equal, or the beginning of another
    st.text("ab", min_size=7, max_size=10),  # about eight bytes, of which a hash takes as many at once
    st.text("aü€𝄞", max_size=6),  # one to four bytes each
)
# What is put (as many IDs as there is room for), and which of the places are dropped then.
STEPS = st.lists(st.tuples(st.lists(IDS, max_size=6, unique=True), st.sets(st.integers(0, 11), max_size=6)))


# Bits that all hashes have: none; the upper ones, by which a search begins; all of them.
@pytest.mark.parametrize("alike", [0, (1 << 64) - (1 << 34), (1 << 64) - 1])
@settings(deadline=None)
@given(steps=STEPS, asked=st.lists(IDS))
def test_places_are_those_of_a_dictionary(alike: int, steps: Steps, asked: list[str]) -> None:
    real = id_index._hash
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_index, "_LEAST", 2)  # tables and texts grow, and are tidied, early
        patch.setattr(id_index, "_hash", lambda *given: real(*given) | np.uint64(alike))
        check(steps, asked)


def check(steps: Steps, asked: list[str]) -> None:
    index, place_of = IdIndex(1), dict[str, int]()
    for ids, dropped in steps:
        free = sorted(set(range(NUM_PLACES)) - set(place_of.values()), reverse=True)
        new = [name for name in ids if name not in place_of][: len(free)]
        index.put(new, np.array(free[: len(new)], np.int64))
        place_of.update(zip(new, free, strict=False))
        gone = [name for name, place in place_of.items() if place in dropped]
        index.drop(np.array([place_of.pop(name) for name in gone], np.int64))
        every = [*place_of, *gone, *asked]
        assert index.find(every).tolist() == [place_of.get(name, -1) for name in every]
        there = np.array(list(place_of.values()), np.int64)
        assert index.keys_at(there) == index.stored_keys(list(place_of)) == [n.encode() for n in place_of]


def test_many_ids_grow_it_and_what_is_forgotten_leaves_no_text() -> None:
    ids = [f"user-{n}" for n in range(50_000)]
    index = IdIndex()
    for start in range(0, 50_000, 7_000):
        chunk = ids[start : start + 7_000]
        index.put(chunk, np.arange(start, start + len(chunk)))
    assert index.find(ids).tolist() == list(range(50_000))
    index.drop(np.arange(0, 50_000, 5))
    assert index.find(ids).tolist() == [-1 if n % 5 == 0 else n for n in range(50_000)]
    for _ in range(20):  # the same rows give way and come back, as in a small memory
        index.put(ids[0:50_000:5], np.arange(0, 50_000, 5))
        index.drop(np.arange(0, 50_000, 5))
    assert len(index._text) < 4 * sum(map(len, ids))
    assert index.find(["user-1", "user-"]).tolist() == [1, -1]


def test_what_has_no_id_cannot_be_dropped() -> None:
    index = IdIndex()
    index.put(["a", "b"], np.array([3, 5]))
    with pytest.raises(AssertionError, match="without an ID"):
        index.drop(np.array([4]))
    with pytest.raises(KeyError, match="not there"):
        index.drop(np.array([3, 3]))
