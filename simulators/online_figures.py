"""From the ranks of passes to figures: along the log, at its end, by refresh interval, by what was varied.

Pure. Owns the shape of `online.json`. Legend: S seeds, Q questions.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simulators.compare_figures import finite
from simulators.dataset import Reviews
from simulators.metrics import hit_rate, mrr
from simulators.online import NEVER, ONLINE, PassResult, refresh_series
from simulators.online_plan import Plan
from simulators.statistics import METRICS, difference, means, per_user, resampled_means

Json = dict[str, Any]
Mask = npt.NDArray[np.bool_]
_SHOWN = ("hr@10", "hr@50", "mrr10")
_NUM_RESAMPLES = 2000
_MAIN = "the main pass"
_DAY_MS = 86_400_000


def resolution_note(reviews: Reviews) -> str:
    """Return what the reader must know of the log's times; empty if there is nothing to say."""
    if (reviews.ts_ms % _DAY_MS).any():
        return ""
    return (
        "This log knows days, not hours: all that happens on a day is asked about at its midnight, before "
        "any of that day's clicks. Refreshing more often than once a day can make no difference here."
    )


def retrained_days(plan: Plan, ts_ms: Sequence[int]) -> list[float]:
    """Return, for each retraining, how many days before them it was made that its windows' questions were
    asked, in the mean: online has learned of these days meanwhile.

    >>> from simulators.online_plan import Window
    >>> windows = (Window(1, 3, 0), Window(3, 4, -1), Window(4, 5, 1))
    >>> retrained_days(Plan(windows, (1, 4), 1), [0, 0, 2 * _DAY_MS, 0, _DAY_MS])
    [1.0, 0.0]
    """
    days: list[list[float]] = [[] for _ in plan.retrain_at]
    for start, stop, number in plan.windows:
        if number >= 0:
            days[number] += [(time - ts_ms[plan.retrain_at[number]]) / _DAY_MS for time in ts_ms[start:stop]]
    return [float(np.mean(ages)) for ages in days]


def window_figures(results: Sequence[PassResult], plan: Plan, reviews: Reviews) -> list[Json]:
    """Return, for each window, where it stands and each series' figures, the mean over seeds."""
    first = results[0]
    windows = []
    for number, window in enumerate(plan.windows):
        of_window = first.windows == number
        windows.append(
            {
                "start": window.start,
                "stop": window.stop,
                "ts_ms": int(reviews.ts_ms[window.start]),
                "retraining": window.retraining,
                "series": {name: _figures(results, name, of_window) for name in first.ranks},
            }
        )
    return windows


def along(
    results: Sequence[PassResult], plan: Plan, users: npt.NDArray[np.integer], others: Sequence[str]
) -> Json:
    """Return online ÷ each series beside it with 95 % intervals: over the windows that follow a retraining at
    once, over the last of these, over all windows, and after each retraining.

    The stricter comparison is with a model that was retrained a few windows ago at most, which "along" and
    "end" are; between retrainings ("all") that model grows older. In all of them it is older than online.
    """
    retraining = np.array([window.retraining for window in plan.windows])[results[0].windows]
    last = len(plan.retrain_at) - 1
    masks = {"end": retraining == last, "along": retraining >= 0, "all": retraining >= -1}
    masks |= {f"after retraining {number + 1}": retraining == number for number in range(last + 1)}
    return {
        other: {name: ratio(results, ONLINE, other, mask, users) for name, mask in masks.items()}
        for other in others
    }


def ratio(
    results: Sequence[PassResult], above: str, below: str, mask: Mask, users: npt.NDArray[np.integer]
) -> Json:
    """Return both series' figures over some questions, and their ratio with its 95 % interval.

    Seeds are averaged, and users drawn with replacement, the same for both. `users` are those of all reviews.
    """
    rows = results[0].rows[mask]
    parts = [
        per_user(np.stack([result.ranks[name][mask] for result in results]), users[rows])
        for name in (above, below)
    ]
    values = [means(part) for part in parts]
    drawn = resampled_means(parts, _NUM_RESAMPLES, seed=0)
    told: Json = {"num_questions": len(rows)}
    for metric in _SHOWN:
        column = METRICS.index(metric)
        one, other = values[0][metric], values[1][metric]
        distance = difference(one, other, drawn[:, 0, column], drawn[:, 1, column])
        told[metric] = {
            above: one,
            below: other,
            "ratio": finite(distance.ratio),
            "low": finite(distance.ratio_low),
            "high": finite(distance.ratio_high),
        }
    return told


def refresh_figures(
    results: Sequence[PassResult], refresh_seconds: Sequence[float], users: npt.NDArray[np.integer]
) -> list[Json]:
    """Return figures by refresh interval, from "always" (0) to "never" (None), over the same questions, and
    the ratio to "always".
    """
    series: list[tuple[float | None, str]] = [(0.0, ONLINE)]
    series += [(seconds, refresh_series(seconds)) for seconds in refresh_seconds]
    series += [(None, NEVER)]
    ranks = results[0].ranks
    known = np.logical_and.reduce([~np.isnan(ranks[name]) for _, name in series])
    told = []
    for seconds, name in series:
        compared = ratio(results, name, ONLINE, known, users) if name != ONLINE else None
        told.append({"seconds": seconds, **_figures(results, name, known), "to_always": compared})
    return told


def varied_figures(
    passes: Mapping[str, Sequence[PassResult]],
    main: Sequence[PassResult],
    users: npt.NDArray[np.integer],
) -> list[Json]:
    """Return the figures of passes that differ from the main ones in one thing, over all questions, with what
    learning cost, and their ratio to the main ones with its 95 % interval.
    """
    told = []
    everything = np.ones(len(main[0].rows), np.bool_)
    for name, results in passes.items():
        seconds = float(np.mean([result.learn_seconds for result in results]))
        both = [
            one._replace(ranks={name: one.ranks[ONLINE], _MAIN: other.ranks[ONLINE]})
            for one, other in zip(results, main, strict=True)
        ]
        told.append(
            {
                "name": name,
                **_figures(results, ONLINE, everything),
                "learn_seconds": seconds,
                "positives_per_second": results[0].num_positives / seconds,
                "to_main": ratio(both, name, _MAIN, everything, users),
            }
        )
    return told


def _figures(results: Sequence[PassResult], name: str, mask: Mask) -> Json:
    """Return the means over seeds of a series over the questions it answered; empty if there are none."""
    parts = [result.ranks[name][mask] for result in results]
    parts = [ranks[~np.isnan(ranks)] for ranks in parts]
    if not len(parts[0]):
        return {}
    return {
        "hr@10": float(np.mean([hit_rate(ranks, 10) for ranks in parts])),
        "hr@50": float(np.mean([hit_rate(ranks, 50) for ranks in parts])),
        "mrr10": 10 * float(np.mean([mrr(ranks) for ranks in parts])),
    }
