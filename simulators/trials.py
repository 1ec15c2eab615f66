"""One trial of a comparison: a contender learns the training reviews, and ranks what was held out.

Owns how a trial becomes ranks, whatever learns. Never tunes, compares or prints. Legend: Q held-out reviews.
"""

import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.settings import load_configuration
from simulators.baselines import AlsSettings, als_scorer, popularity_scorer, random_scorer
from simulators.contenders import CONTENDERS, Overrides
from simulators.epochs import EpochSettings, train_epochs
from simulators.evaluate import (
    Held,
    feature_overrides,
    learn,
    rank_by_scorer,
    rank_by_store,
    replay_into_log,
)
from simulators.metrics import Ranks
from simulators.variety import Variety


class Trial(NamedTuple):
    """What is to be run: a key of `CONTENDERS`, settings beside its own, and a seed."""

    contender: str
    overrides: Overrides = ()
    seed: int = 0


class TrialResult(NamedTuple):
    """What came of it.

    `ranks` (Q,) are the middle ranks of the held-out reviews' items, in the order of `held.test.reviews`;
    `variety` says how alike lists are; `seconds` are those of learning, without loading and ranking;
    `peak_mib` is the most memory that this process ever had resident.
    """

    ranks: Ranks
    variety: Variety
    seconds: float
    peak_mib: float


class TrialSettings(BaseModel):
    """Settings of a trial that the programs' configuration does not know: `epochs.count`, `als.factors`, …"""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: EpochSettings = EpochSettings()
    als: AlsSettings = AlsSettings()


def run_trial(trial: Trial, held: Held, folder: Path) -> TrialResult:
    """Learn and rank, on one thread, in an empty scratch folder. The environment's settings do not count.

    Raises:
        SettingsError: there is no such contender or setting.
    """
    if trial.contender not in CONTENDERS:
        raise SettingsError(f"no contender '{trial.contender}'; known: {', '.join(CONTENDERS)}")
    contender = CONTENDERS[trial.contender]
    own, overrides = split_settings([*contender.overrides, *trial.overrides])
    started = time.perf_counter()
    if contender.how in ("epochs", "stream"):
        config = _configuration(overrides, held, trial.seed, folder)
        if contender.how == "stream":
            replay_into_log(config, held.train, trial.seed, show_progress=False)
            started = time.perf_counter()
            learn(config, lambda done, left: None)
        else:
            train_epochs(config, held.train, trial.seed, own.epochs)
        seconds = time.perf_counter() - started
        ranked = rank_by_store(config.store.path, held)
    else:
        if overrides:
            raise SettingsError(f"{trial.contender} does not know the setting {overrides[0]}")
        if contender.how == "als":
            scorer = als_scorer(held.train, own.als, trial.seed)
        elif contender.how == "popularity":
            scorer = popularity_scorer(held.train)
        else:
            scorer = random_scorer(held.train, trial.seed)
        seconds = time.perf_counter() - started
        ranked = rank_by_scorer(held, scorer)
    return TrialResult(*ranked, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def settings_of(trial: Trial) -> list[object]:
    """Return every setting that the outcome depends on, those left at their defaults too, as JSON can hold
    them.

    Raises:
        SettingsError: a setting does not exist or is impossible.
    """
    contender = CONTENDERS[trial.contender]
    own, overrides = split_settings([*contender.overrides, *trial.overrides])
    if contender.how not in ("epochs", "stream"):
        return [own.model_dump(), overrides]
    return [own.model_dump(), deciding(load_configuration(None, overrides, {}))]


def deciding(config: Configuration) -> object:
    """Return those settings that decide what is learned, as JSON can hold them; not where it is kept."""
    return config.model_dump(mode="json", include={"model", "features", "learning", "join"})


def split_settings(overrides: Sequence[str]) -> tuple[TrialSettings, list[str]]:
    """Return the trial's own settings, and what is left for the configuration. Of a key the last one counts.

    Raises:
        SettingsError: a setting of a trial does not exist or has an impossible value.

    >>> own, others = split_settings(["epochs.count=3", "learning.seed=5", "als.factors=8"])
    >>> own.epochs.count, own.als.factors, others
    (3, 8, ['learning.seed=5'])
    """
    tree: dict[str, dict[str, str]] = {}
    others: list[str] = []
    for override in overrides:
        key, _, value = override.partition("=")
        section, _, name = key.partition(".")
        if section in TrialSettings.model_fields:
            tree.setdefault(section, {})[name] = value
        else:
            others.append(override)
    try:
        return TrialSettings.model_validate(tree), others
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc']))} = {detail['input']}: {detail['msg']}"
            for detail in error.errors(include_url=False)
        ]
        raise SettingsError("; ".join(problems)) from None


def _configuration(overrides: list[str], held: Held, seed: int, folder: Path) -> Configuration:
    given = [
        *feature_overrides(held.train),
        "learning.num_threads=1",
        "learning.gradient_thread=false",
        "store.own_process=false",
        "join.own_process=false",  # trials stand side by side already
        *overrides,
        f"learning.seed={seed}",
        "log.kind=file",
        f"log.path={folder}/log",
        f"store.path={folder}/store",
    ]
    return load_configuration(None, given, {})
