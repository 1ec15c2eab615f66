"""How alike lists are, against counting every pair of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from simulators.variety import Variety, top_items, variety


@given(data=st.data(), num_items=st.integers(2, 12), num_users=st.integers(2, 6))
def test_overlap_and_coverage_are_those_of_all_pairs(data: st.DataObject, num_items: int, num_users: int):
    num_places = data.draw(st.integers(1, num_items))
    lists = [
        data.draw(st.permutations(range(num_items)).map(lambda items: items[:num_places]))
        for _ in range(num_users)
    ]
    shared = [
        len(set(one) & set(other)) / num_places
        for i, one in enumerate(lists)
        for j, other in enumerate(lists)
        if i != j
    ]
    found = variety(np.array(lists), num_items)
    assert found.overlap == pytest.approx(np.mean(shared))
    assert found.coverage == pytest.approx(len(set().union(*lists)) / num_items)


def test_lists_all_alike_and_all_apart():
    assert variety(np.tile([0, 1], (3, 1)), 4) == Variety(0.5, 1.0)
    assert variety(np.arange(6).reshape(3, 2), 6) == Variety(1.0, 0.0)
    assert np.isnan(variety(np.array([[0, 1]]), 4).overlap)


@given(
    scores=arrays(np.float32, (4, 9), elements=st.floats(-10, 10, width=32), unique=True),
    excluded=st.lists(st.sets(st.integers(0, 8), max_size=6), min_size=4, max_size=4),
    num_places=st.integers(1, 3),
)
def test_top_items_are_the_first_of_all_sorted(
    scores: np.ndarray, excluded: list[set[int]], num_places: int
) -> None:
    before = scores.copy()
    shown = top_items(scores, [sorted(items) for items in excluded], num_places)
    for row, out, items in zip(before, excluded, shown.tolist(), strict=True):
        order = [item for item in np.argsort(-row).tolist() if item not in out]
        assert sorted(items) == sorted(order[:num_places])
    assert np.array_equal(scores, before)
