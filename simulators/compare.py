"""Compares contenders: the same data, the same split, the same ranking, the same budget of tuning for all.

Owns the order of things: split, tune on what is not the test, run every seed, measure. Trains nothing itself
(`trials.py`) and prints nothing (`comparison_report.py`).
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from feature_store.errors import SettingsError
from simulators.compare_figures import (
    By,
    Json,
    Measured,
    Pair,
    by_group,
    compared,
    compared_over_samples,
)
from simulators.compare_plan import (
    QUICK_USERS,
    Row,
    Scored,
    Sweep,
    best,
    candidates,
    check_budgets,
    overrides_for,
    parse_sweep,
    pick,
    rows_of,
    tuned_as,
)
from simulators.compare_trials import Task, Trials, part_digest
from simulators.contenders import CONTENDERS, Overrides
from simulators.dataset import Dataset
from simulators.evaluate import Held, figures_of, hold_out
from simulators.processor import fastest_precision
from simulators.sampling import SAMPLE_SHARE, Times, bootstrap_sample, sample_users, tuning_part
from simulators.trials import Trial

TUNING_USERS = 4_000
_RESAMPLING_SEED = _SAMPLING_SEED = _TUNING_SEED = 0
_QUESTIONS = (  # each pair answers one: is the first worth it over the second?
    Pair("dat", "two_tower", True),
    Pair("dat", "dat_without_cal", True),
    Pair("default", "wals", True),
    Pair("default_streamed", "wals", True),
    Pair("default", "default_without_augmented", True),
    Pair("default_streamed", "default_without_augmented_streamed", True),
    Pair("default_streamed", "default", True),
)


class Options(NamedTuple):
    """What to compare, as the command line says it; see `simulator compare --help`.

    `models` None are those that the kind of comparison is about. `num_samples` above 0 asks for the
    reproduction's bootstrap. `asked` are settings for all, over those that were tuned.
    """

    models: str | None = None
    num_seeds: int = 3
    quick: bool = False
    num_samples: int = 0
    sample_share: float = SAMPLE_SHARE
    sweep: str | None = None
    by: By | None = None
    times: Times | None = None
    asked: Overrides = ()
    tune: bool = True
    tuning_users: int = TUNING_USERS
    against: str | None = None
    num_resamples: int = 2_000

    @property
    def kind(self) -> str:
        """What the result is about: table, bootstrap, sweep or groups."""
        if self.by:
            return "groups"
        return "sweep" if self.sweep else "bootstrap" if self.num_samples else "table"

    @property
    def seeds(self) -> list[int]:
        """Of the trials; samples of the bootstrap have one each, their number."""
        if self.num_samples:
            return list(range(self.num_samples))
        return [0] if self.quick else list(range(self.num_seeds))


class _Tuned(NamedTuple):
    """What was tried and what was chosen. `ruled_out` are contenders for which no candidate came through."""

    chosen: dict[str, Overrides]
    tried: dict[str, list[Scored]]
    num_users: int
    ruled_out: set[str]


def compare(dataset: Dataset, options: Options, trials: Trials) -> Json:
    """Run a comparison and return its result: what `compare.json` holds but for the command and the commit.

    Rows of which a trial failed are missing from it, and told in `failures`.

    Raises:
        SettingsError: a contender or setting is unknown, or the options contradict each other.
        DataError: the data cannot be split, tuned on or sampled.
        KeyboardInterrupt: Ctrl-C; what is finished is kept.
    """
    _check(options)
    names = pick(options.models, _usual(options))
    sweep = parse_sweep(options.sweep) if options.sweep else None
    # Once before hours of work, for what it raises.
    pairs = _pairs(rows_of(names, {}, options.asked, options.quick, sweep), options, sweep)
    check_budgets(names, options.quick)
    if options.quick:
        dataset = sample_users(dataset, QUICK_USERS, _SAMPLING_SEED)
    parts = [_sample(dataset, options, number) for number in range(options.num_samples)] or [dataset]
    helds = [hold_out(part, *(options.times or (None, None))) for part in parts]
    tuned = _tune(parts[0], names, options, trials)
    names = [name for name in names if name not in tuned.ruled_out]
    rows = rows_of(names, tuned.chosen, options.asked, options.quick, sweep)
    measured = _measure(rows, helds, options, trials)
    result = {
        "kind": options.kind,
        **_about(dataset, helds, options, tuned),
        "against": next((pair.second for pair in pairs if not pair.asked), names[0] if names else None),
        "rows": [],
        "differences": [],
        "tuning": {name: [scored._asdict() for scored in tried] for name, tried in tuned.tried.items()},
        "ablations": {name: tuned_as(name) for name in names if tuned.tried and tuned_as(name) != name},
        "failures": [
            {"trial": failure.trial._asdict(), "error": failure.error} for failure in trials.failures
        ],
        "code": sorted(trials.codes),
    }
    if measured and options.num_samples:
        result |= compared_over_samples(measured, helds, pairs, options.num_resamples, _RESAMPLING_SEED)
    elif measured:
        result |= compared(measured, helds[0], pairs, options.num_resamples, _RESAMPLING_SEED)
    if sweep is not None:
        result["sweep"] = sweep._asdict()
    if options.by and len(measured) == 2:
        first, second = measured
        result["by"] = options.by
        result["groups"] = by_group(
            first, second, helds[0], options.by, options.num_resamples, _RESAMPLING_SEED
        )
    return result


def _check(options: Options) -> None:
    if options.by and (options.sweep or options.num_samples):
        raise SettingsError(f"--by {options.by} goes with neither --sweep nor --bootstrap")
    if options.num_samples and options.times:
        raise SettingsError("--bootstrap leaves each user's last review out; it cannot split by time")
    if (
        min(options.num_seeds, options.num_resamples) < 1
        or min(options.num_samples, options.tuning_users) < 0
    ):
        raise SettingsError(
            "--seeds and --resamples are at least 1, --bootstrap and --tuning-users at least 0"
        )
    if not 0 < options.sample_share <= 1:
        raise SettingsError(f"--sample-share is {options.sample_share}; it is above 0 and at most 1")
    if options.by and options.models and len(pick(options.models, ())) != 2:
        raise SettingsError(f"--by {options.by} compares two contenders: --models first,second")


def _usual(options: Options) -> Sequence[str]:
    if options.by or options.num_samples:
        return ("dat", "dat_without_cal")
    return ("dat",) if options.sweep else tuple(CONTENDERS)


def _pairs(rows: Sequence[Row], options: Options, sweep: Sweep | None) -> list[Pair]:
    """Return what is compared: each row with the reference, or with its own contender's first value."""
    if sweep is not None:
        firsts = {row.contender: row.name for row in reversed(rows)}
        return [Pair(row.name, firsts[row.contender]) for row in rows if row.name != firsts[row.contender]]
    names = [row.name for row in rows]
    reference = options.against or ("dat" if "dat" in names else names[0])
    if reference not in names:
        raise SettingsError(f"--against {reference}: it is not among the models: {', '.join(names)}")
    return [*(Pair(name, reference) for name in names if name != reference), *_QUESTIONS]


def _sample(dataset: Dataset, options: Options, number: int) -> Dataset:
    return bootstrap_sample(dataset, options.sample_share, number)


def _tune(dataset: Dataset, names: Sequence[str], options: Options, trials: Trials) -> _Tuned:
    """Try every candidate on the validation reviews, one seed; choose by HR@50. An ablation has none."""
    wanted = map(tuned_as, names) if options.tune else ()
    grids = {name: candidates(CONTENDERS[name], options.quick) for name in wanted}
    tasks: dict[tuple[str, Overrides], Task] = {}
    if not any(grids.values()):
        return _Tuned({}, {}, 0, set())
    held = tuning_part(dataset, options.times, options.tuning_users, _SAMPLING_SEED)
    digest = part_digest(held)
    for name, grid in grids.items():
        for candidate in grid:
            overrides = overrides_for(CONTENDERS[name], candidate, options.asked, options.quick)
            tasks[name, candidate] = Task(Trial(name, overrides, _TUNING_SEED), held, digest)
    tried: dict[str, list[Scored]] = {name: [] for name, grid in grids.items() if grid}
    for (name, candidate), result in zip(tasks, trials.run("tuning", list(tasks.values())), strict=True):
        if result is not None:
            figures = figures_of(result.ranks, held)
            tried[name].append(Scored(candidate, figures["hr@50"], figures["mrr10"]))
    found = {name: best(scored).overrides for name, scored in tried.items() if scored}
    chosen = {name: found[tuned_as(name)] for name in names if tuned_as(name) in found}
    ruled_out = {name for name in names if tuned_as(name) in tried} - set(chosen)
    return _Tuned(chosen, tried, held.train.reviews.num_users, ruled_out)


def _measure(rows: Sequence[Row], helds: Sequence[Held], options: Options, trials: Trials) -> list[Measured]:
    """Run every row with every seed, or once on every bootstrap sample; keep the rows that came through."""
    digests = [part_digest(held) for held in helds]
    tasks = []
    for row in rows:
        for place, seed in enumerate(options.seeds):
            part = place if options.num_samples else 0
            tasks.append(Task(row.trial(seed), helds[part], digests[part]))
    results = iter(trials.run("comparing", tasks))
    measured = []
    for row in rows:
        found = [next(results) for _ in options.seeds]
        whole = [result for result in found if result is not None]
        if len(whole) == len(found):
            measured.append(Measured(row, whole))
    return measured


def _about(dataset: Dataset, helds: Sequence[Held], options: Options, tuned: _Tuned) -> Mapping[str, object]:
    """Say what the figures are of. Sizes of a bootstrap are the mean over samples."""
    sizes = {
        "num_train": [len(held.train.reviews) for held in helds],
        "num_test": [len(held.test.reviews) for held in helds],
        "num_users": [held.train.reviews.num_users for held in helds],
        "num_items": [len(held.train.items) for held in helds],
    }
    return {
        "data": dataset.name,
        "protocol": "time" if options.times else "leave-last-out",
        **{name: round(sum(values) / len(values)) for name, values in sizes.items()},
        "seeds": options.seeds,
        "quick": options.quick,
        "tuned": bool(tuned.tried),
        "num_tuning_users": tuned.num_users,
        "num_resamples": options.num_resamples,
        "num_samples": options.num_samples,
        "sample_share": options.sample_share if options.num_samples else None,
        "settings_for_all": list(options.asked),
        "precision": fastest_precision(),
    }
