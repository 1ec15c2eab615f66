"""The thread that looks for news: it goes on whatever happens, and says each trouble once."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from feature_store.errors import DualstreamError, GenerationError, StoreError
from feature_store.store import CommitInfo
from index_refresher.metrics import ServerMetrics
from index_refresher.reloader import Reloader
from index_refresher.serving import Recommender


class Fixture:
    """A recommender whose store gives what `failures` say, then nothing to do."""

    def __init__(self, path: Path) -> None:
        self.failures: list[Exception] = []
        self.num_looks = 0
        self.identity = "a store"
        self.closed_in = ""
        self.registry = CollectorRegistry()
        self.metrics = ServerMetrics(self.registry)
        self.recommender = Recommender(
            path,
            open_reader=lambda: self,  # type: ignore[arg-type, return-value]
            metrics=self.metrics,
            clock_ms=lambda: 0,
            exclude_history=True,
            num_threads=1,
        )

    def catch_up(self, lock: object = None) -> CommitInfo:
        self.num_looks += 1
        if self.failures:
            raise self.failures.pop(0)
        return CommitInfo()

    def close(self) -> None:
        self.closed_in = threading.current_thread().name

    def num_failures(self) -> float | None:
        return self.registry.get_sample_value("dualstream_server_reload_failures_total")


@pytest.fixture
def fixture(tmp_path: Path) -> Fixture:
    return Fixture(tmp_path)


def _wait_for(check: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not check():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def test_it_looks_until_it_is_left(fixture: Fixture) -> None:
    with Reloader(fixture.recommender, 0.01, fixture.metrics):
        _wait_for(lambda: fixture.num_looks >= 5)
    ended = fixture.num_looks
    time.sleep(0.05)
    assert fixture.num_looks == ended
    assert "reloader" not in [thread.name for thread in threading.enumerate()]
    assert fixture.closed_in == "reloader"  # where it was opened: its processes end with that thread


def test_every_failure_is_counted_and_each_kind_logged_once(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    failures: list[DualstreamError] = [StoreError("torn"), StoreError("torn"), GenerationError("bad")]
    fixture.failures = [*failures, StoreError("torn")]
    reloader = Reloader(fixture.recommender, 1, fixture.metrics)
    for _ in range(6):
        reloader.look()
    assert fixture.num_failures() == 4
    logged = [record.getMessage() for record in caplog.records]
    assert logged == [f"what was served stays: {text}" for text in ("torn", "bad", "torn")]


def test_what_nobody_expected_is_logged_with_its_traceback_and_survived(
    fixture: Fixture, caplog: pytest.LogCaptureFixture
) -> None:
    fixture.failures = [ZeroDivisionError("a bug")]
    with Reloader(fixture.recommender, 0.01, fixture.metrics):
        _wait_for(lambda: fixture.num_looks >= 3)
    assert fixture.num_failures() == 1
    assert [record.exc_info is not None for record in caplog.records] == [True]
