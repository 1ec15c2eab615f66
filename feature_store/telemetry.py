"""How a daemon speaks to its operators: log lines, the metrics endpoint, stop signals and exit codes.

Owns the process-wide state of logging and signals, changed only when called from a `__main__`, and how memory
is kept while a trainer runs. Never decides what is logged or measured, and never opens a socket beyond
loopback.
"""

import _thread
import ctypes
import gc
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server

from feature_store.errors import AddressError, DualstreamError

log = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"
_CHATTY_LIBRARIES = ("apscheduler", "kafka", "matplotlib")
_MALLOC = {-1: 1 << 30, -2: 64 << 20, -3: 32 << 20}  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
_SILENCE_S = 60
_INTERRUPTED = 130  # what a shell reports for a process ended by Ctrl-C


class _OneLine(logging.Formatter):
    """UTC ISO time, level, logger, text: one line per event, tracebacks too, so that lines can be counted."""

    def __init__(self) -> None:
        line = "{asctime}.{msecs:03.0f}Z {levelname} {name}: {message}"
        super().__init__(line, "%Y-%m-%dT%H:%M:%S", style="{")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        return " | ".join(super().format(record).splitlines())


class _Seldom(logging.Filter):
    """Lets each part of a chatty library be heard once a minute at each level: without a broker kafka-python
    says so ten times a second.
    """

    def __init__(self) -> None:
        super().__init__()
        self._silent_until_s: dict[tuple[str, int], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in _CHATTY_LIBRARIES:
            return True
        who = record.name, record.levelno
        if record.created < self._silent_until_s.get(who, 0):
            return False
        self._silent_until_s[who] = record.created + _SILENCE_S
        return True


def configure_logging(level: str = "INFO") -> None:
    """Send log events to stderr, one line each; a second call replaces the first.

    Libraries that tell of every connection are heard from WARNING on, and seldom.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    handler.addFilter(_Seldom())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in _CHATTY_LIBRARIES:
        logging.getLogger(library).setLevel(logging.WARNING)
    # It warns of its own tasks that take over 0.1 s, as any does on a busy machine.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)


def serve_metrics(port: int, registry: CollectorRegistry) -> Callable[[], None] | None:
    """Serve `/metrics` on loopback and return what stops it; None for port -1. Port 0 is any free one.

    Raises:
        AddressError: the port is taken.
    """
    if port < 0:
        return None
    try:
        server, thread = start_http_server(port, addr=_LOOPBACK, registry=registry)
    except OSError as error:
        raise AddressError(
            f"cannot serve metrics on {_LOOPBACK}:{port}: {error.strerror}; choose another port by "
            "metrics.trainer_port or metrics.refresher_port (0 = any free one, -1 = none)"
        ) from None
    log.info("metrics at http://%s:%d/metrics", _LOOPBACK, server.server_port)

    def close() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return close


class StopSignals:
    """Turns the first SIGTERM or SIGINT into a request to stop; a second one kills the process.

    Use it in the main thread, as a context manager: leaving it puts the former handlers back.
    """

    def __init__(self) -> None:
        self.requested = threading.Event()
        self._former: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._former[number] = signal.signal(number, self._stop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def wait(self, seconds: float) -> bool:
        """Return whether a stop was requested, after at most this long."""
        return self.requested.wait(seconds)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for each in self._former:
            signal.signal(each, signal.SIG_DFL)
        # Not here: the handler may have interrupted this very thread while it holds the event's lock.
        _thread.start_new_thread(self.requested.set, ())


@contextmanager
def calm_garbage_collector() -> Iterator[None]:
    """Keep Python's cycle collector from walking over all that is loaded: it took half the time.

    Events and examples are freed by their reference counts. Cycles are still found, but not before there are
    more new objects than full partitions make in the merge: a walk over these finds nothing.
    """
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(1_000_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def keep_freed_memory() -> None:
    """Let the allocator keep what is freed for the next batch, up to a bound: to ask the system for the same
    pages again each time took a tenth of a learning step. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for parameter, num_bytes in _MALLOC.items():
            mallopt(parameter, num_bytes)


def run_main(main: Callable[[], int | None]) -> int:
    """Return the exit code of `main`: our own errors end in one line on stderr and their code.

    What is not ours is a bug and propagates.
    """
    try:
        return main() or 0
    except DualstreamError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _INTERRUPTED
