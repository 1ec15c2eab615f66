"""`stream-trainer run | create-topics | dead-letters`: wires log, store, metrics and signals. Wiring only."""

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from feature_store.disk import check_writable
from feature_store.errors import MissingTopicError, SettingsError
from feature_store.settings import add_settings_arguments, command_line, configuration_from
from feature_store.store_process import open_store
from feature_store.telemetry import StopSignals, configure_logging, run_main, serve_metrics
from stream_trainer.dead_letters import oldest_dead_letters
from stream_trainer.feed_process import open_feed
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.open_log import open_log
from stream_trainer.topics import NUM_PARTITIONS, create_topics
from stream_trainer.trainer import Summary, Trainer

log = logging.getLogger(__name__)

_SHOWN_LETTERS = 100
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
  13  the metrics' port is taken; it may be free soon
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; returns the exit code."""
    args = _parser().parse_args(argv)
    return run_main(lambda: _with_hint(args.run, args))


def _parser() -> argparse.ArgumentParser:
    parser = command_line(
        "stream-trainer",
        "Learns DAT from the streams of items, users, impressions and clicks, exactly once.",
        _EXIT_CODES,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    run = commands.add_parser(
        "run",
        help="learn until SIGTERM or SIGINT (a second signal kills)",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_settings_arguments(run)
    run.set_defaults(run=_run)
    run.add_argument(
        "--until-end", action="store_true", help="stop at the end the log has now: a bounded replay"
    )
    run.add_argument(
        "--summary", type=Path, metavar="FILE", help="write what was done to FILE, as JSON, at the end"
    )
    run.add_argument(
        "--log-level", default="INFO", choices=("DEBUG", "INFO", "WARNING"), help="default: INFO"
    )
    topics = commands.add_parser(
        "create-topics",
        help="make the configured topics that are missing",
        description="Makes the configured topics that are missing and leaves those that are there alone. "
        "Replication and cleanup policy are the cluster's defaults.",
    )
    add_settings_arguments(topics)
    topics.add_argument(
        "--partitions",
        type=int,
        default=NUM_PARTITIONS,
        metavar="N",
        help=f"of each topic that is made (default: {NUM_PARTITIONS}), but 1 of dead letters; if impressions "
        "or clicks are there, the other gets as many",
    )
    topics.set_defaults(run=_create_topics)
    letters = commands.add_parser(
        "dead-letters",
        help="print which messages were refused, and why",
        description="Prints which messages were refused, oldest first, one a line: "
        "TOPIC[PARTITION]@OFFSET: reason: detail; key, and the beginning of the value.",
    )
    add_settings_arguments(letters)
    letters.add_argument(
        "--limit",
        type=int,
        default=_SHOWN_LETTERS,
        metavar="N",
        help=f"at most so many (default: {_SHOWN_LETTERS})",
    )
    letters.set_defaults(run=_dead_letters)
    return parser


def _with_hint(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Run the command; the log that misses a topic does not know which command makes it."""
    try:
        return run(args)
    except MissingTopicError as error:
        raise MissingTopicError(
            f"{error} (stream-trainer create-topics, with the same settings, makes what is missing)"
        ) from error


def _create_topics(args: argparse.Namespace) -> int:
    config = configuration_from(args)
    configure_logging("WARNING")
    if args.partitions < 1:
        raise SettingsError(f"--partitions is {args.partitions}; a topic has at least 1")
    with closing(open_log(config.log)) as event_log:
        topics = create_topics(event_log, config.topics, args.partitions)
    for name, num_partitions, is_new in topics:
        print(f"{name}: {'made' if is_new else 'was there'}, partitions: {num_partitions}")
    return 0


def _dead_letters(args: argparse.Namespace) -> int:
    config = configuration_from(args)
    configure_logging("WARNING")
    if args.limit < 1:
        raise SettingsError(f"--limit is {args.limit}; it must be at least 1")
    topic = config.topics.dead_letters
    with closing(open_log(config.log)) as event_log:
        lines, num_all = oldest_dead_letters(event_log, topic, args.limit)
    for line in lines:
        print(line)
    if not lines:
        print(f"no dead letters in topic '{topic}'")
    elif len(lines) == args.limit < num_all:
        print(f"these are the oldest {args.limit:,} of {num_all:,}; --limit N shows more")
    return 0


def _run(args: argparse.Namespace) -> int:
    config = configuration_from(args)
    configure_logging(args.log_level)
    if args.summary:
        check_writable(args.summary, "--summary")
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
        num_before = trainer.state.num_positives
        summary = trainer.run(signals.requested)
    log.info(
        "done: %d events, %d positives learned in %.1f s, %d commits; join: %s; dead letters: %s",
        summary.num_events,
        summary.num_positives - num_before,
        summary.seconds,
        summary.num_commits,
        _counts(metrics.join),
        _counts(metrics.dead_letters),
    )
    if args.summary:
        args.summary.write_text(json.dumps(_as_json(summary)))
    return 0


def _counts(metric: Counter | Gauge) -> str:
    """Say what a metric of one label counted; what never happened is left out."""
    (family,) = metric.collect()
    samples = [sample for sample in family.samples if sample.value and not sample.name.endswith("_created")]
    told = (f"{sample.value:.0f} {next(iter(sample.labels.values()))}" for sample in samples)
    return ", ".join(told) or "none"


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
