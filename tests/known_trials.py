"""Trials whose ranks are known beforehand, for comparisons that learn nothing."""

import io
import os
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
from rich.console import Console

from feature_store.errors import DataError
from simulators.compare_trials import Runner, Trials
from simulators.contenders import CONTENDERS
from simulators.evaluate import Held
from simulators.trials import Trial, TrialResult
from simulators.variety import Variety


def known_ranks(trial: Trial, held: Held, folder: Path) -> TrialResult:
    """Rank so that dat is better than wals, wals than random, and the last candidate than the others."""
    good = {"dat": 2, "dat_without_cal": 3, "wals": 5}.get(trial.contender, 40)
    grid = CONTENDERS[trial.contender].grid
    good -= bool(grid) and set(grid[-1]) <= set(trial.overrides)
    rng = np.random.default_rng(trial.seed)
    return TrialResult(np.ceil(rng.random(len(held.test.reviews)) * good * 3), Variety(0.25, 0.5), 1.5, 100.0)


class Counted:
    """Counts what is run, and fails where told."""

    def __init__(self, fail: str = "") -> None:
        self.ran: Counter[Trial] = Counter()
        self.helds: list[Held] = []
        self.fail = fail

    def __call__(self, trial: Trial, held: Held, folder: Path) -> TrialResult:
        assert list(folder.iterdir()) == []
        self.ran[trial] += 1
        self.helds.append(held)
        if self.fail and self.fail in str(trial):
            raise DataError(f"no {self.fail}\ntoday")
        return known_ranks(trial, held, folder)


def slow(trial: Trial, held: Held, folder: Path) -> TrialResult:
    if trial.seed:
        time.sleep(60)
    return known_ranks(trial, held, folder)


def dies(trial: Trial, held: Held, folder: Path) -> TrialResult:
    if trial.contender == "wals":
        os.kill(os.getpid(), signal.SIGKILL)
    return known_ranks(trial, held, folder)


def trials_in(folder: Path, runner: Runner, num_jobs: int = 0, code: str = "code") -> Trials:
    return Trials(folder, num_jobs, Console(file=io.StringIO()), runner, code)
