"""The join's rules, one by one, on logs joined by hand."""

from typing import Any

import msgpack
import pytest

from feature_store.configuration import JoinSettings
from feature_store.errors import StoreCorruptError
from feature_store.schema import Click, Impression
from feature_store.sequenced import GatheredChanges, decode_changes
from stream_trainer.chunk import Joined
from stream_trainer.join import JoinCounts, Joiner

WINDOW_MS = 1_000


def make(**settings: Any) -> Joiner:
    return Joiner(JoinSettings(attribution_window_seconds=WINDOW_MS / 1000, **settings))


def show(
    joiner: Joiner, name: str = "i", ts_ms: int = 0, items: str = "abc", user: str = "u"
) -> list[Joined]:
    event = Impression(impression_id=name, user_id=user, ts_ms=ts_ms, items=list(items))
    return list(joiner.impression(event))


def click(
    joiner: Joiner, item: str = "a", ts_ms: int = 10, name: str = "i", user: str = "u", offset: int = 7
) -> list[Joined]:
    event = Click(impression_id=name, user_id=user, item_id=item, ts_ms=ts_ms)
    return joiner.click(event, 1, offset)


def stored(joiner: Joiner) -> list[tuple[bytes, bytes]]:
    """Return what a first commit would write."""
    changes = GatheredChanges(None)
    changes.add(joiner.take_changes())
    return [(key, value) for key, value in changes.pairs() if value is not None]


def counts(joiner: Joiner) -> dict[str, int]:
    return {name: number for name, number in vars(joiner.counts).items() if number}


def test_a_click_is_a_positive_at_once_with_where_it_stood_in_the_log() -> None:
    joiner = make()
    assert show(joiner, ts_ms=5) == []
    assert click(joiner, "b", ts_ms=10) == [Joined("u", "b", partition=1, offset=7)]
    assert joiner.counts == JoinCounts(joined=1)


def test_a_click_that_came_first_waits_for_its_impression() -> None:
    joiner = make()
    assert click(joiner, "b", ts_ms=20, offset=1) == click(joiner, "a", ts_ms=10, offset=2) == []
    assert joiner.num_clicks == 2
    assert [(p.item_id, p.offset) for p in show(joiner)] == [("b", 1), ("a", 2)]
    assert (joiner.num_clicks, joiner.num_impressions) == (0, 1)


def test_at_close_emits_clicks_in_slate_order_with_what_was_not_clicked() -> None:
    joiner = make(emit="at_close")
    show(joiner, items="abacbd")
    assert click(joiner, "c", ts_ms=1, offset=1) == click(joiner, "a", ts_ms=2, offset=2) == []
    assert joiner.advance(WINDOW_MS) == []  # the window includes its end
    assert joiner.advance(WINDOW_MS + 1) == [
        Joined("u", "a", 1, 2, ("b", "d")),
        Joined("u", "c", 1, 1, ("b", "d")),
    ]
    assert counts(joiner) == {"joined": 2, "closed": 1}


def test_an_impression_without_clicks_closes_silently() -> None:
    joiner = make(emit="at_close")
    show(joiner)
    assert joiner.advance(10_000) == []
    assert (joiner.num_impressions, joiner.counts.closed) == (0, 1)


def test_duplicates_are_dropped_and_counted() -> None:
    joiner = make()
    show(joiner)
    assert show(joiner, items="xyz") == []
    assert len(click(joiner, "a")) == 1
    assert click(joiner, "a", ts_ms=11) == []
    assert click(joiner, "x") == []  # not in the slate that came first
    click(joiner, name="other")
    click(joiner, name="other")
    assert counts(joiner) == {"joined": 1, "duplicates": 3, "conflicting": 1, "unmatched": 1}


@pytest.mark.parametrize("late", ["train", "drop"])
@pytest.mark.parametrize("emit", ["on_click", "at_close"])
def test_a_late_click_is_learned_once_or_leaves_no_trace(emit: str, late: str) -> None:
    joiner = make(emit=emit, late=late)
    show(joiner)
    on_time = click(joiner, "b", ts_ms=WINDOW_MS)
    first = click(joiner, "a", ts_ms=WINDOW_MS + 1)
    again = click(joiner, "a", ts_ms=WINDOW_MS + 2)
    closed = joiner.advance(10_000)
    assert again == []
    if late == "train":
        assert [(p.item_id, p.shown) for p in first] == [("a", ())]
        assert counts(joiner) == {"joined": 1, "late": 1, "duplicates": 1, "closed": 1}
    else:
        assert first == []
        assert counts(joiner) == {"joined": 1, "late": 2, "closed": 1}
    shown = ("c",) if late == "train" else ("a", "c")
    expected = [("b", shown if emit == "at_close" else ())]
    assert [(p.item_id, p.shown) for p in on_time + closed] == expected


@pytest.mark.parametrize("unmatched", ["train", "drop"])
def test_clicks_without_their_impression(unmatched: str) -> None:
    joiner = make(unmatched=unmatched)
    show(joiner)
    emitted = [
        click(joiner, "a", user="somebody else"),
        click(joiner, "z"),
        click(joiner, "a", name="never shown", ts_ms=50),
        joiner.advance(50 + WINDOW_MS),
        joiner.advance(51 + WINDOW_MS),
        click(joiner, "a", ts_ms=60),  # its impression is closed by now
        joiner.advance(10_000),
    ]
    assert list(map(len, emitted)) == ([1, 1, 0, 0, 1, 0, 1] if unmatched == "train" else [0] * 7)
    assert all(p.shown == () for step in emitted for p in step)
    assert counts(joiner) == {"conflicting": 2, "unmatched": 4, "closed": 1}


def test_a_full_buffer_closes_the_impression_with_the_smallest_time() -> None:
    joiner = make(emit="at_close", max_waiting_impressions=2)
    show(joiner, "new", ts_ms=9)
    show(joiner, "old", ts_ms=3)
    click(joiner, "a", name="old")
    assert [p.item_id for p in show(joiner, "newer", ts_ms=5)] == ["a"]
    assert click(joiner, "a", name="old") == []
    assert joiner.num_impressions == 2
    assert counts(joiner) == {"joined": 1, "closed": 1, "closed_early": 1}


def test_a_full_buffer_of_clicks_gives_up_the_one_with_the_smallest_time() -> None:
    joiner = make(unmatched="train", max_waiting_clicks=2)
    click(joiner, "a", ts_ms=1, name="matched")  # leaves a place in the heap behind that must not count
    show(joiner, "matched")
    click(joiner, "a", ts_ms=9, name="x")
    click(joiner, "b", ts_ms=3, name="y")
    assert [p.item_id for p in click(joiner, "c", ts_ms=5, name="z")] == ["b"]
    assert joiner.num_clicks == 2


def test_clicks_that_wait_over_a_restart_keep_their_order_whatever_the_order_of_entries() -> None:
    joiner = make()
    for offset, item in enumerate("cab"):
        click(joiner, item, offset=offset)
    restored = Joiner.load(JoinSettings(), reversed(stored(joiner)))
    assert [p.offset for p in show(restored)] == [0, 1, 2]


def test_only_changes_are_taken_and_only_of_what_was_told_before_is_it_said_that_it_is_gone() -> None:
    joiner = make()
    show(joiner, "one", ts_ms=0)
    show(joiner, "two", ts_ms=1)
    click(joiner, name="three")
    first = decode_changes(joiner.take_changes())
    assert (first.last_sequence, list(first.entries), first.gone) == (3, [1, 2, 3], [])
    assert joiner.take_changes() == b""
    click(joiner, "a", name="two")
    assert list(decode_changes(joiner.take_changes()).entries) == [2]
    show(joiner, "never told of", ts_ms=2)
    joiner.advance(10_000)
    last = decode_changes(joiner.take_changes())
    assert (last.last_sequence, last.entries, sorted(last.gone)) == (4, {}, [1, 2, 3])


@pytest.mark.parametrize(("before", "after"), [("on_click", "at_close"), ("at_close", "on_click")])
def test_a_change_of_emit_between_runs_neither_repeats_nor_loses_a_click(before: str, after: str) -> None:
    first = make(emit=before)
    show(first)
    emitted = click(first, "a", offset=1)
    window = WINDOW_MS / 1000
    second = Joiner.load(
        JoinSettings.model_validate({"emit": after, "attribution_window_seconds": window}), stored(first)
    )
    emitted += click(second, "a", offset=2)
    emitted += click(second, "b", offset=3)
    emitted += second.advance(10_000)
    assert sorted((p.item_id, p.offset) for p in emitted) == [("a", 1), ("b", 3)]


def test_smaller_bounds_after_a_restart_are_kept_at_once() -> None:
    joiner = make()
    for number in range(5):
        show(joiner, str(number), ts_ms=number)
    smaller = Joiner.load(JoinSettings(max_waiting_impressions=2), stored(joiner))
    show(smaller, "5", ts_ms=5)
    assert smaller.num_impressions == 2
    assert smaller.counts.closed_early == 4


def test_what_another_version_stored_is_refused_by_name() -> None:
    with pytest.raises(StoreCorruptError, match="not in this program's form"):
        Joiner.load(JoinSettings(), [((1).to_bytes(8, "big"), msgpack.packb(["impression", "1", "u", 5]))])
