"""The queue of facts against a plain list of what happened, one by one."""

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import StoreCorruptError
from stream_trainer.chunk import Changed, Fact, Joined, Positives, as_facts, decode_remainder
from stream_trainer.waiting import Waiting

HAPPENED = st.lists(
    st.one_of(
        st.builds(
            Joined,
            st.sampled_from(["u", "v"]),
            st.sampled_from(["a", "b"]),
            st.integers(0, 3),
            st.integers(0, 2**40),
            st.sampled_from([(), ("c",), ("c", "d")]),
        ),
        st.builds(Changed, st.booleans(), st.sampled_from(["u", "a"]), st.none()),
    ),
    max_size=12,
)


def one_by_one(facts: Iterable[Fact]) -> list[Joined | Changed]:
    happened: list[Joined | Changed] = []
    for fact in facts:
        if isinstance(fact, Changed):
            happened.append(fact)
        else:
            columns = (fact.user_ids, fact.item_ids, fact.partitions, fact.offsets, fact.shown)
            happened += [Joined(*row) for row in zip(*columns, strict=True)]
    return happened


@given(st.lists(HAPPENED, max_size=4), st.lists(st.integers(0, 6), max_size=8))
def test_it_is_a_plain_queue(chunks: list[list[Joined | Changed]], sizes: list[int]) -> None:
    """However facts come, and however many are taken at a time; whatever comes in between."""
    waiting, plain = Waiting(), list[Joined | Changed]()
    for size in sizes:
        if chunks:
            chunk = chunks.pop()
            waiting.add(as_facts(chunk))
            plain += chunk
        assert len(waiting) == len(plain)
        assert one_by_one(waiting.rest()) == plain
        assert one_by_one([waiting.coming(size)]) == [one for one in plain[:size] if isinstance(one, Joined)]
        if not plain:
            continue
        change, first = waiting.change, plain[0]
        assert change == (first if isinstance(first, Changed) else None)
        if change is not None:
            waiting.pop_change()
            plain.pop(0)
            continue
        taken = one_by_one([waiting.take_positives(size)])
        end = next((n for n, one in enumerate(plain) if isinstance(one, Changed)), len(plain))
        assert taken == plain[: min(size, end)]
        del plain[: len(taken)]


@given(HAPPENED, st.integers(0, 12))
def test_what_waits_is_the_same_in_a_commit_whatever_it_came_in(
    happened: list[Joined | Changed], cut: int
) -> None:
    """Chunks end where time says; the bytes of a commit are not to tell."""
    cut_up = Waiting([*as_facts(happened[:cut]), *as_facts(happened[cut:])])
    assert cut_up.rest() == as_facts(happened) == Waiting(as_facts(happened)).rest()


def test_what_is_told_of_waiting_facts_does_not_change_them() -> None:
    waiting = Waiting([Positives(["u"], ["a"], [0], [1], [()]), Positives(["v"], ["b"], [0], [2], [()])])
    for told in (waiting.rest()[0], waiting.coming(1)):
        assert isinstance(told, Positives)
        told.user_ids.append("w")
    assert waiting.take_positives(9).user_ids == ["u", "v"]


def test_a_remainder_in_another_form_is_refused_by_saying_so() -> None:
    with pytest.raises(StoreCorruptError, match=r"waits to be learned .*new store\.path"):
        decode_remainder(b"\x92\x91\x95\x00\xa1u\xa1a\x00\x00\x93\x00\x00\x00")
