"""Reviews become events: their order, their times, and that none of them knows what comes later."""

from collections import Counter
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.schema import Click, EventKind, Impression, ItemFeatures, UserFeatures
from simulators.amazon_fields import ItemMeta, Review
from simulators.dataset import Dataset, collect, load_dataset
from simulators.timeline import TimelineEvent, num_events, timeline

HOUR_MS = 3_600_000
Events = list[tuple[EventKind, TimelineEvent]]

# (user, item, time in half minutes, rating, votes): few of each, so that everything collides
rows = st.tuples(
    st.integers(0, 3),
    st.integers(0, 7),
    st.integers(0, 6),
    st.one_of(st.none(), st.integers(1, 5)),
    st.integers(0, 9),
)
stories = st.lists(rows, min_size=1, max_size=30)


def dataset_of(story: list[tuple[int, int, int, int | None, int]]) -> Dataset:
    reviews = collect(
        Review(f"u{user}", f"i{item}", half_minutes * 30_000, rating, votes, line)
        for line, (user, item, half_minutes, rating, votes) in enumerate(story, 1)
    )
    items = {item_id: ItemMeta(item_id, "T", "C", None, 9.5) for item_id in reviews.item_ids}
    return Dataset("made", reviews, {**items, "never reviewed": ItemMeta("never reviewed")})


def of_kind(events: Events, kind: type) -> list:
    return [event for _, event in events if isinstance(event, kind)]


def test_one_review_by_hand():
    events = list(timeline(dataset_of([(0, 1, 2, 4, 3)]), seed=0))
    assert [kind.value for kind, _ in events] == ["items", "items", "impressions", "clicks", "users"]
    first, second, impression, click, user = (event for _, event in events)
    assert first == ItemFeatures(id="i1", ts_ms=59_999, features={"category": "C", "price": 9.5})
    assert second == ItemFeatures(id="never reviewed", ts_ms=59_999, features={})
    assert impression == Impression(impression_id="0", user_id="u0", ts_ms=60_000, items=["i1"])
    assert 60_000 < click.ts_ms < 60_000 + HOUR_MS
    assert click == Click(impression_id="0", user_id="u0", item_id="i1", ts_ms=click.ts_ms)
    features = {"num_reviews": 1.0, "helpful_votes": 3.0, "average_rating": 4.0}
    assert user == UserFeatures(id="u0", ts_ms=click.ts_ms + 1, features=features)


def check(dataset: Dataset, events: Events, slate_size: int, window_ms: int) -> None:
    """Check by brute force, from the events alone, that each follows from the ones before it."""
    reviews = dataset.reviews
    assert all(a.ts_ms <= b.ts_ms for (_, a), (_, b) in pairwise(events))
    shown: dict[str, Impression] = {}
    clicked_at: dict[str, int] = {}
    num_reviews: Counter[str] = Counter()
    announced: set[str] = set()
    for kind, event in events:
        if isinstance(event, ItemFeatures):
            assert kind == EventKind.ITEM
            assert event.id not in announced
            announced.add(event.id)
        elif isinstance(event, Impression):
            target = reviews.item_ids[reviews.items[int(event.impression_id)]]
            assert event.impression_id not in shown
            assert len(set(event.items)) == len(event.items) <= slate_size
            assert announced.issuperset(event.items)
            others = set(event.items) - {target}
            assert len(others) == len(event.items) - 1
            assert all(clicked_at[item_id] <= event.ts_ms for item_id in others)
            shown[event.impression_id] = event
        elif isinstance(event, Click):
            impression = shown[event.impression_id]
            assert (event.user_id, event.item_id in impression.items) == (impression.user_id, True)
            assert impression.ts_ms < event.ts_ms < impression.ts_ms + window_ms
            clicked_at.setdefault(event.item_id, event.ts_ms)
            num_reviews[event.user_id] += 1
        else:
            assert event.features["num_reviews"] == num_reviews[event.id]
    assert set(shown) == {str(row) for row in range(len(reviews))}
    assert num_reviews.total() == len(reviews)


def clicks_of_users(events: Events) -> dict[str, list[str]]:
    clicks: dict[str, list[str]] = {}
    for click in of_kind(events, Click):
        clicks.setdefault(click.user_id, []).append(click.item_id)
    return clicks


def reviews_of_users(dataset: Dataset) -> dict[str, list[str]]:
    reviews: dict[str, list[str]] = {}
    columns = dataset.reviews
    for user, item in zip(columns.users, columns.items, strict=True):
        reviews.setdefault(columns.user_ids[user], []).append(columns.item_ids[item])
    return reviews


@given(stories, st.integers(0, 3), st.integers(1, 6), st.sampled_from(["all", "reviewed"]))
def test_events_follow_from_what_was_before(story, seed, slate_size, corpus):
    dataset = dataset_of(story)
    events = list(timeline(dataset, seed, slate_size, corpus=corpus))
    check(dataset, events, slate_size, HOUR_MS)
    assert len(events) == num_events(dataset, corpus)
    assert clicks_of_users(events) == reviews_of_users(dataset)


@given(stories, st.data(), st.sampled_from(["all", "reviewed"]))
def test_no_event_knows_of_later_reviews(story, data, corpus):
    """Cut the reviews anywhere: until the first missing one, both streams are the same, event by event."""
    dataset = dataset_of(story)
    num_kept = data.draw(st.integers(1, len(story)))
    start_ms = dataset.reviews.ts_ms[num_kept] - 1 if num_kept < len(story) else 10**15

    def before(events):
        return list(takewhile(lambda pair: pair[1].ts_ms < start_ms, events))

    past = dataset.take(np.arange(num_kept))
    assert before(timeline(past, 1, corpus=corpus)) == before(timeline(dataset, 1, corpus=corpus))


@given(stories)
def test_user_features_are_the_means_of_the_past(story):
    dataset = dataset_of(story)
    reviews = dataset.reviews
    upserts: dict[str, list[UserFeatures]] = {}
    for event in of_kind(list(timeline(dataset, 0)), UserFeatures):
        upserts.setdefault(event.id, []).append(event)
    for number, user_id in enumerate(reviews.user_ids):
        own = np.flatnonzero(reviews.users == number)
        for count, event in enumerate(upserts[user_id], 1):
            past = own[:count]
            ratings = reviews.ratings[past][~np.isnan(reviews.ratings[past])]
            expected = {
                "num_reviews": count,
                "helpful_votes": reviews.helpful_votes[past].sum(),
                **({"average_rating": ratings.mean()} if len(ratings) else {}),
            }
            assert event.features == pytest.approx(expected)


def test_a_seed_gives_one_stream():
    dataset = dataset_of([(n % 4, n % 8, n % 7, 5, 0) for n in range(60)])
    streams = [list(timeline(dataset, seed)) for seed in (1, 1, 2)]
    assert streams[0] == streams[1] != streams[2]


def test_short_windows_hold_every_click():
    dataset = dataset_of([(0, n % 8, 0, 5, 0) for n in range(200)])
    for seconds in (0.01, 1.0, 30.0):
        events = list(timeline(dataset, 0, attribution_window_seconds=seconds))
        check(dataset, events, 6, int(seconds * 1000))


def test_items_come_just_before_their_first_impression():
    events = list(
        timeline(dataset_of([(0, 0, 1, 5, 0), (1, 1, 4, 5, 0), (2, 0, 5, 5, 0)]), 0, corpus="reviewed")
    )
    assert [(event.id, event.ts_ms) for event in of_kind(events, ItemFeatures)] == [
        ("i0", 29_999),
        ("i1", 119_999),
    ]


def test_impossible_settings_are_refused():
    dataset = dataset_of([(0, 0, 0, 5, 0)])
    for slate_size, seconds in ((0, 1.0), (201, 1.0), (6, 0.0)):
        with pytest.raises(ValueError, match="slate_size"):
            timeline(dataset, 0, slate_size, seconds)


def test_no_reviews_give_no_events():
    dataset = dataset_of([(0, 0, 0, 5, 0)])
    assert list(timeline(dataset.take(np.zeros(1, np.bool_)), 0)) == []


def test_slates_on_real_data(data_root: Path):
    """Toys has days for times: most reviews of a user are tied, and thousands of users share a day."""
    whole = load_dataset(data_root / "toys_2014")
    dataset = whole.take(np.arange(30_000))
    events = list(timeline(dataset, seed=3))
    check(dataset, events, 6, HOUR_MS)
    assert clicks_of_users(events) == reviews_of_users(dataset)
    assert len(of_kind(events, ItemFeatures)) == len(whole.items)  # the corpus is the whole catalogue

    impressions, clicks = of_kind(events, Impression), of_kind(events, Click)
    assert Counter(len(impression.items) for impression in impressions)[6] > 29_980
    item_of = {click.impression_id: click.item_id for click in clicks}
    positions = Counter(i.items.index(item_of[i.impression_id]) for i in impressions if len(i.items) == 6)
    assert min(positions[place] for place in range(6)) > 0.95 * 30_000 / 6  # any place is as likely

    firsts = {impression.user_id: impression for impression in reversed(impressions)}.values()
    clicked_ms = {click.impression_id: click.ts_ms for click in clicks}
    seconds = np.array([clicked_ms[i.impression_id] - i.ts_ms for i in firsts]) / 1000
    assert np.quantile(seconds, [0.16, 0.5, 0.84]) == pytest.approx([6.0, 20.0, 66.4], rel=0.1)  # lognormal

    others = Counter(
        item for i in impressions[20_000:] for item in i.items if item != item_of[i.impression_id]
    )
    popular = [item for item, _ in Counter(item_of.values()).most_common(100)]
    rare = [item for item, count in Counter(item_of.values()).items() if count == 1][:100]
    assert sum(others[item] for item in popular) > 20 * sum(others[item] for item in rare)


def test_no_event_of_real_data_knows_of_later_reviews(data_root: Path):
    dataset = load_dataset(data_root / "electronics_2023").take(np.arange(12_000))
    events = list(timeline(dataset, seed=0))
    for num_kept in (1, 4_095, 4_097, 9_000):
        start_ms = int(dataset.reviews.ts_ms[num_kept]) - 1
        past = list(timeline(dataset.take(np.arange(num_kept)), seed=0))
        num_before = sum(event.ts_ms < start_ms for _, event in past)
        assert num_before > 3 * (num_kept - 200)
        assert past[:num_before] == events[:num_before]
