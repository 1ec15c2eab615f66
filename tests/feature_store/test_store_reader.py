"""How a view in this process is moved: when RocksDB is asked, and when it is begun anew."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from feature_store.errors import StoreError
from feature_store.store import CommitInfo, FeatureStore
from feature_store.store_reader import FeatureStoreReader


@pytest.fixture
def reader(store: FeatureStore, tmp_path: Path) -> Iterator[FeatureStoreReader]:
    opened = FeatureStoreReader(tmp_path / "store")
    yield opened
    opened.close()


def test_a_view_that_cannot_be_opened_anew_stays(
    store: FeatureStore, reader: FeatureStoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.commit({"user": [(b"a", b"1")]}, 1, 1)
    reader.catch_up()
    reader._files = None  # as after a failure
    with monkeypatch.context() as patch:
        patch.setattr("feature_store.store.Rdict", lambda *_, **__: 1 / 0)
        with pytest.raises(StoreError, match="cannot read"):
            reader.catch_up()
    assert reader.get("user", [b"a"]) == [b"1"]
    store.commit({"user": [(b"a", b"2")]}, 2, 2)
    assert reader.catch_up().number == 2
    assert reader.get("user", [b"a"]) == [b"2"]


def test_a_reader_that_is_killed_leaves_nothing_behind(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder for RocksDB's own log is gone while it reads, though there is much to follow."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    reader = FeatureStoreReader(tmp_path / "store")
    for number in range(1, 30):
        store.commit({"user": [(b"a", b"%d" % number)]}, number, number)
        if number % 10 == 0:
            store._family["user"].flush()
        assert reader.catch_up().number == number
        assert list(scratch.iterdir()) == []
    assert reader.get("user", [b"a"]) == [b"29"]
    reader.close()


def test_rocksdb_is_asked_only_where_something_was_written(
    store: FeatureStore, reader: FeatureStoreReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds up all threads for some 40 ms, though there is nothing new."""
    store.commit({"user": [(b"a", b"1")]}, 1, 1)
    assert reader.catch_up().number == 1
    with monkeypatch.context() as patch:
        patch.setattr(reader, "_is_whole", lambda: 1 / 0)
        assert reader.catch_up() == CommitInfo(1, 1, 1)
        store.commit({}, 2, 2)
        with pytest.raises(ZeroDivisionError):
            reader.catch_up()
    assert reader.catch_up() == CommitInfo(2, 2, 2)
