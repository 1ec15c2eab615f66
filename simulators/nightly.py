"""Implicit ALS, fitted anew every night: what a shop would run instead, asked the same questions.

Owns what each fit has seen, and which setting answers. Pure but for a clock around the fits. Legend: Q
questions, N items.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from simulators.baselines import AlsSettings, als_scorer, popularity_scorer
from simulators.contenders import CONTENDERS
from simulators.dataset import Dataset
from simulators.metrics import Ranks, hit_rate, middle_ranks
from simulators.online import OnProgress, PassResult
from simulators.online_plan import Plan
from simulators.trials import split_settings

NIGHTLY_ALS = "nightly ALS"
I64 = npt.NDArray[np.int64]
_DAY_MS = 86_400_000


class NightlyTrial(NamedTuple):
    """ALS along a log. `candidates` are settings by name: all answer once, fitted at the start of each window
    only, and the best in HR@50 over all questions is then fitted every night. That is hindsight, which no
    shop has: it favours ALS.
    """

    name: str
    seed: int
    candidates: Mapping[str, AlsSettings]

    def digest(self, part: str, plan: Plan) -> str:
        """Return what the result's file is called; `part` is the digest of the data."""
        settings = {name: found.model_dump() for name, found in self.candidates.items()}
        return hashlib.sha256(json.dumps([settings, self.seed, part, plan]).encode()).hexdigest()[:24]

    def run(self, dataset: Dataset, plan: Plan, scratch: Path, on_progress: OnProgress) -> PassResult:
        """Return ranks of one series, NIGHTLY_ALS, with the seconds of each nightly fit."""
        rows_Q = np.concatenate([np.arange(window.start, window.stop) for window in plan.windows])
        windows_Q = np.repeat(np.arange(len(plan.windows)), [w.stop - w.start for w in plan.windows])
        night_Q = dataset.reviews.ts_ms[rows_Q] // _DAY_MS * _DAY_MS
        first_Q = np.array([w.start for w in plan.windows])[windows_Q]
        at_start_Q = dataset.reviews.ts_ms[first_Q] // _DAY_MS * _DAY_MS
        total, done = len(np.unique(at_start_Q)) * len(self.candidates) + len(np.unique(night_Q)), 0

        def fitted() -> None:
            nonlocal done
            done += 1
            on_progress(done, total)

        def hits(name: str) -> float:
            ranks_Q, _ = ranks_along(dataset, rows_Q, at_start_Q, self.candidates[name], self.seed, fitted)
            return hit_rate(ranks_Q, 50)

        best = max(self.candidates, key=hits)
        ranks_Q, seconds = ranks_along(dataset, rows_Q, night_Q, self.candidates[best], self.seed, fitted)
        return PassResult(rows_Q, windows_Q, {NIGHTLY_ALS: ranks_Q}, 0, 0, sum(seconds), seconds, best)


def nightly_trial(seed: int) -> NightlyTrial:
    """Return the trial with the candidates that `compare` has for ALS."""
    grid = CONTENDERS["wals"].grid
    candidates = {", ".join(overrides): split_settings(overrides)[0].als for overrides in grid}
    return NightlyTrial(NIGHTLY_ALS, seed, candidates)


def ranks_along(
    dataset: Dataset,
    rows_Q: I64,
    until_Q: I64,
    settings: AlsSettings,
    seed: int,
    on_fit: Callable[[], None] = lambda: None,
) -> tuple[Ranks, list[float]]:
    """Return the rank of each asked review's item by a fit on all reviews before the time `until_Q` (ms), and
    each fit's seconds. Questions of one time share a fit.

    Ranked are the items reviewed by then: any other has rank infinity. What the user reviewed before the
    question is left out. A user without reviews by then gets the most popular items.
    """
    reviews = dataset.reviews
    owned = _owned_before(dataset, rows_Q)
    ranks_Q, seconds = np.full(len(rows_Q), np.inf), []
    for until in np.unique(until_Q).tolist():
        past = dataset.take(reviews.ts_ms < until)
        started = time.perf_counter()
        scorer = als_scorer(past, settings, seed)
        seconds.append(time.perf_counter() - started)
        num_items = len(reviews.item_ids)
        known_N = np.bincount(past.reviews.items, minlength=num_items) > 0
        asked = np.flatnonzero((until_Q == until) & known_N[reviews.items[rows_Q]])
        users = reviews.users[rows_Q[asked]]
        scores_QN = np.where(
            np.isin(users, past.reviews.users)[:, None],
            scorer(users.tolist()),
            popularity_scorer(past)(users.tolist()),
        )
        scores_QN[:, ~known_N] = -np.inf
        targets = reviews.items[rows_Q[asked]].astype(np.int64)
        ranks_Q[asked] = middle_ranks(scores_QN, targets, [owned[q] for q in asked.tolist()])
        on_fit()
    return ranks_Q, seconds


def _owned_before(dataset: Dataset, rows_Q: I64) -> list[list[int]]:
    """Return what each question's user had reviewed before it."""
    reviews, asked = dataset.reviews, set(rows_Q.tolist())
    items_of: dict[int, list[int]] = {}
    owned: dict[int, list[int]] = {}
    for row, (user, item) in enumerate(zip(reviews.users.tolist(), reviews.items.tolist(), strict=True)):
        if row in asked:
            owned[row] = list(items_of.get(user, ()))
        items_of.setdefault(user, []).append(item)
    return [owned[row] for row in rows_Q.tolist()]


def with_nightly(results: Sequence[PassResult], nightly: PassResult) -> list[PassResult]:
    """Return the results with the series of ALS among theirs: the same questions, in the same order."""
    for result in results:
        assert np.array_equal(result.rows, nightly.rows), "ALS was asked other questions"
    return [result._replace(ranks={**result.ranks, **nightly.ranks}) for result in results]
