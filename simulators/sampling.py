"""Parts of a data set for a comparison: samples of users, the reproduction's bootstrap, what to tune on.

Pure: seeds are arguments. Owns which users and items a part holds; the splits themselves are `dataset.py`'s.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feature_store.errors import DataError
from simulators.amazon_fields import Review
from simulators.dataset import Dataset, collect, leave_last_two_out, split_by_time
from simulators.evaluate import Held

SAMPLE_SHARE = 0.035  # of the users, drawn for each sample (the reproduction)
MIN_USER_REVIEWS, MIN_ITEM_REVIEWS = 5, 4  # in a sample (likewise)
_SHARES = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)


class Times(NamedTuple):
    """A split by time: training ends, testing starts. Between them lies what can be tuned on."""

    train_end_ms: int
    test_start_ms: int


def tuning_part(dataset: Dataset, times: Times | None, max_users: int, seed: int) -> Held:
    """Return what settings are chosen on: never a test review, on either side.

    Leave-last-out: each user's second-last review is to be found, all before it are learned. By time: what
    lies between the two times is to be found. Where there are more than `max_users` users (0 = all) only a
    sample of them is used, with their items alone.

    Raises:
        DataError: there is nothing to tune on.
    """
    part = sample_users(dataset, max_users, seed)
    if times is None:
        train, validation, _ = leave_last_two_out(part)
        why = "no user has three reviews"
    else:
        train, validation, _ = split_by_time(part, *times)
        why = "nothing lies between --train-end-ms and --test-start-ms"
    if not len(validation.reviews):
        raise DataError(f"{dataset.name}: nothing to tune on: {why}; use --no-tuning")
    return Held(train, validation)


def sample_users(dataset: Dataset, max_users: int, seed: int) -> Dataset:
    """Return the data set itself, or the reviews and items of `max_users` of its users (0 = all)."""
    users = np.unique(dataset.reviews.users)
    if not max_users or len(users) <= max_users:
        return dataset
    chosen = np.random.default_rng(seed).choice(users, max_users, replace=False)
    return _only(dataset, np.flatnonzero(np.isin(dataset.reviews.users, chosen)))


def bootstrap_sample(dataset: Dataset, share: float, number: int) -> Dataset:
    """Return sample `number` of the reproduction's bootstrap, with its items alone.

    That share of the users is drawn with replacement; a user drawn twice counts once. Then users with fewer
    than 5 and items with fewer than 4 reviews go, until none is left to go.

    Raises:
        DataError: nothing is left; the message names a share that would leave something.
    """
    rows = _bootstrap_rows(dataset, share, number)
    if not len(rows):
        enough = [
            larger for larger in _SHARES if larger > share and len(_bootstrap_rows(dataset, larger, number))
        ]
        hint = f"--sample-share {enough[0]} would do" if enough else "no share would do: the data are too few"
        raise DataError(
            f"{dataset.name}: a sample of {share:.1%} of {dataset.reviews.num_users:,} users holds no users "
            f"with {MIN_USER_REVIEWS} and items with {MIN_ITEM_REVIEWS} reviews; {hint}"
        )
    return _only(dataset, rows)


def _bootstrap_rows(dataset: Dataset, share: float, number: int) -> npt.NDArray[np.int64]:
    reviews = dataset.reviews
    users = np.unique(reviews.users)
    drawn = np.random.default_rng(number).choice(users, round(share * len(users)), replace=True)
    rows = np.flatnonzero(np.isin(reviews.users, drawn))
    while len(rows):
        kept = np.bincount(reviews.users[rows])[reviews.users[rows]] >= MIN_USER_REVIEWS
        kept &= np.bincount(reviews.items[rows])[reviews.items[rows]] >= MIN_ITEM_REVIEWS
        if kept.all():
            break
        rows = rows[kept]
    return rows


def _only(dataset: Dataset, rows: npt.NDArray[np.int64]) -> Dataset:
    """Return these rows with the users and items that they name, numbered anew."""
    old = dataset.reviews.take(rows)
    columns = (old.users, old.items, old.ts_ms, old.ratings, old.helpful_votes)
    reviews = collect(
        Review(
            old.user_ids[user],
            old.item_ids[item],
            ts_ms,
            None if np.isnan(rating) else rating,
            votes,
            0,
        )
        for user, item, ts_ms, rating, votes in zip(*(column.tolist() for column in columns), strict=True)
    )
    return Dataset(dataset.name, reviews, {item_id: dataset.items[item_id] for item_id in reviews.item_ids})
