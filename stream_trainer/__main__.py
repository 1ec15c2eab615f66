"""`stream-trainer run`: wires log, store, metrics and signals to the trainer. Wiring only."""

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_store.settings import add_settings_arguments, configuration_from
from feature_store.store_process import open_store
from feature_store.telemetry import StopSignals, configure_logging, run_main, serve_metrics
from stream_trainer.feed_process import open_feed
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.trainer import Summary, Trainer

_EXIT_CODES = """exit codes:
  0   stopped on request, or reached the end with --until-end; everything applied is committed
  2   a setting is unknown, mistyped or impossible
  4   the event log cannot be used, or its process ended
  5   a configured topic does not exist
  6   the log deleted records that were not learned yet
  7   a topic was deleted and made again
  8   the feature store cannot be used
  9   another trainer holds the feature store
  10  the feature store is corrupt
  11  the feature store was made with settings that these cannot continue
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_main(lambda: _run(args))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stream-trainer",
        description="Learns DAT from the streams of items, users, impressions and clicks, exactly once.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="learn until SIGTERM or SIGINT (a second signal kills)",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(run)
    run.add_argument(
        "--until-end", action="store_true", help="stop at the end the log has now: a bounded replay"
    )
    run.add_argument(
        "--summary", type=Path, metavar="FILE", help="write what was done to FILE, as JSON, at the end"
    )
    run.add_argument(
        "--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING"), help="default: INFO"
    )
    return parser


def _run(args: argparse.Namespace) -> int:
    config = configuration_from(args)
    configure_logging(args.log_level)
    registry = CollectorRegistry()
    metrics = TrainerMetrics(registry)
    with StopSignals() as signals, _progress(args.until_end) as progress, ExitStack() as resources:
        # The feed's process loads its libraries while the store is opened.
        feed = resources.enter_context(closing(open_feed(config, args.until_end)))
        store = resources.enter_context(closing(open_store(config.store)))
        stop_metrics = serve_metrics(config.metrics.trainer_port, registry)
        if stop_metrics is not None:
            resources.callback(stop_metrics)
        task = progress.add_task("learning", total=None)

        def show(num_events: int, lag_records: int) -> None:
            progress.update(task, completed=num_events, total=num_events + lag_records)

        trainer = Trainer(config, feed, store, metrics, on_progress=show)
        summary = trainer.run(signals.requested)
    if args.summary:
        args.summary.parent.mkdir(parents=True, exist_ok=True)
        args.summary.write_text(json.dumps(_as_json(summary)))
    return 0


def _as_json(summary: Summary) -> dict[str, object]:
    return {**summary._asdict(), "steps": [step._asdict() for step in summary.steps]}


def _progress(is_bounded: bool) -> Progress:
    """A bar where somebody watches a bounded replay; nothing for a daemon or a pipe."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("events"),
        TimeElapsedColumn(),
        console=console,
        disable=not (is_bounded and console.is_terminal),
        transient=True,
    )


if __name__ == "__main__":
    sys.exit(main())
