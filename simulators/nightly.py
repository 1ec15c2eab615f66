"""Implicit ALS, fitted anew every night: what a shop would run instead, asked the same questions; alone, and
with what is popular of late added to its scores; and that alone.

Owns what each fit has seen, and which setting answers. Pure but for a clock around the fits. Legend: Q
questions, N items.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from feature_store.configuration import LearningSettings
from simulators.baselines import F32, AlsSettings, als_scorer, popularity_scorer
from simulators.contenders import CONTENDERS
from simulators.dataset import Dataset
from simulators.metrics import Ranks, hit_rate, middle_ranks
from simulators.online import OnProgress, PassResult
from simulators.online_plan import Plan
from simulators.trials import split_settings

NIGHTLY_ALS, NIGHTLY_POPULAR = "nightly ALS", "nightly ALS and recent popularity"
RECENT = "recent popularity"
I64 = npt.NDArray[np.int64]
_DAY_MS = 86_400_000
WEIGHTS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # of log popularity: scores of ALS lie about between 0 and 1
HALF_LIFE = int(LearningSettings().frequency_half_life)
"""Of recent popularity, in reviews: the default's own."""


class NightlyTrial(NamedTuple):
    """ALS along a log. `candidates` are settings by name: all answer once, fitted at the start of each window
    only, with each of the weights of recent popularity and without; the best in HR@50 over all questions is
    then fitted every night. That is hindsight, which no shop has: it favours ALS.
    """

    name: str
    seed: int
    candidates: Mapping[str, AlsSettings]
    weights: Sequence[float] = WEIGHTS

    def digest(self, part: str, plan: Plan) -> str:
        """Return what the result's file is called; `part` is the digest of the data."""
        settings = {name: found.model_dump() for name, found in self.candidates.items()}
        told = [settings, self.weights, HALF_LIFE, self.seed, part, plan]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def run(self, dataset: Dataset, plan: Plan, scratch: Path, on_progress: OnProgress) -> PassResult:
        """Return ranks of NIGHTLY_ALS, NIGHTLY_POPULAR and RECENT, with the seconds of each fit."""
        rows_Q = np.concatenate([np.arange(window.start, window.stop) for window in plan.windows])
        windows_Q = np.repeat(np.arange(len(plan.windows)), [w.stop - w.start for w in plan.windows])
        night_Q = dataset.reviews.ts_ms[rows_Q] // _DAY_MS * _DAY_MS
        first_Q = np.array([w.start for w in plan.windows])[windows_Q]
        at_start_Q = dataset.reviews.ts_ms[first_Q] // _DAY_MS * _DAY_MS
        num_nights, done = len(np.unique(night_Q)), 0
        total = len(np.unique(at_start_Q)) * len(self.candidates) + num_nights

        def fitted() -> None:
            nonlocal done
            done += 1
            on_progress(done, total)

        def answers(name: str, until_Q: I64, weights: Sequence[float]) -> tuple[list[Ranks], list[float]]:
            settings = self.candidates[name]
            return ranks_along(dataset, rows_Q, until_Q, settings, self.seed, weights, fitted)

        hits, weights = dict[tuple[str, float], float](), (0.0, *self.weights)
        for name in self.candidates:
            found, _ = answers(name, at_start_Q, weights)
            hits |= {(name, weight): hit_rate(one, 50) for weight, one in zip(weights, found, strict=True)}
        alone = max((choice for choice in hits if not choice[1]), key=hits.__getitem__)
        popular = max((choice for choice in hits if choice[1]), key=hits.__getitem__)
        choices = {NIGHTLY_ALS: alone, NIGHTLY_POPULAR: popular, RECENT: (alone[0], math.inf)}
        names = sorted({alone[0], popular[0]})  # often the same settings: one fit a night is enough then
        total += num_nights * (len(names) - 1)
        ranks, seconds = dict[str, Ranks](), list[float]()
        for name in names:
            asked = {series: weight for series, (chosen, weight) in choices.items() if chosen == name}
            found, taken = answers(name, night_Q, list(asked.values()))
            ranks.update(zip(asked, found, strict=True))
            seconds += taken
        told = f"{alone[0]}; {popular[0]} and popularity times {popular[1]:g}"
        return PassResult(rows_Q, windows_Q, ranks, 0, 0, sum(seconds), seconds, told)


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
    weights: Sequence[float] = (0.0,),
    on_fit: Callable[[], None] = lambda: None,
) -> tuple[list[Ranks], list[float]]:
    """Return, for each weight of recent popularity, the rank of each asked review's item by a fit on all
    reviews before the time `until_Q` (ms), and each fit's seconds. Questions of one time share a fit.

    Ranked are the items reviewed by then: any other has rank infinity. What the user reviewed before the
    question is left out. A user without reviews by then gets what is popular: of all time with a weight of 0.
    With an infinite one everybody gets recent popularity alone.
    """
    reviews = dataset.reviews
    owned = _owned_before(dataset, rows_Q)
    ranks, seconds = [np.full(len(rows_Q), np.inf) for _ in weights], []
    for until in np.unique(until_Q).tolist():
        past = dataset.take(reviews.ts_ms < until)
        started = time.perf_counter()
        scorer = als_scorer(past, settings, seed)
        seconds.append(time.perf_counter() - started)
        known_N = np.bincount(past.reviews.items, minlength=len(reviews.item_ids)) > 0
        asked = np.flatnonzero((until_Q == until) & known_N[reviews.items[rows_Q]])
        users = reviews.users[rows_Q[asked]]
        targets = reviews.items[rows_Q[asked]].astype(np.int64)
        is_known_Q1 = np.isin(users, past.reviews.users)[:, None]
        scores_QN, recent_N = scorer(users.tolist()), recent_popularity(past)
        for ranks_Q, weight in zip(ranks, weights, strict=True):
            popular_QN = recent_N[None] if weight else popularity_scorer(past)(users.tolist())
            summed_QN = scores_QN + np.float32(weight) * recent_N if weight < math.inf else popular_QN
            both_QN = np.where(is_known_Q1, summed_QN, popular_QN)
            both_QN[:, ~known_N] = -np.inf
            ranks_Q[asked] = middle_ranks(both_QN, targets, [owned[q] for q in asked.tolist()])
        on_fit()
    return ranks, seconds


def recent_popularity(past: Dataset) -> F32:
    """Return the logarithm of each item's reviews (N,), those of long ago counting less, as the server's: one
    pseudo-count an item, over the mean.
    """
    age = np.arange(len(past.reviews))[::-1]
    counts_N = 1 + np.bincount(
        past.reviews.items, np.exp2(-age / HALF_LIFE), minlength=len(past.reviews.item_ids)
    )
    log_N: F32 = np.log(counts_N / counts_N.mean()).astype(np.float32)
    return log_N


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
