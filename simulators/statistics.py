"""From ranks to figures with intervals: means, spread over seeds, paired bootstrap over users.

Pure. Owns the resampling and what is read off it. Legend: S seeds, Q held-out reviews, U users with any,
M the metrics of `METRICS`, B resamples, R what is compared.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulators.metrics import Ranks

Floats = npt.NDArray[np.float64]
_BLOCK_DRAWS = 4_000_000  # users × resamples held at once: 32 MB of draws, whatever the number of users
_CONFIDENCE = 0.95


def _hits(k: int) -> Callable[[Ranks], Floats]:
    return lambda ranks: (ranks <= k).astype(np.float64)


_GAINS: Mapping[str, Callable[[Ranks], Floats]] = {
    "hr@10": _hits(10),
    "hr@50": _hits(50),
    "hr@100": _hits(100),
    "mrr10": lambda ranks: 10.0 / ranks,
    "ndcg@10": lambda ranks: np.where(ranks <= 10, 1.0 / np.log2(ranks + 1.0), 0.0),
}
_RECALLS: Mapping[str, Callable[[Ranks], Floats]] = {"recall@10": _hits(10), "recall@50": _hits(50)}
METRICS = (*_GAINS, *_RECALLS)
"""The first five are means over held-out reviews; recall is the mean over users of their share found."""


class PerUser(NamedTuple):
    """What each user adds to each metric: a mean is the sum of `sums_UM` over that of `counts_UM`."""

    sums_UM: Floats
    counts_UM: Floats


class Spread(NamedTuple):
    """Mean over runs and their standard deviation (n − 1); None of a single run, which has no spread."""

    mean: float
    sd: float | None


class Difference(NamedTuple):
    """Of two means: first − second and first ÷ second, with 95 % intervals; NaN where second is 0."""

    difference: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    ratio_high: float


def per_user(ranks_SQ: Floats, users_Q: npt.NDArray[np.integer]) -> PerUser:
    """Return each user's part in every metric, the seeds averaged first.

    Users are those with held-out reviews, in ascending order: everything ranked over the same reviews pairs.

    >>> parts = per_user(np.array([[1.0, 60.0], [20.0, 60.0]]), np.array([4, 9]))
    >>> parts.sums_UM[:, METRICS.index("hr@10")].tolist()
    [0.5, 0.0]
    """
    users, place_Q, counts_U = np.unique(users_Q, return_inverse=True, return_counts=True)
    sums_UM = np.empty((len(users), len(METRICS)))
    counts_UM = np.ones_like(sums_UM)
    for column, (name, gain) in enumerate({**_GAINS, **_RECALLS}.items()):
        gains_Q = np.mean([gain(ranks_Q) for ranks_Q in ranks_SQ], axis=0)
        sums_U = np.bincount(place_Q, weights=gains_Q, minlength=len(users))
        sums_UM[:, column] = sums_U / counts_U if name in _RECALLS else sums_U
        if name not in _RECALLS:
            counts_UM[:, column] = counts_U
    return PerUser(sums_UM, counts_UM)


def means(parts: PerUser) -> dict[str, float]:
    """Return the metrics by name.

    Raises:
        ValueError: nothing was held out.
    """
    if not len(parts.sums_UM):
        raise ValueError("no ranks: nothing was held out, so there is nothing to average")
    values_M = parts.sums_UM.sum(axis=0) / parts.counts_UM.sum(axis=0)
    return dict(zip(METRICS, values_M.tolist(), strict=True))


def spread(values: Sequence[float]) -> Spread:
    """Return mean and standard deviation over seeds or samples.

    >>> spread([0.25, 0.75])
    Spread(mean=0.5, sd=0.3535533905932738)
    """
    return Spread(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None)


def resampled_means(compared: Sequence[PerUser], num_resamples: int, seed: int) -> Floats:
    """Return means (B, R, M) over users drawn with replacement, the same draws for all that is compared.

    Users are the unit, not reviews: reviews of one user are not independent. Same draws for all makes
    differences paired (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 16).

    Raises:
        ValueError: what is compared was not measured on the same number of users, or on none.
    """
    num_users = len(compared[0].sums_UM)
    if not num_users or any(len(parts.sums_UM) != num_users for parts in compared):
        raise ValueError("to pair, everything compared must be ranked for the same users, at least one")
    sums = np.concatenate([parts.sums_UM for parts in compared], axis=1)
    counts = np.concatenate([parts.counts_UM for parts in compared], axis=1)
    rng = np.random.default_rng(seed)
    per_block = max(1, _BLOCK_DRAWS // num_users)
    blocks = []
    for start in range(0, num_resamples, per_block):
        size = min(per_block, num_resamples - start)
        drawn = rng.integers(num_users, size=(size, num_users)) + np.arange(size)[:, None] * num_users
        times = np.bincount(drawn.reshape(-1), minlength=size * num_users).reshape(size, num_users)
        times_f = times.astype(np.float64)
        blocks.append((times_f @ sums) / (times_f @ counts))
    return np.concatenate(blocks).reshape(num_resamples, len(compared), len(METRICS))


def interval(values_B: Floats) -> tuple[float, float]:
    """Return the percentile interval that holds 95 % of the resamples.

    >>> tuple(round(end, 9) for end in interval(np.arange(41.0)))
    (1.0, 39.0)
    """
    low, high = np.quantile(values_B, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return float(low), float(high)


def difference(first: float, second: float, first_B: Floats, second_B: Floats) -> Difference:
    """Return how two means differ, with paired intervals: the resamples come from one `resampled_means`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios_B = first_B / second_B
        ratios = interval(ratios_B) if np.isfinite(ratios_B).all() else (float("nan"), float("nan"))
    ratio = first / second if second else float("nan")
    return Difference(first - second, *interval(first_B - second_B), ratio, *ratios)
