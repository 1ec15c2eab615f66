"""The log of changed items against a plain list."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store import item_changes
from feature_store.item_changes import ItemChanges


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6), st.integers(0, 30))
def test_it_tells_what_changed_after_a_place_as_far_as_it_remembers(
    commits: list[list[int]], total: int
) -> None:
    """Whatever was noted at once, and however often it was stored in between."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(item_changes, "_KEPT", 7)
        changes, plain = ItemChanges(), list[int]()
        for numbers in commits:
            changes.add(numbers)
            plain += numbers
            changes = ItemChanges(changes.encode())
        assert changes.total == len(plain)
        first = max(total, len(plain) - 7)
        assert changes.since(total).tolist() == sorted(set(plain[first:]))
        one_by_one = ItemChanges()
        for number in plain:
            one_by_one.add([number])
        assert one_by_one.encode() == changes.encode()
