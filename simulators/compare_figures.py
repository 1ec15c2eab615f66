"""From the ranks of a comparison to its result: figures, intervals, differences, groups.

Pure. Owns the shape of `compare.json`. Legend: S seeds, Q held-out reviews.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from simulators.compare_plan import Row
from simulators.contenders import CONTENDERS
from simulators.evaluate import Held, figures_of
from simulators.statistics import (
    METRICS,
    PerUser,
    Spread,
    difference,
    interval,
    means,
    per_user,
    resampled_means,
    spread,
)
from simulators.trials import TrialResult
from simulators.variety import Variety

Json = dict[str, Any]
By = Literal["category", "history"]
_HISTORIES = (4, 8, 16)  # most reviews of a user in each group but the last
NO_CATEGORY = "(no category)"
_FEW_USERS = 20  # a bootstrap of fewer says little: no interval is better than a wrong one

# HR@50, HR@100, MRR × 10 on Amazon Books (Yu et al. 2021); of the reproduction with standard deviations.
_PUBLISHED: Mapping[str, tuple[float, float, float]] = {
    "wals": (0.0242, 0.0359, 0.0351),
    "fm": (0.0406, 0.0634, 0.0589),
    "youtube_dnn": (0.0378, 0.0599, 0.0524),
    "two_tower": (0.0464, 0.0732, 0.0625),
    "mind": (0.0490, 0.0784, 0.0673),
    "dat_without_cal": (0.0503, 0.0816, 0.0698),
    "dat": (0.0519, 0.0836, 0.0711),
}
_REPRODUCED: Mapping[str, tuple[tuple[float, float], ...]] = {
    "dat": ((0.0470, 0.0066), (0.0739, 0.0088), (0.0837, 0.0143)),
    "dat_without_cal": ((0.0459, 0.0145), (0.0712, 0.0182), (0.0741, 0.0228)),
}
_PUBLISHED_METRICS = ("hr@50", "hr@100", "mrr10")


class Measured(NamedTuple):
    """A row with its trials, one a seed (or one a bootstrap sample)."""

    row: Row
    results: Sequence[TrialResult]


class Pair(NamedTuple):
    """Names of two rows: how much the first is above the second is told.

    `asked` says that the pair answers a question of its own, beside the difference of all to one reference.
    """

    first: str
    second: str
    asked: bool = False


def compared(
    measured: Sequence[Measured], held: Held, pairs: Sequence[Pair], num_resamples: int, seed: int
) -> Json:
    """Return rows and differences of what was ranked over the same reviews."""
    users_Q = held.test.reviews.users
    parts = [per_user(np.stack([result.ranks for result in each.results]), users_Q) for each in measured]
    per_seed = [[figures_of(result.ranks, held) for result in each.results] for each in measured]
    return _assemble(measured, per_seed, parts, pairs, num_resamples, seed)


def compared_over_samples(
    measured: Sequence[Measured],
    samples: Sequence[Held],
    pairs: Sequence[Pair],
    num_resamples: int,
    seed: int,
) -> Json:
    """Return rows and differences over bootstrap samples: each counts once, and samples are resampled."""
    per_sample = [
        [figures_of(result.ranks, held) for result, held in zip(each.results, samples, strict=True)]
        for each in measured
    ]
    parts = []
    for rows in per_sample:
        sums = np.array([[figures[name] for name in METRICS] for figures in rows])
        parts.append(PerUser(sums, np.ones_like(sums)))
    return _assemble(measured, per_sample, parts, pairs, num_resamples, seed)


class _Group(NamedTuple):
    """Held-out reviews that are measured apart, and how much was learned of what they have in common."""

    name: str
    small: bool
    pooled: bool
    mask_Q: npt.NDArray[np.bool_]
    num_train: int


def by_group(
    first: Measured, second: Measured, held: Held, by: By, num_resamples: int, seed: int
) -> list[Json]:
    """Return both rows' figures by the held-out item's category, most training reviews first, or by how many
    reviews of the user were learned, fewest first. Intervals are of first − second, over a group's users.
    """
    result = []
    for group in _by_category(held) if by == "category" else _by_history(held):
        users_Q = held.test.reviews.users[group.mask_Q]
        entry: Json = {
            "group": group.name,
            "small": group.small,
            "pooled": group.pooled,
            "num_train": group.num_train,
            "num_test_users": len(np.unique(users_Q)),
        }
        if len(users_Q):
            entry |= _group(first, second, group.mask_Q, users_Q, num_resamples, seed)
        result.append(entry)
    return result


def _by_category(held: Held) -> list[_Group]:
    """Categories with fewer training reviews than the median one are "small"; after the single ones come all
    small and all other categories, pooled.
    """
    categories, category_Q, num_train = _categories(held)
    small = num_train < np.median(num_train)
    return [
        *(
            _Group(
                categories[number], bool(small[number]), False, category_Q == number, int(num_train[number])
            )
            for number in np.argsort(-num_train, kind="stable").tolist()
        ),
        _Group("all small categories", True, True, small[category_Q], int(num_train[small].sum())),
        _Group("all other categories", False, True, ~small[category_Q], int(num_train[~small].sum())),
    ]


def _by_history(held: Held) -> list[_Group]:
    num_of_user = np.bincount(held.train.reviews.users, minlength=len(held.train.reviews.user_ids))
    num_Q = num_of_user[held.test.reviews.users]
    most = int(num_of_user.max())
    groups, low = [], 0
    for high in (*(high for high in _HISTORIES if high < most), most):
        name = f"{low} to {high} reviews" if low else f"up to {high} reviews"
        of_group = (num_of_user >= low) & (num_of_user <= high)
        mask_Q = (num_Q >= low) & (num_Q <= high)
        groups.append(_Group(name, False, False, mask_Q, int(num_of_user[of_group].sum())))
        low = high + 1
    return groups


def _group(
    first: Measured,
    second: Measured,
    mask_Q: npt.NDArray[np.bool_],
    users_Q: npt.NDArray[np.integer],
    num_resamples: int,
    seed: int,
) -> Json:
    both = [
        per_user(np.stack([result.ranks[mask_Q] for result in each.results]), users_Q)
        for each in (first, second)
    ]
    of_first, of_second = means(both[0]), means(both[1])
    entry: Json = {"figures": {first.row.name: of_first, second.row.name: of_second}, "differences": None}
    if len(both[0].sums_UM) >= _FEW_USERS:
        means_BRM = resampled_means(both, num_resamples, seed)
        entry["differences"] = _differences(of_first, of_second, means_BRM[:, 0], means_BRM[:, 1])
    return entry


def _categories(held: Held) -> tuple[list[str], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the categories, each held-out review's number in them, and the training reviews of each."""
    item_ids = held.train.reviews.item_ids
    of_item = [held.train.items[item_id].category or NO_CATEGORY for item_id in item_ids]
    categories, number_of_item = np.unique(of_item, return_inverse=True)
    num_train = np.bincount(number_of_item[held.train.reviews.items], minlength=len(categories))
    return categories.tolist(), number_of_item[held.test.reviews.items], num_train


def _assemble(
    measured: Sequence[Measured],
    per_run: Sequence[Sequence[Mapping[str, float]]],
    parts: Sequence[PerUser],
    pairs: Sequence[Pair],
    num_resamples: int,
    seed: int,
) -> Json:
    means_BRM = resampled_means(parts, num_resamples, seed)
    overall = [means(part) for part in parts]
    place = {each.row.name: number for number, each in enumerate(measured)}
    rows = [
        _row(each, runs, means_BRM[:, number])
        for number, (each, runs) in enumerate(zip(measured, per_run, strict=True))
    ]
    differences = []
    for pair in pairs:
        if pair.first in place and pair.second in place:
            first, second = place[pair.first], place[pair.second]
            found = _differences(overall[first], overall[second], means_BRM[:, first], means_BRM[:, second])
            differences.append({**pair._asdict(), "metrics": found})
    return {"rows": rows, "differences": differences}


def _row(measured: Measured, runs: Sequence[Mapping[str, float]], means_BM: npt.NDArray[np.float64]) -> Json:
    row, results = measured
    figures = {}
    for column, name in enumerate(METRICS):
        low, high = interval(means_BM[:, column])
        values = [run[name] for run in runs]
        figures[name] = {**spread(values)._asdict(), "low": low, "high": high, "values": values}
    return {
        **row._asdict(),
        "overrides": list(row.overrides),
        "source": CONTENDERS[row.contender].source,
        "figures": figures,
        "published": published(row.contender),
        "variety": {
            name: finite(float(np.mean([getattr(result.variety, name) for result in results])))
            for name in Variety._fields
        },
        "seconds": spread([result.seconds for result in results])._asdict(),
        "peak_mib": max(result.peak_mib for result in results),
    }


def published(contender: str) -> Json | None:
    """Return what the paper and its reproduction report for Amazon Books, None if they do not."""
    if contender not in _PUBLISHED:
        return None
    told: Json = {"paper": dict(zip(_PUBLISHED_METRICS, _PUBLISHED[contender], strict=True))}
    if contender in _REPRODUCED:
        spreads = (Spread(*pair)._asdict() for pair in _REPRODUCED[contender])
        told["reproduction"] = dict(zip(_PUBLISHED_METRICS, spreads, strict=True))
    return told


def _differences(
    first: Mapping[str, float],
    second: Mapping[str, float],
    first_BM: npt.NDArray[np.float64],
    second_BM: npt.NDArray[np.float64],
) -> Json:
    found = {
        name: difference(first[name], second[name], first_BM[:, column], second_BM[:, column])
        for column, name in enumerate(METRICS)
    }
    return {
        name: {key: finite(value) for key, value in each._asdict().items()} for name, each in found.items()
    }


def finite(value: float) -> float | None:
    """Return None for what is no number: JSON has no NaN."""
    return value if np.isfinite(value) else None
