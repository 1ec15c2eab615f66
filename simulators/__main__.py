"""`simulator replay | evaluate | compare | online | generate | demo`: wiring only."""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from feature_store.configuration import Configuration
from feature_store.disk import check_writable
from feature_store.errors import LogError, SettingsError
from feature_store.presets import PRESETS
from feature_store.settings import add_settings_arguments, command_line, load_configuration
from feature_store.telemetry import StopSignals, configure_logging, run_main
from simulators.compare_command import add_compare_arguments, run_compare
from simulators.dataset import Dataset, load_dataset
from simulators.demo import check_folder, run_demo
from simulators.evaluate import evaluate_store, feature_overrides, hold_out, learn, replay_into_log, report
from simulators.online_command import add_online_arguments, run_online_command
from simulators.replay import replay
from simulators.report import render
from simulators.synthetic import generate
from simulators.tables import figures_table
from simulators.timeline import num_events, timeline
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics

_FORMATS = ("auto", "2014", "2018", "2023")
_DEMO_DATA = Path("../shared/data/electronics_2023")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    args = _parser().parse_args(argv)
    configure_logging("WARNING")
    return run_main(lambda: args.run(args))


def _parser() -> argparse.ArgumentParser:
    parser = command_line(
        "simulator", "Replays Amazon reviews (2014, 2018, 2023 formats) as streams; evaluates offline."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser("replay", help="write a data set's reviews to the configured log as events")
    _add_data(run)
    add_settings_arguments(run)
    run.add_argument(
        "--speed", default="max", help="max, or how many times faster than real time (default: max)"
    )
    run.set_defaults(run=_replay)
    run = commands.add_parser(
        "evaluate", help="replay, learn in one pass and rank what was held out, in one go"
    )
    _add_data(run)
    add_settings_arguments(run)
    run.add_argument("--preset", help=f"model.preset: {', '.join(PRESETS)}")
    run.add_argument("--json", type=Path, metavar="FILE", help="write the figures to FILE")
    run.add_argument(
        "--train-end-ms", type=int, help="split by time: training ends here (with --test-start-ms)"
    )
    run.add_argument(
        "--test-start-ms", type=int, help="split by time: what was rated 4 or better from here on"
    )
    run.set_defaults(run=_evaluate)
    run = commands.add_parser("compare", help="the paper's table: contenders tuned and ranked alike")
    _add_files(run)
    add_compare_arguments(run)
    run.set_defaults(run=run_compare)
    run = commands.add_parser("online", help="one pass over time, beside retrained and frozen models")
    _add_data(run)
    add_online_arguments(run)
    run.set_defaults(run=run_online_command)
    run = commands.add_parser(
        "generate", help="write an Amazon-shaped log with planted preferences (2014 format)"
    )
    run.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    run.add_argument("--users", type=int, default=5_000)
    run.add_argument("--items", type=int, default=2_000)
    run.add_argument("--interactions", type=int, default=50_000)
    run.add_argument("--categories", type=int, default=11)
    run.add_argument("--seed", type=int, default=0)
    run.set_defaults(run=_generate)
    run = commands.add_parser("demo", help="the main job from end to end, with a report")
    run.add_argument(
        "--data", type=Path, metavar="DIR", help=f"default: {_DEMO_DATA} if there, else generated"
    )
    run.add_argument("--kafka", metavar="HOST:PORT", help="use this broker instead of the embedded log")
    run.add_argument(
        "--out", type=Path, default=Path("build/demo"), metavar="DIR", help="default: build/demo"
    )
    run.add_argument("--port", type=int, default=8123, help="of the query server (default: 8123)")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE")
    run.set_defaults(run=_demo)
    return parser


def _add_data(parser: argparse.ArgumentParser) -> None:
    _add_files(parser)
    parser.add_argument("--seed", type=int, default=0, help="of slates, delays and learning (default: 0)")


def _add_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", type=Path, required=True, metavar="DIR", help="folder with reviews and metadata"
    )
    parser.add_argument(
        "--format", choices=_FORMATS, default="auto", help="default: told from the file names"
    )
    parser.add_argument(
        "--k-core", type=int, default=0, help="keep users and items with so many reviews; 0 = all"
    )
    parser.add_argument("--top-categories", type=int, default=0, help="keep the most frequent ones; 0 = all")


def _load(args: argparse.Namespace) -> Dataset:
    return load_dataset(args.data, args.format, args.k_core, args.top_categories)


def _replay(args: argparse.Namespace) -> int:
    config = load_configuration_of(args, [])
    speed = None if args.speed == "max" else _positive(args.speed)
    dataset = _load(args)
    event_log = open_log(config.log)
    create_topics(event_log, config.topics)
    writer = event_log.writer()
    try:
        with StopSignals() as signals:
            counts = replay(
                timeline(dataset, args.seed),
                writer,
                config.topics,
                speed=speed,
                num_events=num_events(dataset),
                show_progress=True,
                wait=signals.wait,
            )
    except OSError as error:
        raise LogError(f"cannot write to the log: {error}") from error
    finally:
        writer.close()
        event_log.close()
    Console().print(", ".join(f"{count:,} {kind}" for kind, count in counts.items()))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    if args.json:
        check_writable(args.json, "--json")
    held = hold_out(_load(args), args.train_end_ms, args.test_start_ms)
    overrides = [] if args.config else feature_overrides(held.train)
    if args.preset:
        overrides.append(f"model.preset={args.preset}")
    overrides.append(f"learning.seed={args.seed}")
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="dualstream-") as folder:
        overrides += [f"log.path={folder}/log", f"store.path={folder}/store", "log.kind=file"]
        config = load_configuration_of(args, overrides)
        replay_into_log(config, held.train, args.seed, show_progress=console.is_terminal)
        with Progress(console=console, disable=not console.is_terminal) as progress:
            task = progress.add_task("learning", total=None)
            summary = learn(
                config, lambda done, left: progress.update(task, completed=done, total=done + left)
            )
        figures = evaluate_store(config.store.path, held, args.seed)
    Console().print(figures_table(figures, summary.prequential))
    if args.json:
        result = {
            **report(held, figures, summary, args.seed),
            "configuration": config.model_dump(mode="json"),
        }
        _write_json(args.json, result)
    return 0


def _generate(args: argparse.Namespace) -> int:
    generate(args.out, args.users, args.items, args.interactions, args.categories, args.seed)
    Console().print(f"wrote {args.out}; try: simulator evaluate --data {args.out}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    check_folder(args.out)
    folder, source = args.data, ""
    if folder is None and _DEMO_DATA.is_dir():
        folder = _DEMO_DATA
    if folder is None:
        folder = Path("build/generated")
        generate(folder, 5_000, 2_000, 60_000, 11, args.seed)
        source = "a generated Amazon-shaped log (no DATA given)"
    dataset = load_dataset(folder)
    source = source or f"real Amazon reviews, {dataset.name}"
    held = hold_out(dataset, None, None)
    result = run_demo(args.out, held, source, args.kafka, args.port, args.overrides, args.seed)
    _write_json(args.out / "report.json", result)
    (args.out / "report.html").write_text(render(result))
    Console().print(f"report: {args.out / 'report.html'} and {args.out / 'report.json'}")
    return 0


def load_configuration_of(args: argparse.Namespace, defaults: list[str]) -> Configuration:
    """Return the configuration with the command's own defaults under what the user set."""
    return load_configuration(args.config, [*defaults, *args.overrides], os.environ)


def _positive(text: str) -> float:
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not speed > 0:
        raise SettingsError(f"--speed is '{text}'; it must be max or a number above 0")
    return speed


def _write_json(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
