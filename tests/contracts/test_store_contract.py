"""What every store keeps that a trainer writes, the one in this process and the one beside it."""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import numpy as np
import pytest

from feature_store.configuration import StoreSettings
from feature_store.errors import StoreError, StoreLockedError
from feature_store.id_index import IdIndex
from feature_store.row_chunk import RowChunk
from feature_store.row_layout import Field, RowLayout
from feature_store.rows import RowTable
from feature_store.sequenced import COUNTER_KEY, Changes, EncodedChanges, encode_changes
from feature_store.store import CommitInfo, Writes
from feature_store.store_process import Store, StoreProcess, open_store

Opener = Callable[[], Store]
ROWS = np.arange(12, dtype=np.float32).reshape(4, 3)
USERS = [b"a", b"b", b"c", b"d"]
TRAINER = """
import os, signal, sys
import numpy as np
from pathlib import Path
from feature_store.row_chunk import RowChunk
from feature_store.store_process import StoreProcess

store = StoreProcess(Path(sys.argv[1]))
store.commit({"join": [(b"whole", b"1")]}, 1, 1, {})
store.is_durable(wait=True)

def rows():
    yield RowChunk([b"a"], np.ones((1, 3), np.float32))
    os.kill(os.getpid(), signal.SIGKILL)

store.commit({"join": [(b"torn", b"1")]}, 2, 2, {"user": rows()})
store.is_durable(wait=True)
"""


@pytest.fixture(params=["here", "beside"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    """Open a store in the test's folder; it is closed at the end."""
    stores: list[Store] = []

    def opener() -> Store:
        stores.append(open_store(StoreSettings(path=tmp_path, own_process=request.param == "beside")))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


def user_rows(start: int, stop: int) -> RowChunk:
    return RowChunk(USERS[start:stop], ROWS[start:stop])


def test_what_was_committed_is_read_again(opened: Opener) -> None:
    store = opened()
    assert store.last_commit == CommitInfo()
    writes = {"join": [(b"x", b"1"), (b"y", b"2")], "meta": iter([(b"m", b"3")])}
    info = store.commit(writes, 10, 9, {"user": iter([user_rows(0, 3), user_rows(3, 4)])})
    assert info == store.last_commit == CommitInfo(1, 10, 9)
    assert store.get("user", [b"d", b"nobody", b"b"]) == [ROWS[3].tobytes(), None, ROWS[1].tobytes()]
    assert store.get("user", []) == []
    store.commit({"join": [(b"x", None)]}, 11, 10, {"user": [RowChunk([b"a"], ROWS[3:])]})
    assert store.is_durable(wait=True)
    assert list(store.items("join")) == [(b"y", b"2")]
    assert list(store.items("dense")) == []
    store.close()
    again = opened()
    assert again.last_commit == CommitInfo(2, 11, 10)
    assert dict(again.items("user"))[b"a"] == ROWS[3].tobytes()


def test_changes_by_sequence_are_gathered_on_top_of_what_was_committed(opened: Opener) -> None:
    def told(last: int, entries: dict[int, str], gone: list[int]) -> bytes:
        return encode_changes(Changes(last, entries, gone))

    store = opened()
    store.commit({"join": EncodedChanges([told(1, {1: "a"}, []), told(3, {2: "b", 3: "c"}, [1])])}, 1, 1, {})
    store.is_durable(wait=True)
    before = dict(store.items("join"))
    store.commit({"join": EncodedChanges([told(4, {3: "new", 4: "d"}, [2]), told(4, {}, [4])])}, 2, 2, {})
    store.is_durable(wait=True)
    after = dict(store.items("join"))
    for found, last, values in ((before, 3, {2: "b", 3: "c"}), (after, 4, {3: "new"})):
        assert found == {
            COUNTER_KEY: msgpack.packb(last),
            **{number.to_bytes(8, "big"): msgpack.packb(value) for number, value in values.items()},
        }


def test_more_than_a_message_holds_arrives(opened: Opener) -> None:
    store = opened()
    pairs = [(f"{number:06d}".encode(), os.urandom(50)) for number in range(25_000)]
    rows = np.random.default_rng(0).random((25_000, 7), np.float32)
    for turn in range(2):  # the second is larger than the first: the memory they share grows
        chunks = [RowChunk([key for key, _ in pairs], rows + turn)] * (1 + 100 * turn)
        store.commit({"join": pairs[turn:]}, 1, 1, {"user": chunks})
    assert list(store.items("join")) == pairs
    assert [value for _, value in store.items("user")] == [row.tobytes() for row in rows + 1]


def test_a_second_one_is_refused(opened: Opener) -> None:
    opened()
    with pytest.raises(StoreLockedError, match=r"store\.path"):
        opened()


@pytest.mark.parametrize("is_late", [False, True], ids=["all at once", "some later"])
def test_rows_may_change_as_soon_as_their_commit_is_begun(opened: Opener, is_late: bool) -> None:
    store = opened()
    num = 100_000
    layout = RowLayout((Field("value", 1, "float"),), "adam")
    table = RowTable("user", layout, IdIndex(num), lambda keys: store.get("user", keys), num, seed=0)
    slots = table.slots([f"{number:06d}" for number in range(num)])
    table.write(slots, {"value": np.ones((num, 1), np.float32)})
    store.commit({}, 1, 1, {"user": table.take_dirty()})
    for some in (slots[:9], slots[2::7]) if is_late else (slots, slots[3::7]):
        table.write(some, {"value": np.full((len(some), 1), 2, np.float32)})
        store.is_durable()
    assert store.is_durable(wait=True)
    assert {value for _, value in store.items("user")} == {np.float32(1).tobytes()}
    assert len(list(store.items("user"))) == num


def test_a_read_that_waits_for_a_commit_says_how_long(opened: Opener) -> None:
    store = opened()
    assert store.get("user", [b"a"]) == [None]
    assert store.waits_s == []
    chunks = [RowChunk([str(number).encode() for number in range(1000)], np.ones((1000, 9), np.float32))]
    store.commit({}, 1, 1, {"user": chunks * 100})
    is_written = store.is_durable()
    assert store.get("user", [b"5"]) == [chunks[0].rows_nW[5].tobytes()]
    assert store.is_durable()
    assert [seconds > 0 for seconds in store.waits_s] == ([] if is_written else [True])


def test_what_is_read_ahead_is_what_a_read_would_find(opened: Opener) -> None:
    store = opened()
    store.commit({}, 1, 1, {"user": [user_rows(0, 3)], "item": [user_rows(0, 1)]})
    store.read_ahead({"user": [b"a", b"nobody", b"b"], "item": [b"a"]})  # the commit may be being written
    assert store.get("user", [b"c", b"nobody", b"a"]) == [ROWS[2].tobytes(), None, ROWS[0].tobytes()]
    store.commit({}, 2, 2, {"user": [RowChunk([b"a", b"nobody"], ROWS[2:])]})
    assert store.get("user", [b"a", b"nobody"]) == [ROWS[2].tobytes(), ROWS[3].tobytes()]
    assert store.get("user", [b"b", b"b"]) == [ROWS[1].tobytes()] * 2
    store.read_ahead({"user": [b"a"]})
    store.read_ahead({"user": [b"c"]})
    assert store.get("item", [b"a"]) == [ROWS[0].tobytes()]
    assert dict(store.items("item")) == {b"a": ROWS[0].tobytes()}
    assert store.get("user", [b"a", b"c"]) == [ROWS[2].tobytes()] * 2


def test_what_was_read_ahead_stays_at_hand_while_it_is_asked_for(opened: Opener) -> None:
    store = opened()
    store.commit({}, 1, 1, {"user": [user_rows(0, 3)]})
    store.read_ahead({"user": [b"a", b"b"]})
    early = store.peek("user", [b"b", b"a", b"c"])
    assert early in (
        [ROWS[1].tobytes(), ROWS[0].tobytes(), None],
        [None] * 3,
    )  # a store may read nothing ahead
    assert store.get("user", [b"a"]) == [ROWS[0].tobytes()]
    store.commit({}, 2, 2, {"user": [RowChunk([b"a"], ROWS[2:3])]})
    store.read_ahead({"user": [b"a", b"b", b"nobody"]})
    is_early = early[0] is not None
    after = store.peek("user", [b"a", b"b", b"nobody"])
    assert after == ([ROWS[2].tobytes(), ROWS[1].tobytes(), None] if is_early else [None] * 3)
    store.read_ahead({"user": [b"c"]})
    assert store.peek("user", [b"a", b"b"]) == [None] * 2
    assert store.get("user", [b"a", b"b", b"nobody"]) == [ROWS[2].tobytes(), ROWS[1].tobytes(), None]


def test_a_commit_may_begin_before_what_was_read_ahead_is_fetched(opened: Opener) -> None:
    """More than the pipes hold, either way: neither side may wait for the other."""
    store = opened()
    keys = [f"{number:06d}".encode() for number in range(30_000)]
    rows = np.random.default_rng(0).random((30_000, 30), np.float32)
    store.commit({}, 1, 1, {"user": [RowChunk(keys, rows)]})
    for turn in range(3):
        store.read_ahead({"user": keys[turn::3]})
        others = [(f"{key.decode()}-{turn}".encode(), os.urandom(100)) for key in keys]
        store.commit({"join": others}, 1, 1, {"item": [RowChunk(keys, rows)]})
        assert store.get("user", keys[turn::3]) == [row.tobytes() for row in rows[turn::3]]
    assert store.is_durable(wait=True)
    assert len(list(store.items("join"))) == 90_000


def test_closing_needs_nothing_of_what_was_read_ahead(opened: Opener) -> None:
    store = opened()
    chunk = RowChunk(
        [f"{number:06d}".encode() for number in range(30_000)], np.ones((30_000, 30), np.float32)
    )
    store.commit({}, 1, 1, {"user": [chunk]})
    store.read_ahead({"user": chunk.keys})
    store.close()
    assert opened().last_commit.number == 1


def test_a_commit_whose_rows_fail_is_none(opened: Opener) -> None:
    def rows() -> Iterator[RowChunk]:
        yield user_rows(0, 1)
        raise MemoryError

    store = opened()
    with pytest.raises(MemoryError):  # noqa: PT012  it depends on the store which of the two asks for them
        store.commit({"join": [(b"torn", b"1")]}, 1, 1, {"user": rows()})
        store.is_durable(wait=True)
    store.close()
    again = opened()
    assert again.last_commit.number == 0
    assert [list(again.items(name)) for name in ("join", "user")] == [[], []]


def test_closing_makes_durable_what_was_begun(opened: Opener) -> None:
    store = opened()
    store.commit({"join": [(b"x", b"1")]}, 1, 1, {"user": iter([user_rows(0, 1)] * 50)})
    store.close()
    again = opened()
    assert again.last_commit.number == 1
    assert len(list(again.items("user"))) == 1


def test_a_commit_is_handed_over_in_pieces(tmp_path: Path) -> None:
    """Each call takes a few milliseconds' worth: learning goes on in between."""
    handed: list[int] = []

    def chunks() -> Iterator[RowChunk]:
        for number in range(50):
            handed.append(number)
            yield user_rows(number % 4, number % 4 + 1)

    store = StoreProcess(tmp_path)
    store.commit({}, 1, 1, {"user": chunks()})
    num_calls = 0
    while not store.is_durable(wait=len(handed) == 50):
        num_calls += 1
        assert len(handed) <= 4 * num_calls
    assert num_calls >= 12
    store.close()


def test_its_death_is_an_error_that_says_so(tmp_path: Path) -> None:
    store = StoreProcess(tmp_path)
    store._worker.process.kill()
    with pytest.raises(StoreError, match="exit code -9"):
        store.items("join")
    store.close()


def test_a_commit_that_is_cut_off_is_none_and_the_store_is_free_soon(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINER, str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    store = StoreProcess(tmp_path)  # as the next trainer does, while the first one's process may be dying
    assert [dict(store.items(name)) for name in ("join", "user")] == [{b"whole": b"1"}, {}]
    store.close()


def test_a_disk_that_is_full_is_told_of_and_what_was_committed_stays(opened: Opener) -> None:
    """Files that may not grow stand for it: a process that a test starts inherits that limit."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
    try:
        store = opened()
        store.commit({"join": [(b"whole", b"1")]}, 1, 1, {})
        assert store.is_durable(wait=True)
        with pytest.raises(StoreError, match=r"commit 2 .*Commit 1 is whole: make room"):
            _commit_durably(store, {"join": [(b"torn", os.urandom(4 << 20))]})
        store.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = opened()
    assert again.last_commit == CommitInfo(1, 1, 1)
    assert again.get("join", [b"whole", b"torn"]) == [b"1", None]


def _commit_durably(store: Store, writes: Writes) -> None:
    store.commit(writes, 2, 2, {})
    store.is_durable(wait=True)
