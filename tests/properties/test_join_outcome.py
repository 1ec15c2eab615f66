"""The join against a brute-force join of the whole log, and against itself with restarts in between."""

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from feature_store.configuration import JoinSettings
from feature_store.schema import Click, Impression
from feature_store.sequenced import COUNTER_KEY, GatheredChanges
from stream_trainer.chunk import Joined
from stream_trainer.join import Joiner

WINDOW_MS = 5
NEVER = 10**9

ids, users, items, times = (
    st.sampled_from("ij"),
    st.sampled_from("uw"),
    st.sampled_from("abcd"),
    st.integers(0, 20),
)
impressions = st.builds(
    Impression,
    impression_id=ids,
    user_id=users,
    ts_ms=times,
    items=st.lists(st.sampled_from("abc"), min_size=1, max_size=4),
)
clicks = st.builds(Click, impression_id=ids, user_id=users, item_id=items, ts_ms=times)
Step = Impression | Click | int  # an int is a watermark
logs: st.SearchStrategy[list[Step]] = st.lists(impressions | clicks | st.integers(0, 30), max_size=30)
all_settings = st.builds(
    JoinSettings,
    attribution_window_seconds=st.just(WINDOW_MS / 1000),
    emit=st.sampled_from(["on_click", "at_close"]),
    late=st.sampled_from(["train", "drop"]),
    unmatched=st.sampled_from(["train", "drop"]),
)


def standing(place: int) -> tuple[int, int]:
    """Return partition and offset of a click."""
    return place % 3, place


def apply(joiner: Joiner, place: int, step: Step) -> list[Joined]:
    if isinstance(step, Impression):
        return list(joiner.impression(step))
    if isinstance(step, Click):
        return joiner.click(step, *standing(place))
    due_ms, waiting = joiner.due_ms, (joiner.num_impressions, joiner.num_clicks)
    closed = joiner.advance(step)
    if step <= due_ms:  # then the call may be spared
        assert (closed, (joiner.num_impressions, joiner.num_clicks)) == ([], waiting)
    assert joiner.due_ms >= step
    return closed


class Shown(NamedTuple):
    """An accepted impression: waits after the step `start` until the step `end`."""

    event: Impression
    start: int
    end: int


class Pair(NamedTuple):
    """A click of the step `place` and its impression, both known from the step `met` on."""

    met: int
    place: int
    click: Click
    slate: Shown


Emitted = list[list[tuple[tuple[int, ...], Joined]]]  # per step, each with what orders it in the step


def expiry(log: list[Step], place: int, ts_ms: int) -> int:
    """The first step after `place` whose watermark is past an event's window."""
    watermarks = ((p, step) for p, step in enumerate(log) if p > place and isinstance(step, int))
    return next((p for p, watermark_ms in watermarks if ts_ms + WINDOW_MS < watermark_ms), NEVER)


def accepted(log: list[Step]) -> list[Shown]:
    """The impressions, without those repeated while the first still waits."""
    shown: list[Shown] = []
    for place, step in enumerate(log):
        if isinstance(step, Impression) and not any(
            s.event.impression_id == step.impression_id and s.end > place for s in shown
        ):
            shown.append(Shown(step, place, expiry(log, place, step.ts_ms)))
    return shown


def pair_up(log: list[Step], shown: list[Shown], train_unmatched: bool, emitted: Emitted) -> list[Pair]:
    """Find each click's impression, before or after it; emit those that wait in vain."""
    pairs: list[Pair] = []
    waiting: dict[tuple[str, str, str], int] = {}  # until which step a click waits
    for place, step in enumerate(log):
        if not isinstance(step, Click):
            continue
        mine = [s for s in shown if s.event.impression_id == step.impression_id]
        name = (step.impression_id, step.user_id, step.item_id)
        here = next((s for s in mine if s.start < place < s.end), None)
        if here is not None:
            pairs.append(Pair(place, place, step, here))
        elif waiting.get(name, -1) <= place:  # else a duplicate of one that waits
            until = expiry(log, place, step.ts_ms)
            coming = next((s for s in mine if place < s.start < until), None)
            waiting[name] = until if coming is None else coming.start
            if coming is not None:
                pairs.append(Pair(coming.start, place, step, coming))
            elif until != NEVER and train_unmatched:
                emitted[until].append(((1, step.ts_ms, place), alone(step, place)))
    return sorted(pairs, key=lambda pair: (pair.met, pair.place))


def settle(settings: JoinSettings, slate: Shown, pairs: list[Pair], emitted: Emitted) -> None:
    """Emit what the clicks of one slate give, at once or at its close."""
    seen: set[str] = set()
    at_close: dict[str, Joined] = {}
    items = slate.event.items
    for met, place, click, _ in pairs:
        positive = alone(click, place)
        if click.user_id != slate.event.user_id or click.item_id not in items:
            is_emitted = settings.unmatched == "train"
        elif click.item_id in seen:
            is_emitted = False
        elif click.ts_ms > slate.event.ts_ms + WINDOW_MS:
            is_emitted = settings.late == "train"
            seen |= {click.item_id} if is_emitted else set()
        else:
            seen.add(click.item_id)
            is_emitted = settings.emit == "on_click"
            if not is_emitted:
                at_close[click.item_id] = positive
        if is_emitted:
            emitted[met].append(((0, 0, place), positive))
    shown = tuple(item for place, item in enumerate(items) if item not in seen and item not in items[:place])
    for positive in at_close.values() if slate.end != NEVER else ():
        order = (0, slate.event.ts_ms, slate.start, items.index(positive.item_id))
        emitted[slate.end].append((order, replace(positive, shown=shown)))


def brute_force(settings: JoinSettings, log: list[Step]) -> list[list[Joined]]:
    """Return what each step emits, by looking at the whole log at once. Buffers have no bounds here."""
    emitted: Emitted = [[] for _ in log]
    shown = accepted(log)
    pairs = pair_up(log, shown, settings.unmatched == "train", emitted)
    for slate in shown:
        settle(settings, slate, [pair for pair in pairs if pair.slate is slate], emitted)
    return [[positive for _, positive in sorted(step, key=lambda pair: pair[0])] for step in emitted]


def alone(click: Click, place: int) -> Joined:
    return Joined(click.user_id, click.item_id, place % 3, place)


@given(all_settings, logs)
def test_each_step_emits_what_a_join_of_the_whole_log_says(settings: JoinSettings, log: list[Step]) -> None:
    joiner = Joiner(settings)
    assert [apply(joiner, place, step) for place, step in enumerate(log)] == brute_force(settings, log)


bounded = st.builds(
    JoinSettings,
    attribution_window_seconds=st.just(WINDOW_MS / 1000),
    emit=st.sampled_from(["on_click", "at_close"]),
    late=st.sampled_from(["train", "drop"]),
    unmatched=st.sampled_from(["train", "drop"]),
    max_waiting_impressions=st.integers(1, 2),
    max_waiting_clicks=st.integers(1, 3),
)


def commit(told: list[bytes], stored: dict[bytes, bytes]) -> None:
    """Write changes into `stored` as a commit would, and forget them."""
    changes = GatheredChanges(stored.get(COUNTER_KEY))
    for encoded in filter(None, told):
        changes.add(encoded)
    told.clear()
    for key, value in changes.pairs():
        if value is None:
            del stored[key]  # a deletion of what was never stored would be an error
        else:
            stored[key] = value


PLACES = st.sets(st.integers(0, 30))


@given(all_settings | bounded, logs, PLACES, PLACES, PLACES)
def test_restarts_change_neither_what_is_emitted_nor_what_is_stored(
    settings: JoinSettings, log: list[Step], ends: set[int], commits: set[int], restarts: set[int]
) -> None:
    """Chunks end after some steps, commits fall after some of these, and restarts after some of those."""
    undisturbed, disturbed = Joiner(settings), Joiner(settings)
    told: list[bytes] = []
    undisturbed_stored: dict[bytes, bytes] = {}
    stored: dict[bytes, bytes] = {}
    for place, step in enumerate(log):
        assert apply(disturbed, place, step) == apply(undisturbed, place, step)
        if place in ends | commits | restarts:
            told.append(disturbed.take_changes())
        if place in commits | restarts:
            commit(told, stored)
        if place in restarts:
            disturbed = Joiner.load(settings, reversed(stored.items()))
    commit([undisturbed.take_changes()], undisturbed_stored)
    commit([*told, disturbed.take_changes()], stored)
    assert stored == undisturbed_stored
    assert disturbed.take_changes() == b""
    assert apply(disturbed, 0, NEVER) == apply(undisturbed, 0, NEVER)


@given(bounded, logs)
def test_buffers_keep_their_bounds_and_every_event_is_counted_once(
    settings: JoinSettings, log: list[Step]
) -> None:
    joiner = Joiner(settings)
    num_emitted = 0
    for place, step in enumerate(log):
        num_emitted += len(apply(joiner, place, step))
        assert joiner.num_impressions <= settings.max_waiting_impressions
        assert joiner.num_clicks <= settings.max_waiting_clicks
        counts = joiner.counts
        settled = counts.joined + counts.late + counts.unmatched + counts.closed + counts.duplicates
        num_events = sum(not isinstance(done, int) for done in log[: place + 1])
        assert settled + joiner.num_clicks + joiner.num_impressions == num_events
    num_emitted += len(joiner.advance(NEVER))
    counts = joiner.counts
    assert joiner.num_clicks == joiner.num_impressions == 0
    late = counts.late if settings.late == "train" else 0
    unmatched = counts.unmatched if settings.unmatched == "train" else 0
    assert num_emitted == counts.joined + late + unmatched


@pytest.mark.parametrize("emit", ["on_click", "at_close"])
def test_a_long_log_with_many_early_clicks_keeps_memory_bounded(emit: str) -> None:
    """Clicks that found their impression leave no entries behind, though time stands still."""
    joiner = Joiner(JoinSettings.model_validate({"emit": emit, "max_waiting_impressions": 10}))
    for number in range(5_000):
        click = Click(impression_id=str(number), user_id="u", item_id="a", ts_ms=1)
        joiner.click(click, *standing(number))
        joiner.impression(Impression(impression_id=str(number), user_id="u", ts_ms=1, items=["a"]))
    assert joiner.counts.joined == 5_000
    assert len(joiner._click_heap) < 2_000
