"""Turns reviews into the shop's events: what was shown, what was clicked, what was known of items and users.

Pure. Owns the order and the times of the events and every random draw in them. Never looks ahead: an event is
made when its time has come, from what happened before it and from the static metadata. Events are not held;
what is kept grows with users, items and 4 bytes a click.
"""

import heapq
import math
from array import array
from collections.abc import Iterator
from enum import IntEnum
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from feature_store.hashing import Purpose, draw_below, event_keys
from feature_store.schema import (
    MAX_SLATE_ITEMS,
    Click,
    EventKind,
    FeatureValue,
    Impression,
    ItemFeatures,
    UserFeatures,
)
from simulators.amazon_fields import ItemMeta
from simulators.dataset import Dataset

TimelineEvent: TypeAlias = Impression | Click | ItemFeatures | UserFeatures
Corpus: TypeAlias = Literal["all", "reviewed"]

_MEDIAN_DELAY_MS = 20_000.0  # from seeing to clicking; lognormal, so a few take many minutes
_DELAY_SIGMA = 1.2
_STEP_MS = 2  # between a user's reviews of one moment: room for the click's upsert before the next click
_TRIES_PER_PLACE = 4  # popular items come up twice; a slate that finds no other after these stays shorter
_DRAW_BITS = 31
_CHUNK_ROWS = 4096


class _Step(IntEnum):
    ITEM = 0
    IMPRESSION = 1
    CLICK = 2
    USER = 3


class _Draws(NamedTuple):
    """What chance decides about one review: `places` are integers below 2^31, the first for the position."""

    delay_ms: int
    places: list[int]


def timeline(
    dataset: Dataset,
    seed: int,
    slate_size: int = 6,
    attribution_window_seconds: float = 3600.0,
    corpus: Corpus = "all",
) -> Iterator[tuple[EventKind, TimelineEvent]]:
    """Yield the events of a data set's reviews in order of event time; one seed gives one stream.

    A review at t is an impression at t and a click shortly after, within the attribution window: the reviewed
    item stands at a random place among items drawn by their clicks so far. After the click follow the user's
    features so far. Reviews of one user at one time stand 2 ms apart, so a user's clicks keep the order of
    the reviews. The catalogue comes first (`corpus = "all"`), or each item before its first impression
    ("reviewed"). The metadata's price and average rating are those of the day the site was read, as are
    helpful votes: of these three alone the stream knows more than a shop would have known at the time.

    Raises:
        ValueError: the slate's size or the window is impossible.
    """
    if not 1 <= slate_size <= MAX_SLATE_ITEMS or attribution_window_seconds <= 0:
        raise ValueError(
            f"slate_size is 1 to {MAX_SLATE_ITEMS} and the window positive, not {slate_size} and "
            f"{attribution_window_seconds} s"
        )
    shop = _Shop(dataset)
    window_ms = int(attribution_window_seconds * 1000)
    draws = _draws(len(dataset.reviews), seed, 1 + _TRIES_PER_PLACE * (slate_size - 1), max(1, window_ms - 1))
    return _run(shop, draws, slate_size, corpus)


def num_events(dataset: Dataset, corpus: Corpus = "all") -> int:
    """Return how many events `timeline` yields: a progress bar needs to know."""
    num_items = len(dataset.items) if corpus == "all" else dataset.reviews.num_items
    return num_items + 3 * len(dataset.reviews)


def item_features(item: ItemMeta) -> dict[str, FeatureValue]:
    """Return what the metadata say of an item, without what they do not.

    >>> item_features(ItemMeta("a", "Emma", "Books", None, 9.5))
    {'category': 'Books', 'price': 9.5}
    """
    features = {
        "category": item.category,
        "brand": item.brand,
        "price": item.price,
        "average_rating": item.average_rating,
    }
    return {name: value for name, value in features.items() if value is not None}


def _run(
    shop: "_Shop", draws: Iterator[_Draws], slate_size: int, corpus: Corpus
) -> Iterator[tuple[EventKind, TimelineEvent]]:
    """Advance time: the queue holds (time, review, step); a step is taken when nothing earlier is left."""
    queue: list[tuple[int, int, _Step]] = []
    pending: dict[int, _Draws] = {}
    announced = set(shop.items) if corpus == "all" else set()
    times = shop.reviews.ts_ms.data
    if times and corpus == "all":
        for item_id in shop.items:
            yield EventKind.ITEM, shop.item(item_id, max(0, times[0] - 1))
    next_row = 0
    while queue or next_row < len(times):
        while next_row < len(times) and (not queue or times[next_row] - 1 <= queue[0][0]):
            if (item_id := shop.item_of(next_row)) not in announced:
                announced.add(item_id)
                heapq.heappush(queue, (max(0, times[next_row] - 1), next_row, _Step.ITEM))
            pending[next_row] = next(draws)
            heapq.heappush(queue, (shop.impression_ms(next_row, times[next_row]), next_row, _Step.IMPRESSION))
            next_row += 1
        ts_ms, row, step = heapq.heappop(queue)
        if step is _Step.ITEM:
            yield EventKind.ITEM, shop.item(shop.item_of(row), ts_ms)
        elif step is _Step.IMPRESSION:
            drawn = pending.pop(row)
            heapq.heappush(queue, (shop.click_ms(row, ts_ms + drawn.delay_ms), row, _Step.CLICK))
            yield EventKind.IMPRESSION, shop.impression(row, ts_ms, drawn.places, slate_size)
        elif step is _Step.CLICK:
            heapq.heappush(queue, (ts_ms + 1, row, _Step.USER))
            yield EventKind.CLICK, shop.click(row, ts_ms)
        else:
            yield EventKind.USER, shop.user(row, ts_ms)


class _Shop:
    """What the shop knows so far. Each review goes through impression, click and user, in this order."""

    def __init__(self, dataset: Dataset) -> None:
        self.reviews = dataset.reviews
        self.items = dataset.items
        self._users = dataset.reviews.users.data  # a view gives Python's integers, and copies nothing
        self._items = dataset.reviews.items.data
        self._ratings = dataset.reviews.ratings.data
        self._votes = dataset.reviews.helpful_votes.data
        num_users = len(dataset.reviews.user_ids)
        self._last_impression_ms = [-_STEP_MS] * num_users
        self._last_click_ms = [-_STEP_MS] * num_users
        self._num_reviews = [0] * num_users
        self._num_ratings = [0] * num_users
        self._sum_ratings = [0.0] * num_users
        self._helpful_votes = [0] * num_users
        self._clicked = array("i")  # each click's item: an even draw from it is a draw by popularity

    def item_of(self, row: int) -> str:
        return self.reviews.item_ids[self._items[row]]

    def impression_ms(self, row: int, ts_ms: int) -> int:
        """Return when a review's slate is shown: at its time, or just after the user's last one."""
        user = self._users[row]
        self._last_impression_ms[user] = max(ts_ms, self._last_impression_ms[user] + _STEP_MS)
        return self._last_impression_ms[user]

    def click_ms(self, row: int, wished_ms: int) -> int:
        """Return when a review's click comes: after the user's last one, so that reviews keep their order.

        Impressions are as far apart as clicks must be, so this pushes no click beyond the longest delay.
        """
        user = self._users[row]
        self._last_click_ms[user] = max(wished_ms, self._last_click_ms[user] + _STEP_MS)
        return self._last_click_ms[user]

    def item(self, item_id: str, ts_ms: int) -> ItemFeatures:
        return ItemFeatures(id=item_id, ts_ms=ts_ms, features=item_features(self.items[item_id]))

    def impression(self, row: int, ts_ms: int, places: list[int], slate_size: int) -> Impression:
        """Show the reviewed item among others that were clicked before."""
        target = self._items[row]
        others: list[int] = []
        for place in places[1:] if self._clicked else ():
            if len(others) == slate_size - 1:
                break
            item = self._clicked[place * len(self._clicked) >> _DRAW_BITS]
            if item != target and item not in others:
                others.append(item)
        others.insert(places[0] * (len(others) + 1) >> _DRAW_BITS, target)
        return Impression(
            impression_id=str(row),
            user_id=self.reviews.user_ids[self._users[row]],
            ts_ms=ts_ms,
            items=[self.reviews.item_ids[item] for item in others],
        )

    def click(self, row: int, ts_ms: int) -> Click:
        self._clicked.append(self._items[row])
        user_id = self.reviews.user_ids[self._users[row]]
        return Click(impression_id=str(row), user_id=user_id, item_id=self.item_of(row), ts_ms=ts_ms)

    def user(self, row: int, ts_ms: int) -> UserFeatures:
        """Count the review in and tell what is known of its user now."""
        user, rating = self._users[row], self._ratings[row]
        self._num_reviews[user] += 1
        self._helpful_votes[user] += self._votes[row]
        features: dict[str, FeatureValue] = {
            "num_reviews": float(self._num_reviews[user]),
            "helpful_votes": float(self._helpful_votes[user]),
        }
        if not math.isnan(rating):
            self._num_ratings[user] += 1
            self._sum_ratings[user] += rating
        if self._num_ratings[user]:
            features["average_rating"] = self._sum_ratings[user] / self._num_ratings[user]
        return UserFeatures(id=self.reviews.user_ids[user], ts_ms=ts_ms, features=features)


def _draws(num_rows: int, seed: int, num_places: int, max_delay_ms: int) -> Iterator[_Draws]:
    """Yield each review's draws: a hash of the seed and its place, so that what comes later cannot matter."""
    for start in range(0, num_rows, _CHUNK_ROWS):
        rows = np.arange(start, min(start + _CHUNK_ROWS, num_rows))
        keys = event_keys(seed, Purpose.SLATE, np.zeros_like(rows), rows)
        places = draw_below(keys, num_places + 2, 1 << _DRAW_BITS)
        radius, angle = (places[:, -2:] + 0.5).T / (1 << _DRAW_BITS)
        normal = np.sqrt(-2.0 * np.log(radius)) * np.cos(2.0 * np.pi * angle)  # Box and Muller
        delays_ms = np.clip(_MEDIAN_DELAY_MS * np.exp(_DELAY_SIGMA * normal), 1, max_delay_ms).astype(
            np.int64
        )
        yield from map(_Draws, delays_ms.tolist(), places[:, :-2].tolist())
