"""Figures and intervals against every possible resample, against scipy, and against the evaluator."""

import itertools

import numpy as np
import pytest
from scipy import stats

from simulators.amazon_fields import Review
from simulators.dataset import Dataset, collect
from simulators.evaluate import Held, figures_of
from simulators.statistics import (
    METRICS,
    PerUser,
    difference,
    interval,
    means,
    per_user,
    resampled_means,
    spread,
)

HR10 = METRICS.index("hr@10")


def with_values(values: list[float]) -> PerUser:
    """Users with one review each, whose every metric is the value."""
    sums_UM = np.repeat(np.array(values)[:, None], len(METRICS), axis=1)
    return PerUser(sums_UM, np.ones_like(sums_UM))


def test_means_are_those_of_the_evaluator_also_for_users_with_several_reviews() -> None:
    reviews = collect(Review(f"u{row % 7}", f"i{row}", row, 5.0, 0, row) for row in range(40))
    held = Held(Dataset("d", reviews, {}), Dataset("d", reviews, {}))
    ranks = np.random.default_rng(0).integers(1, 120, 40) + 0.5
    expected = figures_of(ranks, held)
    assert set(expected) == set(METRICS)
    assert means(per_user(ranks[None], reviews.users)) == pytest.approx(expected, abs=1e-12)


def test_hit_rate_weighs_reviews_and_recall_weighs_users() -> None:
    found = means(per_user(np.array([[1.0, 99.0, 99.0, 5.0]]), np.array([3, 3, 3, 8])))
    assert found["hr@10"] == pytest.approx(2 / 4)
    assert found["recall@10"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["mrr10"] == pytest.approx(10 * (1 + 1 / 99 + 1 / 99 + 1 / 5) / 4)


def test_seeds_are_averaged_by_user_before_anything_is_resampled() -> None:
    parts = per_user(np.array([[1.0, 99.0], [99.0, 1.0]]), np.array([0, 1]))
    assert parts.sums_UM[:, HR10].tolist() == [0.5, 0.5]
    resampled = resampled_means([parts], 50, seed=0)[:, 0, HR10]
    assert set(resampled.tolist()) == {0.5}


def test_resamples_follow_the_distribution_of_all_that_are_possible() -> None:
    values = [0.0, 1.0, 5.0]
    possible = [float(np.mean(drawn)) for drawn in itertools.product(values, repeat=3)]
    resampled = resampled_means([with_values(values)], 60_000, seed=1)[:, 0, 0]
    for mean in set(possible):
        share = np.isclose(resampled, mean).mean()
        assert share == pytest.approx(possible.count(mean) / 27, abs=0.01)


def test_the_interval_of_a_paired_difference_is_scipys() -> None:
    rng = np.random.default_rng(3)
    first = rng.random(400)
    second = 0.9 * first + 0.1 * rng.random(400)  # alike: an unpaired interval would be several times as wide
    both = resampled_means([with_values(first.tolist()), with_values(second.tolist())], 8_000, seed=0)
    found = difference(float(first.mean()), float(second.mean()), both[:, 0, 0], both[:, 1, 0])
    theirs = stats.bootstrap((first - second,), np.mean, n_resamples=8_000, method="percentile", rng=rng)
    assert found.difference == pytest.approx((first - second).mean())
    expected = theirs.confidence_interval
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=2e-4)
    ratios = stats.bootstrap(
        (first, second),
        lambda a, b, axis: a.mean(axis=axis) / b.mean(axis=axis),
        n_resamples=8_000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=rng,
    ).confidence_interval
    assert found.ratio == pytest.approx(first.mean() / second.mean())
    assert (found.ratio_low, found.ratio_high) == pytest.approx((ratios.low, ratios.high), abs=1e-3)


def test_users_not_reviews_are_resampled() -> None:
    """100 reviews of two users, all alike within a user: the mean is as uncertain as of two."""
    parts = per_user(np.array([[1.0] * 50 + [99.0] * 50]), np.repeat([0, 1], 50))
    resampled = resampled_means([parts], 4_000, seed=0)[:, 0, HR10]
    assert set(resampled.tolist()) == {0.0, 0.5, 1.0}
    assert (resampled == 0.5).mean() == pytest.approx(0.5, abs=0.03)


def test_blocks_do_not_show_in_the_number_of_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simulators.statistics._BLOCK_DRAWS", 7)
    resampled = resampled_means([with_values([0.0, 1.0, 2.0])] * 2, 25, seed=0)
    assert resampled.shape == (25, 2, len(METRICS))
    assert (resampled[:, 0] == resampled[:, 1]).all()


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ValueError, match="same users"):
        resampled_means([with_values([1.0]), with_values([1.0, 2.0])], 10, seed=0)
    with pytest.raises(ValueError, match="nothing was held out"):
        means(per_user(np.zeros((1, 0)), np.zeros(0, np.int64)))


def test_one_run_has_no_spread_and_a_mean_of_zero_no_ratio() -> None:
    assert spread([0.25]) == (0.25, None)
    zeros, ones = np.zeros(9), np.ones(9)
    assert np.isnan(difference(1.0, 0.0, ones, zeros).ratio)
    assert np.isnan(difference(1.0, 0.0, ones, zeros).ratio_low)
    assert interval(ones) == (1.0, 1.0)
