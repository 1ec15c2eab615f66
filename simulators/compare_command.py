"""`simulator compare`: wiring only."""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from feature_store.errors import SettingsError
from simulators.compare import TUNING_USERS, Options, compare
from simulators.compare_figures import Json
from simulators.compare_plan import QUICK_EPOCHS, QUICK_USERS
from simulators.compare_trials import Trials
from simulators.comparison_pictures import draw
from simulators.comparison_report import about, grids, latex, markdown, rich_table
from simulators.contenders import CONTENDERS
from simulators.dataset import Dataset, load_dataset
from simulators.sampling import SAMPLE_SHARE, Times

_WIDE = 170  # columns where nobody's terminal says how many there are
_SOME_FAILED = 1


def add_compare_arguments(parser: argparse.ArgumentParser) -> None:
    """Give the parser the options of `compare`; those of the data it has already."""
    parser.add_argument("--models", metavar="A,B,…", help=f"of {', '.join(CONTENDERS)} (default: all)")
    parser.add_argument("--against", metavar="MODEL", help="differences are to this one (default: dat)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each contender (default: 3)")
    parser.add_argument(
        "--jobs", type=int, default=2, help="trials side by side, one thread each; 0 = in this process"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="results, and trials to resume from (default: build/compare/DATA)",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"minutes: one seed, {QUICK_USERS:,} users, {QUICK_EPOCHS} epochs, two candidates each",
    )
    kinds = parser.add_argument_group("instead of the table")
    kinds.add_argument(
        "--bootstrap",
        type=int,
        default=0,
        metavar="N",
        help="the reproduction's protocol: N samples (it: 35)",
    )
    kinds.add_argument(
        "--sample-share",
        type=float,
        default=SAMPLE_SHARE,
        help=f"of users in a sample (default: {SAMPLE_SHARE})",
    )
    kinds.add_argument(
        "--sweep", metavar="KEY=V1,V2,…", help="a setting and its values, e.g. augmented_dim=0,32"
    )
    kinds.add_argument(
        "--by",
        choices=("category", "history"),
        help="figures by the held-out item's category, or by how many reviews of the user were learned",
    )
    tuning = parser.add_argument_group("tuning, on what comes before the test")
    tuning.add_argument("--no-tuning", action="store_true", help="every contender with its own settings")
    tuning.add_argument(
        "--tuning-users", type=int, default=TUNING_USERS, help=f"at most; 0 = all (default: {TUNING_USERS:,})"
    )
    parser.add_argument(
        "--resamples", type=int, default=2_000, help="of users, for intervals (default: 2,000)"
    )
    parser.add_argument(
        "--train-end-ms", type=int, help="split by time: training ends here (with --test-start-ms)"
    )
    parser.add_argument(
        "--test-start-ms", type=int, help="split by time: what was rated 4 or better from here on"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.KEY=VALUE",
        help="a setting for all contenders that know it, over what is tuned, e.g. epochs.in_order=true "
        "where the split is by time (may be repeated)",
    )


def run_compare(args: argparse.Namespace) -> int:
    """Compare, write everything, print the tables; the exit code says whether a trial failed."""
    options = _options(args)
    if args.jobs < 0:
        raise SettingsError(f"--jobs is {args.jobs}; it must be 0 or more")
    dataset: Dataset = load_dataset(args.data, args.format, args.k_core, args.top_categories)
    folder: Path = args.out or Path("build/compare") / dataset.name
    progress = Console(stderr=True)
    trials = Trials(folder / "trials", args.jobs, progress)
    result = compare(dataset, options, trials)
    result |= {"command": shlex.join(["simulator", *sys.argv[1:]]), "commit": _commit()}
    written = _write(result, folder, _stem(options))
    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=_WIDE)
    for line in about(result):
        console.print(line, highlight=False, markup=False)
    comparable = result["kind"] == "bootstrap" or "book" in dataset.name.lower()
    for grid in grids(result, published=comparable, every_category=False):
        console.print(rich_table(grid))
    console.print("written: " + ", ".join(map(str, written)), soft_wrap=True, highlight=False)
    if trials.failures:
        progress.print(f"{len(trials.failures)} trials failed; the same command tries them again")
        return _SOME_FAILED
    return 0


def _options(args: argparse.Namespace) -> Options:
    times = (args.train_end_ms, args.test_start_ms)
    if (times[0] is None) != (times[1] is None):
        raise SettingsError("a split by time needs both --train-end-ms and --test-start-ms")
    return Options(
        models=args.models,
        num_seeds=args.seeds,
        quick=args.quick,
        num_samples=args.bootstrap,
        sample_share=args.sample_share,
        sweep=args.sweep,
        by=args.by,
        times=None if times[0] is None else Times(*times),
        asked=tuple(args.overrides),
        tune=not args.no_tuning,
        tuning_users=args.tuning_users,
        against=args.against,
        num_resamples=args.resamples,
    )


def _stem(options: Options) -> str:
    """Return how the files are called: one kind of comparison must not overwrite another."""
    parts = ["compare"]
    if options.sweep:
        parts += ["sweep", options.sweep.partition("=")[0]]
    if options.by:
        parts.append(f"by-{options.by}")
    if options.num_samples:
        parts.append("bootstrap")
    return "-".join([*parts, "quick"] if options.quick else parts)


def _write(result: Json, folder: Path, stem: str) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "json": json.dumps(result, indent=1, allow_nan=False, ensure_ascii=False),
        "md": markdown(result),
        "tex": latex(result),
    }
    written = []
    for suffix, text in texts.items():
        written.append(folder / f"{stem}.{suffix}")
        written[-1].write_text(text, encoding="utf-8")
    return [*written, *draw(result, folder, stem)]


def _commit() -> str | None:
    """Return the commit of the working tree, with "+" if it has been changed since; None without git."""
    root = Path(__file__).resolve().parent.parent
    try:
        head, status = (
            subprocess.run(
                ["git", *words], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+" if status else "")
