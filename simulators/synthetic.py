"""Writes Amazon-shaped logs of any size, with preferences planted in them, in the 2014 format.

Owns the planted world: categories of uneven size, latent groups of items within them, users who prefer one to
three groups of one category. Memory grows with users and items, not with interactions. Same seed, same bytes.
"""

import gzip
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
_DAYS = [
    f"{day:%m} {day.day}, {day.year}"
    for day in (datetime.fromtimestamp(_START_S + number * _DAY_S, UTC) for number in range(_NUM_DAYS))
]
_RATINGS = np.array([0.04, 0.05, 0.1, 0.25, 0.56])  # shares of 1 to 5 stars
_PREFERENCE_ROUNDS = 5  # draws of an item that the user has already are repeated
_ROUNDS = 15

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class _World(NamedTuple):
    """Items are numbered by group, groups by category: each is a range. G groups, C categories."""

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

    Popularity follows Zipf's law; every user and every item has five reviews or more if there are enough,
    and no user reviews an item twice. What is planted can be learned: most of a user's reviews fall into the
    few groups that the user prefers, and the metadata do not say which items make a group.

    Raises:
        SettingsError: the numbers do not go together, or the folder cannot be written.
    """
    if min(num_users, num_items, num_interactions, num_categories) < 1 or num_categories > num_items:
        raise SettingsError(
            "generate: every number is at least 1, and there are no more categories than items"
        )
    if not num_users + num_items <= num_interactions <= num_users * num_items:
        raise SettingsError(
            f"generate: {num_interactions} interactions of {num_users} users and {num_items} items: possible "
            f"are {num_users + num_items} (so that each is seen) to {num_users * num_items} (each pair once)"
        )
    rng = np.random.default_rng(seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        world = _make_world(rng, num_items, num_categories)
        users = _make_users(rng, world, num_users, num_interactions)
        with _gzip_writer(folder / "meta_Generated.json.gz") as file:
            file.writelines(_item_lines(rng, world))
        with _gzip_writer(folder / "reviews_Generated_5.json.gz") as file:
            for start in range(0, num_users, _CHUNK_USERS):
                file.writelines(_review_lines(rng, world, users, start, min(start + _CHUNK_USERS, num_users)))
    except OSError as error:
        raise SettingsError(f"generate: cannot write to {folder}: {error.strerror}") from None


def _make_world(rng: np.random.Generator, num_items: int, num_categories: int) -> _World:
    shares = 1.0 / np.arange(1, num_categories + 1)
    sizes = 1 + np.floor((num_items - num_categories) * shares / shares.sum()).astype(np.int64)
    sizes[0] += num_items - sizes.sum()
    groups = np.maximum(1, sizes // _ITEMS_PER_GROUP)
    starts = np.cumsum(sizes) - sizes
    bounds = [
        start + size * np.arange(num) // num for start, size, num in zip(starts, sizes, groups, strict=True)
    ]
    group_bounds = np.concatenate([*bounds, [num_items]])
    weights = 1.0 / (10.0 + rng.permutation(num_items))
    return _World(
        np.repeat(np.arange(num_categories), sizes),
        np.repeat(np.arange(groups.sum()), np.diff(group_bounds)),
        group_bounds,
        np.concatenate([[0], np.cumsum(groups)]),
        np.concatenate([[0.0], np.cumsum(weights)]),
    )


def _make_users(rng: np.random.Generator, world: _World, num_users: int, num_interactions: int) -> _Users:
    num_items = len(world.group_of_item)
    groups = _draw_groups(rng, world, num_users)
    num_each = min(
        _MIN_REVIEWS, num_users, max(1, (num_interactions - _MIN_REVIEWS * num_users) // num_items)
    )
    fans = _fans(rng, world, groups[:, 0], num_each)
    order = np.argsort(fans.reshape(-1), kind="stable")
    num_covered = np.bincount(fans.reshape(-1), minlength=num_users)
    num_reviews = next(
        counts
        for least in range(_MIN_REVIEWS, 0, -1)
        if (counts := np.maximum(num_covered, min(least, num_items))).sum() <= num_interactions
    )
    weights = rng.lognormal(0.0, 1.0, num_users)
    num_reviews += rng.multinomial(num_interactions - num_reviews.sum(), weights / weights.sum())
    np.minimum(num_reviews, num_items, out=num_reviews)
    while missing := num_interactions - int(num_reviews.sum()):  # a user cannot review more than all items
        num_reviews[np.flatnonzero(num_reviews < num_items)[:missing]] += 1
    return _Users(
        groups,
        rng.integers(1, 4, num_users),
        num_reviews - num_covered,
        np.concatenate([[0], np.cumsum(num_covered)]),
        np.repeat(np.arange(num_items), num_each)[order],
    )


def _draw_groups(rng: np.random.Generator, world: _World, num_users: int) -> Ints:
    """Draw each user's groups (U, 3) by popularity, the second and third from the first one's category."""
    num_items = len(world.group_of_item)
    first = _draw_items(rng, world, np.zeros(num_users, np.int64), np.full(num_users, num_items))
    category = world.category_of_item[first]
    start = world.group_bounds[world.category_bounds[category]]
    end = world.group_bounds[world.category_bounds[category + 1]]
    others = [_draw_items(rng, world, start, end) for _ in range(2)]
    return world.group_of_item[np.stack([first, *others], axis=1)]


def _fans(rng: np.random.Generator, world: _World, first_group: Ints, num_each: int) -> Ints:
    """Return for every item `num_each` different users (N, num_each) who prefer its group, or nearly.

    Users stand in order of their group; an item takes neighbours from its group's range, and from the next
    range where its own is too short.
    """
    order = np.argsort(first_group, kind="stable")
    sizes = np.bincount(first_group, minlength=len(world.group_bounds) - 1)
    starts = (np.cumsum(sizes) - sizes)[world.group_of_item]
    room = np.maximum(sizes, num_each)[world.group_of_item]
    turn = (rng.random(len(room)) * room).astype(np.int64)
    place = (turn[:, None] + np.arange(num_each)) % room[:, None]
    fans: Ints = order[(starts[:, None] + place) % len(order)]
    return fans


def _draw_items(rng: np.random.Generator, world: _World, start: Ints, end: Ints) -> Ints:
    """Draw one item by popularity from each range [start, end)."""
    low, high = world.popularity[start], world.popularity[end]
    place = np.searchsorted(world.popularity, low + rng.random(len(low)) * (high - low), side="right") - 1
    return np.clip(place, start, end - 1)


def _draw_preferred(rng: np.random.Generator, world: _World, users: _Users, user: Ints) -> Ints:
    """Draw one item for each of `user`: from a group that the user prefers, or by popularity alone."""
    cumulative = np.cumsum(_PREFERENCES)[users.num_groups[user] - 1]
    which = np.searchsorted(np.cumsum(_PREFERENCES), rng.random(len(user)) * cumulative, side="right")
    group = users.groups[user, np.minimum(which, users.num_groups[user] - 1)]
    noise = rng.random(len(user)) < _NOISE
    start = np.where(noise, 0, world.group_bounds[group])
    end = np.where(noise, len(world.group_of_item), world.group_bounds[group + 1])
    return _draw_items(rng, world, start, end)


def _draw_pairs(
    rng: np.random.Generator, world: _World, users: _Users, first: int, last: int
) -> tuple[Ints, Ints]:
    """Draw what the users [first, last) review: users and items, no pair twice."""
    numbers = np.arange(first, last)
    num_items = len(world.group_of_item)
    covered = users.covered[users.covered_bounds[first] : users.covered_bounds[last]]
    user = np.concatenate(
        [
            np.repeat(numbers, np.diff(users.covered_bounds[first : last + 1])),
            np.repeat(numbers, users.num_free[first:last]),
        ]
    )
    item = np.concatenate([covered, np.zeros(len(user) - len(covered), np.int64)])
    again = np.arange(len(covered), len(user))
    for round_number in range(_ROUNDS):
        if round_number < _PREFERENCE_ROUNDS:
            item[again] = _draw_preferred(rng, world, users, user[again])
        else:
            item[again] = rng.integers(0, num_items, len(again))
        again = _repeated(user, item)
        if not len(again):
            break
    for number in np.unique(user[again]):  # few, and only where users review nearly everything
        places = again[user[again] == number]
        left = np.setdiff1d(np.arange(num_items), item[user == number])
        item[places] = rng.choice(left, len(places), replace=False)
    return user, item


def _repeated(user: Ints, item: Ints) -> Ints:
    """Return the places whose pair stood before, in ascending order."""
    _, first = np.unique(user << 32 | item, return_index=True)
    repeated = np.ones(len(user), np.bool_)
    repeated[first] = False
    return np.flatnonzero(repeated)


def _review_lines(
    rng: np.random.Generator, world: _World, users: _Users, first: int, last: int
) -> Iterator[str]:
    """Yield the reviews of the users [first, last), user by user in order of time."""
    user, item = _draw_pairs(rng, world, users, first, last)
    joined = rng.random(last - first)[user - first] * 0.7
    second = ((joined + (1.0 - joined) * rng.random(len(user))) * (_NUM_DAYS * _DAY_S)).astype(np.int64)
    order = np.lexsort((second, user))
    stars = rng.choice(np.arange(1, 6), len(user), p=_RATINGS)
    votes = rng.geometric(0.6, len(user)) - 1
    columns = (column.tolist() for column in (user[order], item[order], second[order], stars, votes))
    for u, i, s, r, h in zip(*columns, strict=True):
        yield (
            f'{{"reviewerID": "A{u:08d}", "asin": "B{i:08d}", "helpful": [{h}, {h}], "reviewText": "", '
            f'"overall": {r}.0, "summary": "", "unixReviewTime": {_START_S + s}, '
            f'"reviewTime": "{_DAYS[s // _DAY_S]}"}}\n'
        )


def _item_lines(rng: np.random.Generator, world: _World) -> Iterator[str]:
    """Yield the metadata as the Python dicts that the files of 2014 hold. Brands and prices tell no group."""
    num_items = len(world.category_of_item)
    brands = rng.zipf(1.5, num_items).clip(max=200).tolist()
    prices = np.round(np.exp(rng.normal(2.7, 0.6, num_items)), 2).tolist()
    for item, (category, brand, price) in enumerate(
        zip(world.category_of_item.tolist(), brands, prices, strict=True)
    ):
        fields = {
            "asin": f"B{item:08d}",
            "title": f"Item {item} of category {category}",
            "price": price,
            "brand": f"Brand {category}-{brand}",
            "categories": [["Generated", f"category {category}"]],
        }
        yield f"{fields!r}\n"


@contextmanager
def _gzip_writer(path: Path) -> Iterator[TextIOWrapper]:
    """Open a gzip file whose bytes depend on what is written alone, not on its name or the time."""
    with (
        path.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        TextIOWrapper(packed, encoding="ascii") as file,
    ):
        yield file
