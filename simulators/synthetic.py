"""Writes Amazon-shaped logs of any size, with preferences planted in them, in the 2014 format.

Owns the planted world: categories of uneven size, latent groups of items within them, users who prefer one to three
groups of one category. Memory grows with users and items, not with interactions. One seed gives the same bytes.
"""

import gzip
import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feature_store.errors import SettingsError

_ITEMS_PER_GROUP = 40
_MIN_REVIEWS = 5  # of a user and of an item: the published sets are 5-core
_NOISE = 0.15  # share of interactions that follow popularity alone
_PREFERENCES = np.array([0.6, 0.3, 0.1])  # of a user's first, second and third group
_START_S = 1_356_998_400  # 2013-01-01 UTC
_DAY_S = 86_400
_NUM_DAYS = 730
_CHUNK_USERS = 20_000
_RATINGS = np.array([1, 2, 3, 4, 5])

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _World(NamedTuple):
    """Items are numbered by group, groups by category: a group or category is a range. G groups, C categories."""

    category_of_item: Ints
    group_of_item: Ints
    group_bounds: Ints  # (G + 1,) first item of each group
    category_bounds: Ints  # (C + 1,) first group of each category
    popularity: Floats  # (N + 1,) cumulative, from 0


class _Users(NamedTuple):
    """Each user's groups (U, 3), how many of them count, and how many reviews are free to follow them."""

    groups: Ints
    num_groups: Ints
    num_free: Ints
    covered_bounds: Ints  # (U + 1,) each user's range in `covered`
    covered: Ints  # items that a user reviews so that no item stays without


def generate(
    folder: Path, num_users: int, num_items: int, num_interactions: int, num_categories: int, seed: int
) -> None:
    """Write `reviews_Generated_5.json.gz` and `meta_Generated.json.gz` with exactly the numbers asked for.

    Popularity follows Zipf's law; every user and every item has at least five reviews if there are enough, and no
    user reviews an item twice. What is planted can be learned: 85 % of a user's reviews fall into the groups that
    the user prefers, and nothing written says which groups these are.

    Raises:
        SettingsError: the numbers do not go together.
    """
    if min(num_users, num_items, num_interactions, num_categories) < 1 or num_categories > num_items:
        raise SettingsError("generate: every number is at least 1, and there are no more categories than items")
    if not max(num_users, num_items) <= num_interactions <= num_users * num_items // 2:
        raise SettingsError(
            f"generate: {num_interactions} interactions do not go with {num_users} users and {num_items} items: "
            f"possible are {max(num_users, num_items)} to {num_users * num_items // 2}"
        )
    rng = np.random.default_rng(seed)
    world = _make_world(rng, num_items, num_categories)
    users = _make_users(rng, world, num_users, num_interactions)
    folder.mkdir(parents=True, exist_ok=True)
    with _gzip_writer(folder / "meta_Generated.json.gz") as file:
        file.writelines(_item_lines(rng, world))
    with _gzip_writer(folder / "reviews_Generated_5.json.gz") as file:
        for start in range(0, num_users, _CHUNK_USERS):
            file.writelines(_review_lines(rng, world, users, start, min(start + _CHUNK_USERS, num_users)))
