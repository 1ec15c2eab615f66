"""Clean-up, k-core and splits against brute force, and against figures published for the real data."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.errors import DataError
from simulators.amazon_fields import ItemMeta, Review
from simulators.dataset import (
    Dataset,
    collect,
    first_of_pair,
    k_core_rows,
    leave_last_out,
    leave_last_two_out,
    load_dataset,
    split_by_time,
)
from simulators.metrics import hit_rate, middle_ranks, mrr

pairs = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=40)
stories = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 9), st.integers(0, 5)), max_size=40)


def dataset_of(rows: list[tuple[int, int, int]], rating: float | None = 5.0) -> Dataset:
    """Make a data set of (user, item, time), in file order."""
    reviews = collect(
        Review(f"u{user}", f"i{item}", ts_ms, rating, 0, line)
        for line, (user, item, ts_ms) in enumerate(rows, 1)
    )
    return Dataset("made", reviews, {item_id: ItemMeta(item_id) for item_id in reviews.item_ids})


def rows_of(dataset: Dataset) -> list[tuple[str, str, int]]:
    reviews = dataset.reviews
    return [
        (reviews.user_ids[user], reviews.item_ids[item], ts_ms)
        for user, item, ts_ms in zip(reviews.users, reviews.items, reviews.ts_ms.tolist(), strict=True)
    ]


@given(stories)
def test_reviews_are_sorted_by_time_then_file_order(rows):
    expected = [(f"u{user}", f"i{item}", ts) for user, item, ts in sorted(rows, key=lambda row: row[2])]
    assert rows_of(dataset_of(rows)) == expected


@given(pairs)
def test_first_of_pair_is_what_a_set_keeps(rows):
    seen: set[tuple[int, int]] = set()
    expected = [place for place, pair in enumerate(rows) if not (pair in seen or seen.add(pair))]
    users, items = np.array(rows, np.int32).reshape(-1, 2).T
    assert first_of_pair(users, items).tolist() == expected


@given(pairs, st.integers(1, 4))
def test_k_core_is_the_largest_part_with_k_each(rows, k):
    kept = list(range(len(rows)))
    while True:  # one at a time: the fixed point does not depend on the order
        users, items = Counter(rows[i][0] for i in kept), Counter(rows[i][1] for i in kept)
        bad = next((i for i in kept if users[rows[i][0]] < k or items[rows[i][1]] < k), None)
        if bad is None:
            break
        kept.remove(bad)
    users_n, items_n = np.array(rows, np.int32).reshape(-1, 2).T
    assert k_core_rows(users_n, items_n, k).tolist() == kept


@given(stories)
def test_leave_last_out_takes_each_users_last(rows):
    dataset = dataset_of(rows)
    histories: dict[str, list[tuple[str, str, int]]] = {}
    for row in rows_of(dataset):
        histories.setdefault(row[0], []).append(row)
    train, test = leave_last_out(dataset)
    assert sorted(rows_of(test)) == sorted(rows[-1] for rows in histories.values() if len(rows) >= 2)
    assert Counter(rows_of(train)) + Counter(rows_of(test)) == Counter(rows_of(dataset))
    assert train.items == test.items == dataset.items
    rest, validation, last = leave_last_two_out(dataset)
    assert rows_of(last) == rows_of(test)
    assert sorted(rows_of(validation)) == sorted(rows[-2] for rows in histories.values() if len(rows) >= 3)
    assert Counter(rows_of(rest)) + Counter(rows_of(validation)) == Counter(rows_of(train))


def test_a_tie_is_broken_by_file_order():
    train, test = leave_last_out(dataset_of([(0, 3, 7), (0, 1, 7), (0, 2, 7)]))
    assert rows_of(test) == [("u0", "i2", 7)]
    assert rows_of(train) == [("u0", "i3", 7), ("u0", "i1", 7)]


def test_split_by_time_by_hand():
    rows = [(0, 0, 1), (0, 1, 9), (0, 2, 10), (1, 0, 12), (0, 0, 20), (0, 5, 20), (2, 0, 21), (1, 6, 19)]
    split = split_by_time(dataset_of(rows), 10, 20)
    assert rows_of(split.train) == [("u0", "i0", 1), ("u0", "i1", 9)]
    assert rows_of(split.validation) == [("u0", "i2", 10), ("u1", "i0", 12), ("u1", "i6", 19)]
    assert rows_of(split.test) == [("u0", "i5", 20), ("u2", "i0", 21)]  # u0 had i0 in training
    with pytest.raises(DataError, match=r"nothing to train on before 10 ms, or nothing rated 4\.0"):
        split_by_time(dataset_of(rows, rating=3.0), 10, 20)
    with pytest.raises(DataError, match="nothing to train on before 0 ms"):
        split_by_time(dataset_of(rows), 0, 20)
    with pytest.raises(DataError, match="after the test's start"):
        split_by_time(dataset_of(rows), 30, 20)


def write(folder: Path, reviews: list[tuple[str, str, int, float]], items: list[dict[str, object]]) -> None:
    lines = [
        {"reviewerID": user, "asin": item, "unixReviewTime": ts, "overall": rating}
        for user, item, ts, rating in reviews
    ]
    (folder / "Made_5.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "meta_Made.json").write_text("".join(json.dumps(line) + "\n" for line in items))


def test_load_filters_in_order(tmp_path: Path):
    write(
        tmp_path,
        [
            ("a", "x", 5, 5.0),
            ("a", "x", 3, 1.0),  # earlier, so this is the one that stays
            ("a", "y", 4, 4.0),
            ("b", "x", 1, 5.0),
            ("b", "y", 2, 2.0),
            ("c", "z", 9, 5.0),
            ("c", "x", 9, 4.0),
        ],
        [
            {"asin": "x", "category": ["Books", "Art"], "title": "first"},
            {"asin": "x", "category": ["Books", "Oil"], "title": "second"},
            {"asin": "y", "category": ["Books", "Rock &amp; Roll"]},
            {"asin": "unseen", "category": ["Books", "Art"]},
        ],
    )
    whole = load_dataset(tmp_path)
    assert whole.name == tmp_path.name
    assert rows_of(whole) == [
        ("b", "x", 1000),
        ("b", "y", 2000),
        ("a", "x", 3000),
        ("a", "y", 4000),
        ("c", "z", 9000),
        ("c", "x", 9000),
    ]
    assert {item_id: (item.category, item.title) for item_id, item in whole.items.items()} == {
        "x": ("Art", "first"),
        "y": ("Rock & Roll", None),
        "z": (None, None),
    }
    good = load_dataset(tmp_path, min_rating=4)
    assert rows_of(good) == [("b", "x", 1000), ("a", "y", 4000), ("c", "z", 9000), ("c", "x", 9000)]
    top = load_dataset(tmp_path, "2018", top_categories=1)
    assert rows_of(top) == [("b", "x", 1000), ("a", "x", 3000), ("c", "x", 9000)]
    assert list(top.items) == top.reviews.item_ids == ["x"]
    core = load_dataset(tmp_path, k_core=2)
    assert rows_of(core) == [("b", "x", 1000), ("b", "y", 2000), ("a", "x", 3000), ("a", "y", 4000)]
    assert core.reviews.user_ids == ["a", "b"]


def test_nothing_left_is_an_error(tmp_path: Path):
    write(tmp_path, [("a", "x", 5, 5.0)], [])
    for filters in ({"k_core": 2}, {"min_rating": 5.5}, {"top_categories": 1}):
        with pytest.raises(DataError, match=r"Made_5\.json: no review is left"):
            load_dataset(tmp_path, **filters)
    write(tmp_path, [], [])
    with pytest.raises(DataError, match=r"Made_5\.json, line 1: the file holds no reviews"):
        load_dataset(tmp_path)


COUNTS = {  # users, items, reviews, categories; without a user's second review of the same item
    "toys_2014": (19_412, 11_876, 128_773, 169),
    "beauty_2014": (22_363, 12_101, 198_502, 38),
    "electronics_2023": (15_266, 9_671, 131_154 - 1_286, 492),
    "digital_music_2014": (2_490, 382, 6_908, None),
    "magazine_2018": (348, 157, 2_375 - 73, None),
}


@pytest.mark.parametrize("name", COUNTS)
def test_real_data_sets(data_root: Path, name: str):
    dataset = load_dataset(data_root / name)
    reviews = dataset.reviews
    num_categories = len({item.category for item in dataset.items.values()})
    found = (reviews.num_users, reviews.num_items, len(reviews), num_categories)
    assert found[:3] == COUNTS[name][:3]
    assert COUNTS[name][3] in (None, num_categories)
    assert np.all(np.diff(reviews.ts_ms) >= 0)
    assert list(dataset.items) == reviews.item_ids


def popularity_ranks(train: Dataset, test: Dataset) -> np.ndarray:
    """Rank what was held out by its number of training reviews, leaving out what the user has."""
    counts = np.bincount(train.reviews.items, minlength=len(train.reviews.item_ids)).astype(np.float32)
    owned: dict[int, list[int]] = {}
    for user, item in zip(train.reviews.users.tolist(), train.reviews.items.tolist(), strict=True):
        owned.setdefault(user, []).append(item)
    ranks = []
    for start in range(0, len(test.reviews), 512):
        users = test.reviews.users[start : start + 512].tolist()
        targets = test.reviews.items[start : start + 512]
        scores = np.tile(counts, (len(users), 1))
        ranks.append(middle_ranks(scores, targets, [owned.get(user, []) for user in users]))
    return np.concatenate(ranks)


def test_popularity_on_toys_is_as_measured_elsewhere(data_root: Path):
    ranks = popularity_ranks(*leave_last_out(load_dataset(data_root / "toys_2014")))
    figures = (hit_rate(ranks, 10), hit_rate(ranks, 50), 10 * mrr(ranks))
    assert figures == pytest.approx((0.0111, 0.0346, 0.065), rel=0.01)


def test_popularity_on_electronics_is_as_published(data_root: Path):
    split = split_by_time(load_dataset(data_root / "electronics_2023"), 1653679273178, 1662173626869)
    ranks = popularity_ranks(split.train, split.test)
    users = np.unique(split.test.reviews.users, return_inverse=True)[1]
    recall = {k: (np.bincount(users, weights=ranks <= k) / np.bincount(users)).mean() for k in (10, 50)}
    assert recall == pytest.approx({10: 0.0122, 50: 0.0499}, rel=0.02)
