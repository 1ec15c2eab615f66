"""ALS fitted every night: what each fit has seen, who gets what, and which setting answers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from simulators.baselines import AlsSettings, als_scorer
from simulators.dataset import Dataset, load_dataset
from simulators.metrics import hit_rate
from simulators.nightly import (
    NIGHTLY_ALS,
    NIGHTLY_POPULAR,
    RECENT,
    NightlyTrial,
    nightly_trial,
    ranks_along,
    recent_popularity,
)
from simulators.online_plan import Plan, Window
from simulators.synthetic import generate

DAY_MS = 86_400_000
SETTINGS = AlsSettings(factors=8, alpha=10, iterations=5)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("generated")
    generate(folder, 300, 400, 4_000, 3, seed=1)
    found = load_dataset(folder)
    a_hundred_days = np.linspace(0, 100 * DAY_MS, len(found.reviews)).astype(np.int64)
    return replace(found, reviews=replace(found.reviews, ts_ms=a_hundred_days))


def asked(dataset: Dataset, *rows: int) -> tuple[np.ndarray, np.ndarray]:
    places = np.array(rows)
    return places, dataset.reviews.ts_ms[places] // DAY_MS * DAY_MS


def test_a_rank_is_that_of_the_last_night_over_what_the_user_has_not(dataset: Dataset) -> None:
    reviews = dataset.reviews
    rows, nights = asked(dataset, 2100, 3990)
    (ranks,), seconds = ranks_along(dataset, rows, nights, SETTINGS, 7)
    assert len(seconds) == 2
    for row, night, rank in zip(rows.tolist(), nights.tolist(), ranks.tolist(), strict=True):
        user, item = int(reviews.users[row]), int(reviews.items[row])
        past = dataset.take(reviews.ts_ms < night)
        known = set(past.reviews.items.tolist())
        assert user in past.reviews.users
        assert item in known
        scores = als_scorer(past, SETTINGS, 7)([user])[0]
        owned = set(reviews.items[:row][reviews.users[:row] == user].tolist())
        better = [n for n in known - owned if scores[n] > scores[item]]
        assert rank == 1 + len(better)


def test_no_fit_knows_its_day_or_what_comes_later(dataset: Dataset) -> None:
    rows, nights = asked(dataset, 2100, 2110)
    (before,), _ = ranks_along(dataset, rows, nights, SETTINGS, 0)
    assert np.isfinite(before).all()
    items = dataset.reviews.items.copy()
    later = (dataset.reviews.ts_ms >= nights[0]) & ~np.isin(np.arange(len(items)), rows)
    items[later] = (items[later] + 1) % 400
    theirs = np.isin(dataset.reviews.users, dataset.reviews.users[rows])
    items[theirs] = dataset.reviews.items[theirs]  # what those who ask have is left out, today's too
    changed = replace(dataset, reviews=replace(dataset.reviews, items=items))
    assert (items != dataset.reviews.items).sum() > 1000
    assert ranks_along(changed, rows, nights, SETTINGS, 0)[0][0].tolist() == before.tolist()


def test_new_users_get_the_popular_and_new_items_are_not_found(dataset: Dataset) -> None:
    reviews, row = dataset.reviews, 3000
    _, nights = asked(dataset, row)
    user, item = int(reviews.users[row]), int(reviews.items[row])
    rest = (reviews.users != user) | (np.arange(len(reviews)) == row)
    new_user = dataset.take(rest)
    at = np.flatnonzero(rest).tolist().index(row)
    ((rank,),), _ = ranks_along(new_user, np.array([at]), nights, SETTINGS, 0)
    counts = np.bincount(reviews.items[rest & (reviews.ts_ms < nights[0])], minlength=400)
    ties = int((counts == counts[item]).sum()) - 1
    assert rank == 1 + (counts > counts[item]).sum() + ties / 2
    rest = (reviews.items != item) | (np.arange(len(reviews)) >= row)
    at = np.flatnonzero(rest).tolist().index(row)
    ((rank,),), _ = ranks_along(dataset.take(rest), np.array([at]), nights, SETTINGS, 0)
    assert rank == np.inf


def test_recent_popularity_is_added_for_those_that_it_knows(dataset: Dataset) -> None:
    rows, nights = asked(dataset, 2100, 3990)
    reviews, weight = dataset.reviews, 0.1
    (alone, both), _ = ranks_along(dataset, rows, nights, SETTINGS, 7, (0.0, weight))
    assert alone.tolist() == ranks_along(dataset, rows, nights, SETTINGS, 7)[0][0].tolist()
    for row, night, rank in zip(rows.tolist(), nights.tolist(), both.tolist(), strict=True):
        user, item = int(reviews.users[row]), int(reviews.items[row])
        past = dataset.take(reviews.ts_ms < night)
        counts = [0.0] * 400
        for age, each in enumerate(reversed(past.reviews.items.tolist())):
            counts[each] += 0.5 ** (age / 5_000)
        mean = (sum(counts) + 400) / 400
        popularity = [float(np.log((count + 1) / mean)) for count in counts]
        np.testing.assert_allclose(recent_popularity(past), popularity, atol=1e-5)
        scores = als_scorer(past, SETTINGS, 7)([user])[0] + weight * np.array(popularity)
        owned = set(reviews.items[:row][reviews.users[:row] == user].tolist())
        better = [n for n in set(past.reviews.items.tolist()) - owned if scores[n] > scores[item]]
        assert rank == 1 + len(better)


def test_with_a_weight_new_users_get_what_is_popular_of_late(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simulators.nightly.HALF_LIFE", 50)
    reviews, row = dataset.reviews, 3000
    _, nights = asked(dataset, row)
    rest = (reviews.users != reviews.users[row]) | (np.arange(len(reviews)) == row)
    new_user = dataset.take(rest)
    at = np.flatnonzero(rest).tolist().index(row)
    (alone, both), _ = ranks_along(new_user, np.array([at]), nights, SETTINGS, 0, (0.0, 0.1))
    recent = recent_popularity(new_user.take(new_user.reviews.ts_ms < nights[0]))
    item = reviews.items[row]
    assert both[0] == 1 + (recent > recent[item]).sum() + ((recent == recent[item]).sum() - 1) / 2
    assert both[0] != alone[0]


def test_each_series_is_by_the_settings_that_were_best_for_it(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan((Window(3600, 4000, 0),), (3600,), 1500)
    other = SETTINGS.model_copy(update={"factors": 4})
    candidates, weights = {"one": SETTINGS, "other": other}, (0.05, 0.3)
    told = iter([0.2, 0.1, 0.1, 0.1, 0.3, 0.1])  # of one: best alone; of other: with the smaller weight
    monkeypatch.setattr("simulators.nightly.hit_rate", lambda ranks, k: next(told))
    result = NightlyTrial("als", 0, candidates, weights).run(dataset, plan, tmp_path, lambda *_: None)
    assert result.chosen == "one; other and popularity times 0.05"
    rows = np.arange(3600, 4000)
    nights = dataset.reviews.ts_ms[rows] // DAY_MS * DAY_MS
    assert len(result.retrain_seconds) == 2 * len(np.unique(nights))
    for name, settings, weight in ((NIGHTLY_ALS, SETTINGS, 0.0), (NIGHTLY_POPULAR, other, 0.05)):
        (expected,), _ = ranks_along(dataset, rows, nights, settings, 0, (weight,))
        assert result.ranks[name].tolist() == expected.tolist()
    reviews, row = dataset.reviews, 3700
    past = dataset.take(reviews.ts_ms < nights[row - 3600])
    recent, item = recent_popularity(past), int(reviews.items[row])
    owned = reviews.items[:row][reviews.users[:row] == reviews.users[row]]
    others = np.setdiff1d(past.reviews.items, owned)
    better, alike = (recent[others] > recent[item]).sum(), (recent[others] == recent[item]).sum()
    assert result.ranks[RECENT][row - 3600] == 1 + better + (alike - 1) / 2


def test_the_best_candidate_answers_every_night(dataset: Dataset, tmp_path: Path) -> None:
    plan = Plan((Window(1500, 1900, 0), Window(3600, 4000, 1)), (1500, 3600), 1500)
    candidates = {"crushed": SETTINGS.model_copy(update={"regularization": 1e9}), "good": SETTINGS}
    heard: list[tuple[int, int]] = []
    trial = NightlyTrial("als", 0, candidates)
    result = trial.run(dataset, plan, tmp_path, lambda done, total: heard.append((done, total)))
    assert result.chosen.startswith("good; good and popularity times 0.")
    assert set(result.ranks) == {NIGHTLY_ALS, NIGHTLY_POPULAR, RECENT}
    rows = np.concatenate([np.arange(1500, 1900), np.arange(3600, 4000)])
    assert result.rows.tolist() == rows.tolist()
    assert result.windows.tolist() == [0] * 400 + [1] * 400
    num_nights = len(np.unique(dataset.reviews.ts_ms[rows] // DAY_MS))
    assert len(result.retrain_seconds) == num_nights
    assert heard == [(n + 1, 4 + num_nights) for n in range(4 + num_nights)]
    by_window = dataset.reviews.ts_ms[np.repeat([1500, 3600], 400)] // DAY_MS * DAY_MS
    (seldom,), _ = ranks_along(dataset, rows, by_window, SETTINGS, 0)
    nightly = result.ranks[NIGHTLY_ALS]
    assert hit_rate(nightly, 10) > hit_rate(seldom, 10) > 0.05  # by chance .025; the more nights the better


def test_the_candidates_are_those_of_compare_and_decide_the_file() -> None:
    trial = nightly_trial(0)
    assert trial.candidates["als.regularization=10, als.alpha=20"] == AlsSettings(regularization=10, alpha=20)
    plan = Plan((Window(0, 1, 0),), (0,), 0)
    fewer = trial._replace(candidates=dict(list(trial.candidates.items())[:1]))
    assert len({one.digest("data", plan) for one in (trial, fewer, trial._replace(seed=1))}) == 3
