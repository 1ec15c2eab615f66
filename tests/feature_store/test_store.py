"""The store on a real disk: whole commits or none, one writer."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rocksdict import Rdict

from feature_store.errors import StoreCorruptError, StoreError, StoreLockedError
from feature_store.rocksdb_options import options
from feature_store.store import FAMILIES, CommitInfo, FeatureStore
from feature_store.store_reader import FeatureStoreReader


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    opened = FeatureStore(tmp_path / "deep" / "store")
    yield opened
    opened.close()


def test_an_empty_store_is_at_commit_zero(store: FeatureStore) -> None:
    assert store.last_commit == CommitInfo(0, 0, 0)
    assert store.get("user", [b"a"]) == [None]
    assert store.get("user", []) == []
    assert list(store.items("meta")) == []


def test_a_commit_writes_and_deletes_in_all_families(store: FeatureStore) -> None:
    store.commit({"user": [(b"a", b"1"), (b"b", b"2")], "join": [(b"a", b"3")]}, 10, 20)
    info = store.commit({"user": [(b"b", None), (b"c", b""), (b"a", b"4")]}, 11, 21)
    assert info == store.last_commit == CommitInfo(2, 11, 21)
    assert store.get("user", [b"c", b"b", b"a", b"c"]) == [b"", None, b"4", b""]
    assert list(store.items("user")) == [(b"a", b"4"), (b"c", b"")]
    assert list(store.items("join")) == [(b"a", b"3")]


def test_a_commit_is_there_after_reopening(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path)
    store.commit({"dense": [(b"weights", b"\0" * 1000)]}, 5, 6)
    store.close()
    store.close()
    again = FeatureStore(tmp_path)
    assert again.last_commit == CommitInfo(1, 5, 6)
    assert again.get("dense", [b"weights"]) == [b"\0" * 1000]
    again.close()


def test_a_commit_survives_a_process_that_never_closes(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, sys; from feature_store.store import FeatureStore; "
        "store = FeatureStore(pathlib.Path(sys.argv[1])); "
        "store.commit({'user': [(b'a', b'1')]}, 1, 1); os._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)
    store = FeatureStore(tmp_path)
    assert (store.last_commit.number, store.get("user", [b"a"])) == (1, [b"1"])
    store.close()


def test_an_unknown_family_is_no_commit(store: FeatureStore) -> None:
    with pytest.raises(KeyError):
        store.commit({"user": [(b"a", b"1")], "nothing": [(b"a", b"1")]}, 1, 1)
    assert store.get("user", [b"a"]) == [None]
    assert store.last_commit.number == 0


def test_a_commit_that_cannot_be_written_says_what_is_whole(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit({"user": [(b"a", b"1")]}, 1, 1)

    class Full:
        def write(self, *_: object) -> None:
            raise Exception("IO error: No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(store, "_db", Full())
        with pytest.raises(StoreError, match=r"commit 2 .* No space left .* 1 is"):
            store.commit({"user": [(b"a", b"2")]}, 2, 2)
    assert (store.last_commit.number, store.get("user", [b"a"])) == (1, [b"1"])
    assert store.commit({"user": [(b"a", b"3")]}, 3, 3).number == 2


def test_a_second_trainer_is_refused(store: FeatureStore, tmp_path: Path) -> None:
    with pytest.raises(StoreLockedError, match=r"another trainer .*store\.path"):
        FeatureStore(tmp_path / "deep" / "store")
    store.commit({}, 1, 1)  # the first goes on


def test_damage_is_not_called_a_lock(tmp_path: Path) -> None:
    """RocksDB then speaks of a `block`, which holds the word `lock`; so may the folder's name."""
    path = tmp_path / "clock"
    store = FeatureStore(path)
    store.commit({"user": [(b"%d" % n, bytes(range(250))) for n in range(1000)]}, 1, 1)
    store.close()
    FeatureStore(path).close()  # moves the rows from the write-ahead log to a table file
    for table in path.glob("*.sst"):
        data = bytearray(table.read_bytes())
        data[len(data) // 2 : -60] = bytes(len(data) - len(data) // 2 - 60)
        table.write_bytes(data)
    with pytest.raises(StoreError, match="cannot open") as caught:
        FeatureStore(path)
    assert not isinstance(caught.value, StoreLockedError)


def test_families_of_different_commits_are_refused(tmp_path: Path) -> None:
    FeatureStore(tmp_path).close()
    raw = Rdict(str(tmp_path), options(), {name: options() for name in FAMILIES})
    raw.get_column_family("item")[b""] = CommitInfo(4, 5, 6).encode()
    raw.close()
    with pytest.raises(StoreCorruptError, match=r"number=4.*restore it from a backup"):
        FeatureStore(tmp_path)


@pytest.mark.parametrize("inside", ["", "store"])
def test_a_file_where_the_folder_should_be_is_named(tmp_path: Path, inside: str) -> None:
    path = tmp_path / "file" / inside
    (tmp_path / "file").touch()
    with pytest.raises(
        StoreError, match=rf"cannot open the feature store {path}: .*(exists|Not a directory)"
    ):
        FeatureStore(path)
    with pytest.raises(StoreError, match=f"cannot read the feature store {path}: Not a directory"):
        FeatureStoreReader(path)
