"""The rehearsal memory: a bounded ring, drawn from by event, that survives commits and restarts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.configuration import LearningSettings
from feature_store.errors import StoreMismatchError
from stream_trainer.examples import Examples, ExampleWidths
from stream_trainer.rehearsal import Rehearsal

WIDTHS = ExampleWidths(history=2, augmented=3, values=1, numbers=1, shown=0)


def draw(
    rehearsal: Rehearsal, new: Examples, ratio: int, share: float = 0.0, half_life: float = 1.0, seed: int = 0
) -> Examples:
    return rehearsal.draw(
        LearningSettings(
            seed=seed,
            rehearsal_ratio=ratio,
            rehearsal_recent_share=share,
            rehearsal_half_life=half_life,
        ),
        new,
    )


def examples(offsets: range) -> Examples:
    """Return examples, each field of which tells its offset."""
    records = np.zeros(len(offsets), WIDTHS.dtype())
    for place, offset in enumerate(offsets):
        records[place] = (offset + 1000, 0, offset, [offset, -1], [offset, 0, 0.5], [offset], [np.nan], [])
    return Examples([f"ü{offset}" for offset in offsets], records)


@settings(deadline=None)
@given(st.integers(1, 9), st.lists(st.one_of(st.none(), st.integers(0, 12)), max_size=15))
def test_the_newest_are_kept_whatever_the_commits_and_restarts(
    capacity: int, stream: list[int | None]
) -> None:
    """None stands for a commit and a restart; numbers for batches of that size."""
    rehearsal = Rehearsal(capacity, WIDTHS)
    stored: dict[bytes, bytes] = {}
    added = 0
    for size in stream:
        if size is None:
            stored.update(rehearsal.take_changes())
            rehearsal = Rehearsal(capacity, WIDTHS, rehearsal.num_added, stored.items())
        else:
            for start in range(added, added + size, capacity):  # a batch never exceeds the ring
                rehearsal.add(examples(range(start, min(start + capacity, added + size))))
            added += size
        assert len(rehearsal) == min(added, capacity)
    if added:
        drawn = draw(rehearsal, examples(range(10**6, 10**6 + 300)), 1)
        kept = range(max(0, added - capacity), added)
        assert set(drawn.records["offset"].tolist()) == set(kept)
        for place, offset in enumerate(drawn.records["offset"].tolist()):
            expected = examples(range(offset, offset + 1))
            assert drawn.records[place].tobytes() == expected.records[0].tobytes()
            assert drawn.users[place] == expected.users[0]


def test_draws_belong_to_their_new_example_and_not_to_its_batch() -> None:
    rehearsal = Rehearsal(500, WIDTHS)
    rehearsal.add(examples(range(400)))
    new = examples(range(1000, 1010))
    together = draw(rehearsal, new, 3, 0.5, 100.0)
    assert len(together) == 30
    for place in (0, 4, 9):
        alone = draw(
            rehearsal, Examples(new.users[place : place + 1], new.records[place : place + 1]), 3, 0.5, 100.0
        )
        assert alone.records.tobytes() == together.records[3 * place : 3 * place + 3].tobytes()
        assert alone.users == together.users[3 * place : 3 * place + 3]
    assert draw(rehearsal, new, 3, 0.5, 100.0, seed=1).records.tobytes() != together.records.tobytes()


def test_draws_are_uniform_over_the_memory() -> None:
    """Chi-square over 40 examples, 39 degrees of freedom: beyond 85.1 once in 20,000 tries."""
    rehearsal = Rehearsal(40, WIDTHS)
    rehearsal.add(examples(range(40)))
    drawn = draw(rehearsal, examples(range(100, 2100)), 4).records["offset"]
    counts = np.bincount(drawn, minlength=40)
    assert ((counts - 200) ** 2 / 200).sum() < 85.1


@pytest.mark.parametrize(("capacity", "half_life"), [(64, 10.0), (40, 10.0), (40, 60.0)])
def test_older_ones_are_drawn_less_often_by_their_half_life(capacity: int, half_life: float) -> None:
    """Chi-square as above over the newest 40 of 64, in a ring that may have come round."""
    rehearsal = Rehearsal(capacity, WIDTHS)
    for start in range(0, 64, 16):
        rehearsal.add(examples(range(start, start + 16)))
    drawn = draw(rehearsal, examples(range(100, 4100)), 4, 1.0, half_life).records["offset"]
    counts = np.bincount(63 - drawn, minlength=64)[:40]
    edges = 0.5 ** (np.arange(41) / half_life)
    expected = counts.sum() * (edges[:-1] - edges[1:]) / (1 - edges[-1])
    assert ((counts - expected) ** 2 / expected).sum() < 85.1
    assert (counts.sum() == len(drawn)) == (capacity == 40)


@pytest.mark.parametrize(
    ("ratio", "share", "newest"), [(4, 0.5, 2), (3, 0.5, 2), (1, 0.1, 1), (2, 0.0, 0), (2, 1.0, 2)]
)
def test_the_first_of_each_favour_the_newest_as_many_as_the_share_says(
    ratio: int, share: float, newest: int
) -> None:
    """With so short a half-life a draw by age is among the newest ten."""
    rehearsal = Rehearsal(1000, WIDTHS)
    rehearsal.add(examples(range(1000)))
    drawn = draw(rehearsal, examples(range(2000, 2200)), ratio, share, 0.3).records["offset"]
    is_new = (drawn >= 990).reshape(200, ratio)
    assert is_new[:, :newest].all()
    assert is_new[:, newest:].sum() <= 20  # one in a hundred


@pytest.mark.parametrize(("capacity", "num_added", "ratio"), [(10, 0, 8), (10, 5, 0), (0, 5, 8)])
def test_nothing_is_drawn_from_nothing(capacity: int, num_added: int, ratio: int) -> None:
    rehearsal = Rehearsal(capacity, WIDTHS)
    rehearsal.add(examples(range(num_added)))
    drawn = draw(rehearsal, examples(range(50, 54)), ratio, 0.5)
    assert len(drawn) == 0
    assert drawn.records.dtype == WIDTHS.dtype()
    assert (rehearsal.take_changes() == []) == (capacity == 0 or num_added == 0)


def test_what_was_drawn_is_a_copy() -> None:
    rehearsal = Rehearsal(1, WIDTHS)
    rehearsal.add(examples(range(1)))
    drawn = draw(rehearsal, examples(range(1, 2)), 1, 0.5)
    rehearsal.add(examples(range(1, 2)))
    assert drawn.records["offset"].tolist() == [0]


def test_a_smaller_ring_or_another_layout_is_refused() -> None:
    rehearsal = Rehearsal(4, WIDTHS)
    rehearsal.add(examples(range(4)))
    stored = rehearsal.take_changes()
    with pytest.raises(StoreMismatchError, match="rehearsal_capacity"):
        Rehearsal(3, WIDTHS, 4, stored)
    with pytest.raises(StoreMismatchError, match="widths"):
        Rehearsal(4, ExampleWidths(50, 3, 1, 1, 0), 4, stored)


def test_a_deleted_users_examples_are_drawn_no_more_and_leave_the_store() -> None:
    rehearsal = Rehearsal(8, WIDTHS)
    rehearsal.add(examples(range(6)))
    stored = dict(rehearsal.take_changes())
    rehearsal.forget(["ü1", "ü4", "nobody"])
    stored.update(rehearsal.take_changes())
    assert not any(name.encode() in value for value in stored.values() for name in ("ü1", "ü4"))
    for one in (rehearsal, Rehearsal(8, WIDTHS, rehearsal.num_added, stored.items())):
        drawn = draw(one, examples(range(100, 200)), 3, share=0.5)
        assert set(drawn.records["offset"].tolist()) == {0, 2, 3, 5}
        assert 100 < len(drawn) < 300
        one.add(examples(range(6, 11)))  # 8 and 9 stand where 0 and 1 stood
        drawn = draw(one, examples(range(100, 200)), 3)
        assert set(drawn.records["offset"].tolist()) == {3, 5, 6, 7, 8, 9, 10}


@pytest.mark.parametrize("commits_first", [True, False])
def test_a_user_who_comes_back_is_rehearsed_by_what_is_new(commits_first: bool) -> None:
    rehearsal = Rehearsal(4, WIDTHS)
    rehearsal.add(Examples(["u", "v", "u"], examples(range(3)).records))
    rehearsal.forget(["u"])
    if commits_first:
        rehearsal.take_changes()
    rehearsal.add(Examples(["u", "u"], examples(range(3, 5)).records))  # the second stands where 0 stood
    drawn = draw(rehearsal, examples(range(100, 200)), 3)
    assert set(drawn.records["offset"].tolist()) == {1, 3, 4}
    rehearsal.take_changes()
    drawn = draw(rehearsal, examples(range(100, 200)), 3)
    assert set(drawn.records["offset"].tolist()) == {1, 3, 4}
