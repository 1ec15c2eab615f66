"""Numbers for life, in the order of first appearance, through any number of commits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import StoreCorruptError
from feature_store.numbering import Numbering


def test_numbers_follow_first_appearance_and_looking_gives_none() -> None:
    numbering = Numbering()
    assert numbering.find(["b"]).tolist() == [-1]
    assert numbering.number("b") == 0
    assert numbering.numbers(["a", "b", "ü", "a"]).tolist() == [1, 0, 2, 1]
    assert numbering.find(["a", "c"]).tolist() == [1, -1]
    assert len(numbering) == 3
    assert [numbering.name(number) for number in range(3)] == ["b", "a", "ü"]
    assert numbering.take_changes() == [
        (b"\0\0\0\0", b"b"),
        (b"\0\0\0\1", b"a"),
        (b"\0\0\0\2", "ü".encode()),
    ]
    assert numbering.take_changes() == []


@given(st.lists(st.one_of(st.none(), st.lists(st.text(max_size=2), max_size=6))))
def test_commits_and_restarts_change_no_number(stream: list[list[str] | None]) -> None:
    """None stands for a commit and a restart; the reference is one dictionary."""
    expected: dict[str, int] = {}
    stored: dict[bytes, bytes] = {}
    numbering = Numbering()
    for names in stream:
        if names is None:
            stored.update(numbering.take_changes())
            numbering = Numbering(reversed(stored.items()))
        else:
            numbers = [expected.setdefault(name, len(expected)) for name in names]
            assert numbering.numbers(names).tolist() == numbers
    assert numbering.keys == [name.encode() for name in expected]


@pytest.mark.parametrize("numbers", [[1], [0, 2]])
def test_a_gap_is_corruption(numbers: list[int]) -> None:
    with pytest.raises(StoreCorruptError, match="gaps"):
        Numbering((n.to_bytes(4, "big"), b"x%d" % n) for n in numbers)
