"""Samples of users hold what they should; nothing that is tuned on is ever a test review."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from feature_store.errors import DataError
from simulators.dataset import Dataset, load_dataset
from simulators.evaluate import hold_out
from simulators.sampling import Times, bootstrap_sample, sample_users, tuning_part
from simulators.synthetic import generate

TIMES = Times(1_405_000_000_000, 1_410_000_000_000)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("generated")
    generate(folder, 400, 60, 5_000, num_categories=4, seed=1)
    return load_dataset(folder)


def rows(part: Dataset) -> set[tuple[str, str, int]]:
    reviews = part.reviews
    columns = (reviews.users.tolist(), reviews.items.tolist(), reviews.ts_ms.tolist())
    return {
        (reviews.user_ids[user], reviews.item_ids[item], ts_ms)
        for user, item, ts_ms in zip(*columns, strict=True)
    }


@pytest.mark.parametrize("times", [None, TIMES])
@pytest.mark.parametrize("max_users", [0, 50])
def test_neither_side_of_the_tuning_part_holds_a_test_review(
    dataset: Dataset, times: Times | None, max_users: int
) -> None:
    held = hold_out(dataset, *(times or (None, None)))
    tuning = tuning_part(dataset, times, max_users, seed=0)
    test = rows(held.test)
    assert rows(tuning.train) <= rows(held.train)
    assert not rows(tuning.train) & test
    assert not rows(tuning.test) & test
    assert not rows(tuning.test) & rows(tuning.train)
    assert len(tuning.test.reviews) > 0
    if max_users:
        assert len({user for user, _, _ in rows(tuning.train) | rows(tuning.test)}) <= max_users


def test_the_second_last_review_is_what_is_tuned_on(dataset: Dataset) -> None:
    tuning = tuning_part(dataset, None, 0, seed=0)
    held = hold_out(dataset, None, None)
    train = held.train.reviews
    last_of = {int(user): row for row, user in enumerate(train.users.tolist())}
    expected = {(user, int(train.items[row])) for user, row in last_of.items()}
    found = tuning.test.reviews
    assert set(zip(found.users.tolist(), found.items.tolist(), strict=True)) == expected


def test_nothing_between_the_times_leaves_nothing_to_tune_on(dataset: Dataset) -> None:
    with pytest.raises(DataError, match="--no-tuning"):
        tuning_part(dataset, Times(TIMES.train_end_ms, TIMES.train_end_ms), 0, seed=0)


def test_a_sample_keeps_all_of_its_users_and_none_of_the_others_items(dataset: Dataset) -> None:
    part = sample_users(dataset, 30, seed=0)
    users = set(part.reviews.user_ids)
    assert len(users) == 30
    assert rows(part) == {row for row in rows(dataset) if row[0] in users}
    assert set(part.items) == set(part.reviews.item_ids) == {item for _, item, _ in rows(part)}
    assert part.items[part.reviews.item_ids[0]] == dataset.items[part.reviews.item_ids[0]]
    assert rows(sample_users(dataset, 30, seed=0)) == rows(part) != rows(sample_users(dataset, 30, seed=1))
    assert sample_users(dataset, 400, seed=0) is dataset


@pytest.mark.parametrize("number", range(5))
def test_a_bootstrap_sample_passes_the_reproductions_filters_and_is_the_most_that_does(
    dataset: Dataset, number: int
) -> None:
    sample = bootstrap_sample(dataset, 0.2, number)
    drawn = np.random.default_rng(number).choice(np.arange(400), 80, replace=True)
    users = {dataset.reviews.user_ids[user] for user in drawn}
    kept = {row for row in rows(dataset) if row[0] in users}
    while True:  # by brute force: users first, then items: in any order the largest part is the same
        of_user, of_item = Counter(user for user, _, _ in kept), Counter(item for _, item, _ in kept)
        offenders = [row for row in kept if of_user[row[0]] < 5] or [
            row for row in kept if of_item[row[1]] < 4
        ]
        if not offenders:
            break
        kept -= set(offenders)
    assert rows(sample) == kept
    assert np.bincount(sample.reviews.users).min() >= 5
    assert np.bincount(sample.reviews.items).min() >= 4
    assert set(sample.items) == {item for _, item, _ in kept}


def test_too_small_a_sample_says_which_share_would_do(dataset: Dataset) -> None:
    with pytest.raises(DataError, match=r"--sample-share (0\.\d+) would do") as refused:
        bootstrap_sample(dataset, 0.005, 0)
    share = float(str(refused.value).split("--sample-share ")[1].split()[0])
    assert len(bootstrap_sample(dataset, share, 0).reviews)
    with pytest.raises(DataError, match="no share would do"):
        bootstrap_sample(sample_users(dataset, 3, seed=0), 0.1, 0)
