"""The command line of the refresher and the query server: wiring only."""

import argparse
import logging
import socket
import sys
import threading
import time
from pathlib import Path

import torch
import uvicorn
from prometheus_client import CollectorRegistry

from feature_store.configuration import Configuration
from feature_store.errors import AddressError, DualstreamError
from feature_store.settings import add_settings_arguments, command_line, configuration_from
from feature_store.telemetry import StopSignals, configure_logging, run_main, serve_metrics
from feature_store.twin_reader import TwinReader
from index_refresher import generation
from index_refresher.manifest import Manifest
from index_refresher.metrics import RefresherMetrics, ServerMetrics
from index_refresher.refresher import refresh_store
from index_refresher.reloader import Reloader
from index_refresher.scheduling import make_scheduler
from index_refresher.service import create_app
from index_refresher.serving import Recommender

log = logging.getLogger(__name__)

_GRACE_SECONDS = 5
_EXIT_CODES = """exit codes:
  0   stopped on request, or done
  2   a setting is unknown, mistyped or impossible
  8   the feature store cannot be read, or holds no model yet
  12  no generation: the checks refused it, it cannot be written, or there is none to go back to
  13  the port is taken; it may be free soon
"""


def main() -> int:
    """Run the command that the arguments name and return the exit code."""
    args = _parser().parse_args()
    configure_logging()
    return run_main(lambda: args.command(configuration_from(args)))


def _parser() -> argparse.ArgumentParser:
    parser = command_line(
        "index-refresher",
        "Makes searchable generations of what stream-trainer learns, and answers queries.",
        _EXIT_CODES,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, command, text in (
        ("run", _run, "refresh at once and then on the schedule of [refresh], until stopped"),
        ("once", _once, "refresh once and exit, for cron; says what it did"),
        ("serve", _serve, "answer queries over HTTP as [serve] says, until stopped"),
        (
            "rollback",
            _rollback,
            "go back to the generation before the one in use and hold it: refreshes go on but are not put in "
            "use until resume",
        ),
        (
            "resume",
            _resume,
            "end a rollback: put the newest whole generation in use, and later refreshes again",
        ),
    ):
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        add_settings_arguments(sub)
        sub.set_defaults(command=command)
    return parser


def _run(config: Configuration) -> int:
    torch.set_num_threads(config.refresh.num_threads)
    registry = CollectorRegistry()
    metrics = RefresherMetrics(registry)

    def job() -> None:
        try:
            log.info(_outcome(_refresh(config, metrics), config.refresh.path))
        except DualstreamError as error:
            log.error("no new generation, the one in use stays: %s", error)

    scheduler = make_scheduler(config.refresh, job)
    with StopSignals() as stop:
        close_metrics = serve_metrics(config.metrics.refresher_port, registry)
        scheduler.start()
        stop.requested.wait()
        scheduler.shutdown(wait=True)  # a refresh that has begun ends first
        if close_metrics is not None:
            close_metrics()
    return 0


def _once(config: Configuration) -> int:
    torch.set_num_threads(config.refresh.num_threads)
    manifest = _refresh(config, RefresherMetrics(CollectorRegistry()))
    print(_outcome(manifest, config.refresh.path))
    return 0


def _serve(config: Configuration) -> int:
    torch.set_num_threads(config.refresh.num_threads)
    registry = CollectorRegistry()
    metrics = ServerMetrics(registry)
    recommender = Recommender(
        config.refresh.path,
        open_reader=lambda: TwinReader(config.store.path),
        metrics=metrics,
        clock_ms=_clock_ms,
        exclude_history=config.serve.exclude_history,
        num_threads=config.refresh.num_threads,
    )
    app = create_app(recommender, config.serve, metrics, registry)
    server = uvicorn.Server(
        uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=_GRACE_SECONDS)
    )
    reloader = Reloader(recommender, config.serve.reload_seconds, metrics)
    # In a thread of its own uvicorn leaves the signals alone, which in ours end it with exit code 0.
    with StopSignals() as stop, _listen(config) as listener, reloader:
        thread = threading.Thread(target=server.run, args=([listener],), name="http")
        thread.start()
        log.info("serving at http://%s:%d/v1/recommendations", *listener.getsockname()[:2])
        while thread.is_alive() and not stop.wait(0.5):
            pass
        server.should_exit = True
        thread.join()
    return 0 if stop.requested.is_set() else 1


def _rollback(config: Configuration) -> int:
    manifest = generation.rollback(config.refresh.path)
    print(
        f"now in use: generation {manifest.folder_name}, of commit {manifest.commit}; "
        "refreshes do not replace it until index-refresher resume"
    )
    return 0


def _resume(config: Configuration) -> int:
    manifest = generation.resume(config.refresh.path)
    print(
        f"now in use: generation {manifest.folder_name}, of commit {manifest.commit}; "
        "refreshes replace it again"
    )
    return 0


def _refresh(config: Configuration, metrics: RefresherMetrics) -> Manifest | None:
    return refresh_store(config.store.path, config.refresh, _clock_ms(), metrics)


def _outcome(manifest: Manifest | None, path: Path) -> str:
    used = generation.current(path)
    if used is None:
        return "nothing to do: the trainer has committed nothing yet"
    if manifest is None:
        outcome = f"nothing to do: generation {used.newest.name} in {path} is of the newest commit already"
    else:
        outcome = (
            f"{'made' if used.held else 'published'} generation {manifest.folder_name} in {path}: "
            f"commit {manifest.commit}, {manifest.num_items} items, {manifest.index_kind} index, "
            f"recall {manifest.checks.recall:.3f}"
        )
    if used.held:
        outcome += f"; a rollback holds {used.folder.name} in use until index-refresher resume"
    return outcome


def _listen(config: Configuration) -> socket.socket:
    address = (config.serve.host, config.serve.port)
    try:
        return socket.create_server(address)
    except OSError as error:
        raise AddressError(
            f"cannot serve at {address[0]}:{address[1]}: {error.strerror}; set serve.host and serve.port "
            "(0 = any free port)"
        ) from error


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    sys.exit(main())
