"""A set of reviews in memory, cleaned, filtered and split.

Owns the columns and the rules of filtering and splitting. Never reads a line itself (`amazon.py` does) and
never draws at random.
"""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from feature_store.errors import DataError
from simulators.amazon import Format, detect_format, find_files, read_items, read_reviews
from simulators.amazon_fields import ItemMeta, Review

Rows = npt.NDArray[np.int64] | npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Reviews:
    """Reviews as columns, in order of time, those of one time in file order.

    `users` and `items` are places in `user_ids` and `item_ids`, which may name more than these rows hold: a
    split keeps them, so that its parts speak of the same numbers. `ratings` are NaN where there is none.
    """

    user_ids: list[str]
    item_ids: list[str]
    users: npt.NDArray[np.int32]
    items: npt.NDArray[np.int32]
    ts_ms: npt.NDArray[np.int64]
    ratings: npt.NDArray[np.float32]
    helpful_votes: npt.NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.users)

    @property
    def num_users(self) -> int:
        """Users with at least one of these rows."""
        return len(np.unique(self.users))

    @property
    def num_items(self) -> int:
        """Items with at least one of these rows."""
        return len(np.unique(self.items))

    def take(self, rows: Rows) -> "Reviews":
        """Return some rows: a mask, or places in ascending order."""
        return replace(
            self,
            users=self.users[rows],
            items=self.items[rows],
            ts_ms=self.ts_ms[rows],
            ratings=self.ratings[rows],
            helpful_votes=self.helpful_votes[rows],
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """Reviews and the catalogue: every item that the whole set reviews, even if this part of it does not."""

    name: str
    reviews: Reviews
    items: dict[str, ItemMeta]

    def take(self, rows: Rows) -> "Dataset":
        """Return some rows over the same catalogue: a mask, or places in ascending order."""
        return replace(self, reviews=self.reviews.take(rows))


class TimeSplit(NamedTuple):
    """Three periods; what the later two hold is what is to be found."""

    train: Dataset
    validation: Dataset
    test: Dataset


def load_dataset(
    folder: Path,
    fmt: Format | Literal["auto"] = "auto",
    k_core: int = 0,
    top_categories: int = 0,
    min_rating: float | None = None,
) -> Dataset:
    """Read a folder, drop what is filtered out, and look up what the metadata say of the items that are left.

    In this order: of a user's reviews of one item the first stays; then `min_rating`; then the
    `top_categories` with most reviews (0 = all; items without a category go); then, to the fixed point, users
    and items with fewer than `k_core` reviews go (0 = none, for what its publisher has filtered).

    Raises:
        DataError: files are missing, cut short or of another format, or nothing is left.
    """
    resolved = detect_format(folder) if fmt == "auto" else fmt
    files = find_files(folder, resolved)
    reviews = collect(read_reviews(files.reviews, resolved))
    if not len(reviews):
        raise DataError(f"{files.reviews}, line 1: the file holds no reviews; download it again")
    reviews = reviews.take(first_of_pair(reviews.users, reviews.items))
    if min_rating is not None:
        reviews = reviews.take(reviews.ratings >= min_rating)
    metadata = {item_id: ItemMeta(item_id) for item_id in reviews.item_ids}
    for item in reversed(list(read_items(files.items, resolved, metadata))):
        metadata[item.item_id] = item  # of duplicates the first stays
    if top_categories:
        reviews = reviews.take(_in_top_categories(reviews, metadata, top_categories))
    if k_core:
        reviews = reviews.take(k_core_rows(reviews.users, reviews.items, k_core))
    if not len(reviews):
        raise DataError(
            f"{files.reviews}: no review is left of k_core = {k_core}, top_categories = {top_categories}, "
            f"min_rating = {min_rating}; loosen them (some published sets have no ratings)"
        )
    reviews = _compact(reviews)
    return Dataset(
        folder.resolve().name, reviews, {item_id: metadata[item_id] for item_id in reviews.item_ids}
    )


def collect(reviews: Iterable[Review]) -> Reviews:
    """Make columns of reviews in any order, IDs numbered by first appearance.

    >>> late, early = Review("u", "b", 9, 5.0, 0, 1), Review("u", "a", 4, None, 2, 2)
    >>> columns = collect([late, early])
    >>> [columns.item_ids[item] for item in columns.items], columns.ts_ms.tolist(), columns.ratings.tolist()
    (['a', 'b'], [4, 9], [nan, 5.0])
    """
    user_numbers: dict[str, int] = {}
    item_numbers: dict[str, int] = {}
    users, items, helpful_votes = array("i"), array("i"), array("i")
    ts_ms, ratings = array("q"), array("f")
    for review in reviews:
        users.append(user_numbers.setdefault(review.user_id, len(user_numbers)))
        items.append(item_numbers.setdefault(review.item_id, len(item_numbers)))
        ts_ms.append(review.ts_ms)
        ratings.append(float("nan") if review.rating is None else review.rating)
        helpful_votes.append(review.helpful_votes)
    unsorted = Reviews(
        list(user_numbers),
        list(item_numbers),
        np.asarray(users, np.int32),
        np.asarray(items, np.int32),
        np.asarray(ts_ms, np.int64),
        np.asarray(ratings, np.float32),
        np.asarray(helpful_votes, np.int32),
    )
    return unsorted.take(np.argsort(unsorted.ts_ms, kind="stable"))


def first_of_pair(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """Return, in order, the rows that are the first of their user and item.

    >>> first_of_pair(np.array([0, 1, 0, 0], np.int32), np.array([5, 5, 6, 5], np.int32)).tolist()
    [0, 1, 2]
    """
    _, first = np.unique(_pair_keys(users, items), return_index=True)
    return np.sort(first)


def k_core_rows(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32], k: int) -> npt.NDArray[np.int64]:
    """Return the rows of the largest part in which every user and every item has at least `k` rows.

    Dropping a user can bring an item below `k`, and the other way round: this repeats until nothing changes.

    >>> k_core_rows(np.array([0, 0, 1, 1, 2], np.int32), np.array([0, 1, 0, 1, 0], np.int32), 2).tolist()
    [0, 1, 2, 3]
    """
    rows = np.arange(len(users))
    while len(rows):
        enough = (np.bincount(users[rows])[users[rows]] >= k) & (np.bincount(items[rows])[items[rows]] >= k)
        if enough.all():
            break
        rows = rows[enough]
    return rows


def leave_last_out(dataset: Dataset) -> tuple[Dataset, Dataset]:
    """Split off each user's last review, by time, then file order; users with one review keep it.

    Returns:
        The rest, and one held-out review for each user that had two or more.
    """
    users = dataset.reviews.users
    last = len(users) - 1 - np.unique(users[::-1], return_index=True)[1]
    held_out = np.zeros(len(users), np.bool_)
    held_out[last] = np.bincount(users)[users[last]] >= 2
    return dataset.take(~held_out), dataset.take(held_out)


def leave_last_two_out(dataset: Dataset) -> tuple[Dataset, Dataset, Dataset]:
    """Split off each user's last review for testing and, of three or more, the one before to tune on.

    Returns:
        The rest, the validation reviews, the test reviews (those of `leave_last_out`).
    """
    rest, test = leave_last_out(dataset)
    train, validation = leave_last_out(rest)
    return train, validation, test


def split_by_time(
    dataset: Dataset, train_end_ms: int, test_start_ms: int, min_rating: float = 4.0
) -> TimeSplit:
    """Split into training before `train_end_ms`, validation, and testing from `test_start_ms` on.

    In the later two only what a recommender should have found counts: rated `min_rating` or better, and not
    seen by that user in training. These are the rules of who published `electronics_2023`, with
    1653679273178 and 1662173626869 as times.

    Raises:
        DataError: a period holds nothing.
    """
    if train_end_ms > test_start_ms:
        raise DataError(
            f"the training period ends at {train_end_ms} ms, after the test's start at {test_start_ms}"
        )
    reviews = dataset.reviews
    in_train = reviews.ts_ms < train_end_ms
    in_test = reviews.ts_ms >= test_start_ms
    keys = _pair_keys(reviews.users, reviews.items)
    to_find = (reviews.ratings >= min_rating) & ~np.isin(keys, keys[in_train])
    split = TimeSplit(
        dataset.take(in_train),
        dataset.take(to_find & ~in_train & ~in_test),
        dataset.take(to_find & in_test),
    )
    if not len(split.train.reviews) or not len(split.test.reviews):
        raise DataError(
            f"{dataset.name}: nothing to train on before {train_end_ms} ms, or nothing rated {min_rating} or "
            f"better and new to its user from {test_start_ms} ms on"
        )
    return split


def _pair_keys(users: npt.NDArray[np.int32], items: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    return users.astype(np.int64) << 32 | items


def _in_top_categories(
    reviews: Reviews, metadata: dict[str, ItemMeta], num_categories: int
) -> npt.NDArray[np.bool_]:
    """Mark the reviews of the categories with most reviews; ties go by name, so that the choice is stable."""
    counts = np.bincount(reviews.items, minlength=len(reviews.item_ids))
    totals: dict[str, int] = {}
    for item_id, count in zip(reviews.item_ids, counts.tolist(), strict=True):
        category = metadata[item_id].category
        if category is not None:
            totals[category] = totals.get(category, 0) + count
    top = set(sorted(totals, key=lambda category: (-totals[category], category))[:num_categories])
    kept = np.array([metadata[item_id].category in top for item_id in reviews.item_ids])
    return kept[reviews.items]


def _compact(reviews: Reviews) -> Reviews:
    """Renumber, so that `user_ids` and `item_ids` hold exactly what the rows do."""
    user_numbers, users = np.unique(reviews.users, return_inverse=True)
    item_numbers, items = np.unique(reviews.items, return_inverse=True)
    return replace(
        reviews,
        user_ids=[reviews.user_ids[number] for number in user_numbers],
        item_ids=[reviews.item_ids[number] for number in item_numbers],
        users=users.astype(np.int32),
        items=items.astype(np.int32),
    )
