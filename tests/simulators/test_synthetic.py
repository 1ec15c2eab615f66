"""Generated logs: the numbers asked for, the format of 2014, and preferences that can be found again."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.errors import SettingsError
from simulators.amazon import detect_format, find_files, read_reviews
from simulators.dataset import Dataset, load_dataset
from simulators.synthetic import generate

YEAR_MS = 365 * 86_400_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("generated")
    generate(path, 2_000, 800, 24_000, 11, seed=7)
    return path


@pytest.fixture(scope="module")
def dataset(folder: Path) -> Dataset:
    return load_dataset(folder)


def test_numbers_are_those_asked_for(folder: Path, dataset: Dataset):
    assert detect_format(folder) == "2014"
    reviews = dataset.reviews
    assert sum(1 for _ in read_reviews(find_files(folder, "2014").reviews, "2014")) == 24_000
    assert (len(reviews), reviews.num_users, reviews.num_items) == (24_000, 2_000, 800)  # no pair twice
    assert np.bincount(reviews.users).min() >= 5
    assert np.bincount(reviews.items).min() >= 5
    assert YEAR_MS < reviews.ts_ms[-1] - reviews.ts_ms[0] <= 2 * YEAR_MS


def test_items_have_what_the_real_ones_have(dataset: Dataset):
    items = dataset.items.values()
    assert all(item.title and item.brand and item.price for item in items)
    sizes = sorted(Counter(item.category for item in items).values())
    assert len(sizes) == 11
    assert sizes[-1] > 5 * sizes[0]  # uneven


def test_popularity_falls_as_zipf_says(dataset: Dataset):
    counts = np.sort(np.bincount(dataset.reviews.items))[::-1]
    assert counts[0] > 5 * np.median(counts)
    assert counts[:80].sum() > 0.3 * len(dataset.reviews)


def test_users_keep_to_one_category(dataset: Dataset):
    reviews = dataset.reviews
    categories = [dataset.items[item_id].category for item_id in reviews.item_ids]
    of_user: dict[int, list[str | None]] = {}
    of_all = Counter(categories[item] for item in reviews.items)
    for user, item in zip(reviews.users.tolist(), reviews.items.tolist(), strict=True):
        of_user.setdefault(user, []).append(categories[item])
    share = np.mean([Counter(own).most_common(1)[0][1] / len(own) for own in of_user.values()])
    assert share > 0.6 > 1.5 * of_all.most_common(1)[0][1] / len(reviews)


def test_groups_can_be_found_within_a_category(dataset: Dataset):
    """Few pairs of items of one category share many users: users follow groups, not the category alone."""
    reviews = dataset.reviews
    largest = Counter(item.category for item in dataset.items.values()).most_common(1)[0][0]
    inside = [n for n, item_id in enumerate(reviews.item_ids) if dataset.items[item_id].category == largest]
    seen = np.zeros((len(reviews.user_ids), len(reviews.item_ids)))
    seen[reviews.users, reviews.items] = 1
    seen = seen[:, inside]
    together = seen.T @ seen
    expected = np.outer(np.diag(together), np.diag(together)) / max(1, (seen.sum(axis=1) > 0).sum())
    lift = (together / expected)[~np.eye(len(inside), dtype=bool)]
    assert np.quantile(lift, 0.95) > 3
    assert np.median(lift) < 1


def test_a_seed_gives_the_same_bytes(folder: Path, tmp_path: Path):
    generate(tmp_path / "same", 2_000, 800, 24_000, 11, seed=7)
    generate(tmp_path / "other", 2_000, 800, 24_000, 11, seed=8)
    for path in folder.iterdir():
        assert (tmp_path / "same" / path.name).read_bytes() == path.read_bytes()
        assert (tmp_path / "other" / path.name).read_bytes() != path.read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_size_that_is_possible(tmp_path_factory: pytest.TempPathFactory, data):
    num_users, num_items = data.draw(st.integers(2, 40)), data.draw(st.integers(2, 40))
    num = data.draw(st.integers(num_users + num_items, max(num_users + num_items, num_users * num_items)))
    num_categories = data.draw(st.integers(1, num_items))
    path = tmp_path_factory.mktemp("any")
    if num > num_users * num_items:
        with pytest.raises(SettingsError, match="each pair once"):
            generate(path, num_users, num_items, num, num_categories, seed=0)
        return
    generate(path, num_users, num_items, num, num_categories, seed=0)
    reviews = load_dataset(path).reviews
    assert (len(reviews), reviews.num_users, reviews.num_items) == (num, num_users, num_items)
    if num >= 5 * (num_users + num_items):
        assert np.bincount(reviews.users).min() >= min(5, num_items)
        assert np.bincount(reviews.items).min() >= min(5, num_users)


@pytest.mark.parametrize("sizes", [(0, 5, 9, 1), (5, 5, 9, 1), (5, 5, 26, 1), (5, 5, 15, 6), (5, 5, 15, 0)])
def test_impossible_sizes_are_refused(tmp_path: Path, sizes: tuple[int, int, int, int]):
    with pytest.raises(SettingsError, match="generate: "):
        generate(tmp_path, *sizes, seed=0)
