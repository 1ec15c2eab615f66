"""Logging, the metrics endpoint, stop signals and exit codes, on real sockets and real processes."""

import logging
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter

from feature_store.errors import AddressError, DualstreamError, SettingsError, StoreLockedError
from feature_store.telemetry import StopSignals, configure_logging, run_main, serve_metrics


@pytest.fixture
def root_logger() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("root_logger")
def test_an_event_is_one_line_with_its_time_in_utc(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging()
    configure_logging()
    logging.getLogger("a.b").info("two\nlines")
    logging.getLogger("a.b").debug("unheard")
    logging.getLogger("kafka.client").info("unheard")
    try:
        raise ValueError("bad")
    except ValueError:
        logging.getLogger("a.b").exception("failed")
    captured = capsys.readouterr()
    lines = captured.err.splitlines()
    assert captured.out == ""
    assert len(lines) == 2
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z INFO a\.b: two \| lines", lines[0])
    assert lines[1].endswith("ValueError: bad")


@pytest.mark.usefixtures("root_logger")
def test_times_are_utc_whatever_the_time_zone() -> None:
    configure_logging()
    record = logging.LogRecord("n", logging.INFO, "p", 1, "m", None, None)
    record.created, record.msecs = 1_000_000_000.25, 250.0
    formatter = logging.getLogger().handlers[0].formatter
    assert formatter is not None
    assert formatter.format(record) == "2001-09-09T01:46:40.250Z INFO n: m"


@pytest.mark.usefixtures("root_logger")
def test_a_chatty_library_is_heard_once_a_minute() -> None:
    """Each part of it at each level; our own lines always."""
    configure_logging()
    handler = logging.getLogger().handlers[0]

    def heard(name: str, level: int, at_s: float) -> bool:
        record = logging.LogRecord(name, level, "p", 1, "m", None, None)
        record.created = at_s
        return bool(handler.filter(record))

    assert [heard("kafka.net", logging.ERROR, at_s) for at_s in (0, 0.1, 59, 60, 61)] == [1, 0, 0, 1, 0]
    assert [heard("kafka.net", logging.WARNING, 61), heard("kafka.cluster", logging.ERROR, 61)] == [1, 1]
    assert [heard("stream_trainer.ingest", logging.WARNING, at_s) for at_s in (0, 0.1)] == [1, 1]


def test_metrics_are_served_on_loopback_until_closed() -> None:
    registry = CollectorRegistry()
    Counter("apples", "Apples eaten", registry=registry).inc(3)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    close = serve_metrics(port, registry)
    assert close is not None
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"apples_total 3.0" in answer.read()
    with pytest.raises(AddressError, match=rf"127\.0\.0\.1:{port}.*metrics\.trainer_port"):
        serve_metrics(port, registry)
    close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_no_metrics_at_port_minus_one() -> None:
    assert serve_metrics(-1, CollectorRegistry()) is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_first_signal_is_a_request(number: signal.Signals) -> None:
    former = signal.getsignal(number)
    with StopSignals() as stop:
        assert not stop.wait(0)
        signal.raise_signal(number)
        assert stop.wait(5)
        assert stop.requested.is_set()
        assert signal.getsignal(number) == signal.SIG_DFL
    assert signal.getsignal(number) == former


_DAEMON = """
import sys, time
from feature_store.telemetry import StopSignals
with StopSignals() as stop:
    print("ready", flush=True)
    stop.requested.wait()
    print("stopping", flush=True)
    if "stuck" in sys.argv:
        time.sleep(60)
"""


def _daemon(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", _DAEMON, *arguments], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_ends_by_itself_after_one_signal(number: signal.Signals) -> None:
    with _daemon() as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGTERM, signal.SIGINT), (signal.SIGINT, signal.SIGTERM)]
)
def test_a_second_signal_kills(first: signal.Signals, second: signal.Signals) -> None:
    with _daemon("stuck") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(first)
        assert process.stdout.readline() == "stopping\n"
        process.send_signal(second)
        assert process.wait(20) == -second


def test_the_exit_code_is_mains() -> None:
    assert run_main(lambda: None) == 0
    assert run_main(lambda: 3) == 3


@pytest.mark.parametrize("error", [DualstreamError("a\n  b"), SettingsError("a b"), StoreLockedError("a b")])
def test_our_errors_are_one_line_and_a_code(
    error: DualstreamError, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    assert run_main(fail) == error.exit_code
    assert capsys.readouterr().err == "error: a b\n"


def test_ctrl_c_is_130_and_bugs_propagate() -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    def buggy() -> None:
        raise ZeroDivisionError

    assert run_main(interrupted) == 130
    with pytest.raises(ZeroDivisionError):
        run_main(buggy)
