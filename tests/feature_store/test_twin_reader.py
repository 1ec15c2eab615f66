"""Two views in processes of their own: answers do not wait for one that moves, and one may be killed."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store.errors import StoreError
from feature_store.store import FeatureStore
from feature_store.twin_reader import TwinReader, _View


@pytest.fixture
def reader(store: FeatureStore, tmp_path: Path) -> Iterator[TwinReader]:
    store.commit({"user": [(b"a", b"1")]}, 1, 1)
    opened = TwinReader(tmp_path / "store")
    opened.catch_up()
    yield opened
    opened.close()


def _kill(view: _View, signal_number: int) -> None:
    os.kill(view._worker.process.pid, signal_number)
    if signal_number == signal.SIGKILL:
        view._worker.process.wait()


def test_what_is_read_stays_readable_while_the_other_view_moves(
    store: FeatureStore, reader: TwinReader
) -> None:
    """However long that takes; the lock is asked for only to change over."""
    store.commit({"user": [(b"a", b"2")]}, 2, 2)
    spare, lock = reader._spare, threading.Lock()
    _kill(spare, signal.SIGSTOP)
    mover = threading.Thread(target=reader.catch_up, args=(lock,))
    mover.start()
    for _ in range(20):
        with lock:
            assert reader.get("user", [b"a"]) == [b"1"]
            assert reader.commit_info.number == 1
        mover.join(0.01)
    assert mover.is_alive()
    with lock:
        _kill(spare, signal.SIGCONT)
        mover.join(0.5)
        assert mover.is_alive()
        assert reader.get("user", [b"a"]) == [b"1"]
    mover.join()
    assert reader.get("user", [b"a"]) == [b"2"]
    assert reader.commit_info.number == 2


def test_a_process_that_is_killed_while_it_is_read_is_replaced(
    store: FeatureStore, reader: TwinReader
) -> None:
    _kill(reader._read, signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(StoreError, match="ended"):
            reader.get("user", [b"a"])
    for number in range(2, 6):
        store.commit({"user": [(b"a", b"%d" % number)]}, number, number)
        assert reader.catch_up().number == number
        assert reader.get("user", [b"a"]) == [b"%d" % number]


def test_a_process_that_is_killed_between_looks_is_replaced(
    store: FeatureStore, reader: TwinReader, caplog: pytest.LogCaptureFixture
) -> None:
    _kill(reader._spare, signal.SIGKILL)
    store.commit({"user": [(b"a", b"2")]}, 2, 2)
    assert reader.get("user", [b"a"]) == [b"1"]
    for number in range(3, 6):
        assert reader.catch_up().number == number - 1
        assert reader.get("user", [b"a"]) == [b"2"]
        store.commit({}, number, number)
    assert caplog.text.count("another one takes its place") == 1


def test_the_other_view_is_read_where_one_has_ended_and_the_store_is_gone(
    reader: TwinReader, tmp_path: Path
) -> None:
    reader.catch_up()
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    _kill(reader._read, signal.SIGKILL)
    with pytest.raises(StoreError, match="there is no feature store"):
        reader.catch_up()
    assert reader.get("user", [b"a"]) == [b"1"]
    (tmp_path / "elsewhere").rename(tmp_path / "store")
    for _ in range(3):
        assert reader.catch_up().number == 1
        assert reader.get("user", [b"a"]) == [b"1"]


def test_a_view_that_missed_a_commit_is_moved_once_more(
    store: FeatureStore, reader: TwinReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is read never goes back to before it."""
    store.commit({"user": [(b"a", b"2")]}, 2, 2)
    assert reader.catch_up().number == 2
    spare = reader._spare
    assert spare.shown.info.number == 1
    looks = iter([lambda: None, spare.look])

    def look() -> None:
        next(looks)()

    monkeypatch.setattr(spare, "look", look)
    assert reader.catch_up().number == 2
    assert reader.get("user", [b"a"]) == [b"2"]
    assert next(looks, None) is None


def test_both_processes_end_with_it(reader: TwinReader) -> None:
    processes = [view._worker.process for view in (reader._read, reader._spare)]
    assert [process.poll() for process in processes] == [None, None]
    reader.close()
    assert [process.poll() for process in processes] == [0, 0]
    reader.close()
