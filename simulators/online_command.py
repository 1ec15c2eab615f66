"""`simulator online`: wiring only."""

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from feature_store.errors import SettingsError
from feature_store.settings import add_settings_arguments
from simulators.compare_trials import code_digest
from simulators.comparison_report import rich_table
from simulators.dataset import Dataset, load_dataset
from simulators.epochs import EpochSettings
from simulators.nightly import NIGHTLY_ALS, NIGHTLY_POPULAR, RECENT, nightly_trial, with_nightly
from simulators.online import FROZEN, RETRAINED, PassResult, Retraining
from simulators.online_figures import (
    along,
    refresh_figures,
    resolution_note,
    retrained_days,
    varied_figures,
    window_figures,
)
from simulators.online_plan import Plan, make_plan
from simulators.online_report import about, draw, grids, markdown
from simulators.online_trials import (
    NEGATIVES,
    LogTrial,
    OnlineTrial,
    online_configuration,
    retraining_configuration,
    run_trials,
)

_WIDE = 150  # columns where nobody's terminal says how many there are
_QUICK_WINDOWS, _QUICK_POINTS, _EPOCHS = 10, 2, 8
_NAMES_OF_NEGATIVES = ",".join(NEGATIVES)
_MAIN, _ALS = ("main", "main"), ("als", "als")  # of passes, beside those of variants


class _Variant(NamedTuple):
    """A pass that differs from the main one; `group` is the table it stands in."""

    group: str
    name: str
    overrides: Sequence[str]


def add_online_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the options of `online`; those of the data it has already."""
    add_settings_arguments(parser)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each, from --seed on (default: 1)")
    parser.add_argument("--windows", type=int, help="parts of the log that are asked about (default: 40)")
    parser.add_argument("--window-size", type=int, default=500, help="reviews in one (default: 500)")
    parser.add_argument("--retrain-points", type=int, help="retrainings along the log (default: 4)")
    parser.add_argument("--epochs", type=int, help="of each retraining (default: 8)")
    parser.add_argument(
        "--in-order",
        action="store_true",
        help="each epoch of a retraining takes the past in order of time (default: shuffled)",
    )
    parser.add_argument(
        "--retrain-set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="a setting of the retrained model alone (may be repeated)",
    )
    parser.add_argument(
        "--frozen-share",
        type=float,
        default=0.1,
        help="of the log, learned by the frozen model (default: 0.1)",
    )
    parser.add_argument(
        "--refresh",
        default="0,60,3600,86400,604800,2419200",
        metavar="S1,S2,…",
        help="seconds of event time between generations; always and never are measured anyway",
    )
    parser.add_argument(
        "--negatives", metavar="A,B,…", help=f"kinds to compare, '' = none (default: {_NAMES_OF_NEGATIVES})"
    )
    parser.add_argument(
        "--rehearsal", metavar="R1,R2,…", help="ratios to compare, '' = none (default: 0,1,2,3,4,8)"
    )
    parser.add_argument(
        "--vary",
        action="append",
        default=[],
        metavar="'SECTION.KEY=VALUE …'",
        help="one more pass, with these settings, beside the main one (may be repeated)",
    )
    parser.add_argument(
        "--als",
        action=argparse.BooleanOptionalAction,
        help="implicit ALS fitted every night, for up to half an hour (default: in a whole run)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="passes side by side, one thread each (default: 2)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="results, and passes to resume from (default: build/online/DATA)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"minutes: {_QUICK_WINDOWS} windows, {_QUICK_POINTS} retrainings, "
        "rehearsal 0 and 2, neither negatives nor ALS, unless asked for",
    )


def run_online_command(args: argparse.Namespace) -> int:
    """Run all passes, write everything, print the tables."""
    if args.jobs < 1 or args.seeds < 1:
        raise SettingsError("--jobs and --seeds must be 1 or more")
    _fill_in(args)
    refresh = tuple(sorted({seconds for seconds in _numbers("--refresh", args.refresh) if seconds > 0}))
    variants = _variants(args)
    dataset = load_dataset(args.data, args.format, args.k_core, args.top_categories)
    plan = make_plan(
        len(dataset.reviews), args.windows, args.window_size, args.retrain_points, args.frozen_share
    )
    folder: Path = args.out or Path("build/online") / dataset.name
    trials, names = _trials(args, dataset, variants, refresh)
    results = run_trials(trials, dataset, plan, folder / "trials", args.jobs, Console(stderr=True))
    passes: dict[tuple[str, str], list[PassResult]] = {}
    for name, result in zip(names, results, strict=True):
        passes.setdefault(name, []).append(result)
    for nightly in passes.get(_ALS, ()):
        passes[_MAIN] = with_nightly(passes[_MAIN], nightly)
    told = _result(args, dataset, plan, passes, refresh)
    pictures = draw(told, folder)
    (folder / "online.json").write_text(json.dumps(told, indent=1))
    (folder / "online.md").write_text(markdown(told, pictures))
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=_WIDE)
    for line in about(told):
        console.print(line, highlight=False, markup=False)
    for grid in grids(told):
        console.print(rich_table(grid))
    console.print(
        f"written: {folder / 'online.md'}, online.json and pictures", soft_wrap=True, highlight=False
    )
    return 0


def _fill_in(args: argparse.Namespace) -> None:
    """Give options that were not given the defaults of a quick or a whole run."""
    quick = args.quick
    defaults = {
        "windows": _QUICK_WINDOWS if quick else 40,
        "retrain_points": _QUICK_POINTS if quick else 4,
        "epochs": _EPOCHS,
        "negatives": "" if quick else _NAMES_OF_NEGATIVES,
        "rehearsal": "0,2" if quick else "0,1,2,3,4,8",
        "als": not quick,
    }
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name in ("windows", "window_size", "retrain_points", "epochs"):
        if getattr(args, name) < 1:
            raise SettingsError(f"--{name.replace('_', '-')} must be 1 or more")


def _variants(args: argparse.Namespace) -> list[_Variant]:
    kinds = [kind.strip() for kind in args.negatives.split(",") if kind.strip()]
    unknown = [kind for kind in kinds if kind not in NEGATIVES]
    if unknown:
        raise SettingsError(f"--negatives: no kind '{unknown[0]}'; known: {_NAMES_OF_NEGATIVES}")
    ratios = [f"{ratio:g}" for ratio in _numbers("--rehearsal", args.rehearsal)]
    return [
        *(_Variant("negatives", kind, NEGATIVES[kind]) for kind in kinds),
        *(_Variant("rehearsal", ratio, [f"learning.rehearsal_ratio={ratio}"]) for ratio in ratios),
        *(_Variant("varied", setting, setting.split()) for setting in args.vary),
    ]


def _trials(
    args: argparse.Namespace, dataset: Dataset, variants: Sequence[_Variant], refresh: tuple[float, ...]
) -> tuple[list[LogTrial], list[tuple[str, str]]]:
    """Return all passes, the long ones first, and the group and name of each. A variant that is the main pass
    anyway is not run twice.
    """
    trials: list[LogTrial] = []
    names: list[tuple[str, str]] = []
    mains: list[OnlineTrial] = []
    for seed in range(args.seed, args.seed + args.seeds):
        beside = retraining_configuration(dataset, args.config, args.overrides, seed, args.retrain_set)
        config = online_configuration(dataset, args.config, args.overrides, seed)
        epochs = EpochSettings(count=args.epochs, in_order=args.in_order)
        mains.append(OnlineTrial(f"main, seed {seed}", config, refresh, Retraining(beside, epochs)))
    if args.als:
        trials.append(nightly_trial(args.seed))
        names.append(_ALS)
    trials += mains
    names += [_MAIN] * len(mains)
    for variant in variants:
        for seed, main in enumerate(mains, args.seed):
            config = online_configuration(dataset, args.config, args.overrides, seed, variant.overrides)
            alone = OnlineTrial(f"{variant.group} {variant.name}, seed {seed}", config)
            trials.append(main if config == main.config else alone)
            names.append((variant.group, variant.name))
    return trials, names


def _result(
    args: argparse.Namespace,
    dataset: Dataset,
    plan: Plan,
    passes: dict[tuple[str, str], list[PassResult]],
    refresh: tuple[float, ...],
) -> dict[str, Any]:
    main, reviews = passes[_MAIN], dataset.reviews
    possible = (RETRAINED, NIGHTLY_ALS, NIGHTLY_POPULAR, RECENT, FROZEN)
    beside = [name for name in possible if name in main[0].ranks]

    def varied(group: str) -> list[dict[str, Any]]:
        return varied_figures(
            {name: found for (of, name), found in passes.items() if of == group}, main, reviews.users
        )

    return {
        "command": shlex.join(["simulator", *sys.argv[1:]]),
        "code": code_digest(),
        "data": dataset.name,
        "num_reviews": len(reviews),
        "num_items": len(dataset.items),
        "seeds": list(range(args.seed, args.seed + args.seeds)),
        "num_epochs": args.epochs,
        "in_order": args.in_order,
        "retrain_at": list(plan.retrain_at),
        "retrained_days": retrained_days(plan, reviews.ts_ms.tolist()),
        "frozen_at": plan.frozen_at,
        "note": resolution_note(reviews),
        "windows": window_figures(main, plan, reviews),
        "ratios": along(main, plan, reviews.users, beside),
        "als": [
            {"chosen": one.chosen, "num_fits": len(one.retrain_seconds), "seconds": one.learn_seconds}
            for one in passes.get(_ALS, ())
        ],
        "refresh": refresh_figures(main, refresh, reviews.users),
        "negatives": varied("negatives"),
        "rehearsal": varied("rehearsal"),
        "varied": varied("varied"),
        "seconds": {
            "learning": sum(one.learn_seconds for one in main) / len(main),
            "retraining": sum(sum(one.retrain_seconds) for one in main) / len(main),
        },
    }


def _numbers(option: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [-1.0]
    if any(not 0 <= value < float("inf") for value in values):
        raise SettingsError(f"{option} is '{text}'; write numbers from 0 on, with commas between")
    return values
