"""Views of a store on a real disk, in this process and in two others: they stand still until they are moved,
and miss no commit whatever becomes of the files.
"""

import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocksdict import Rdict

from feature_store.errors import StoreError
from feature_store.rocksdb_options import options
from feature_store.store import FAMILIES, CommitInfo, FeatureStore
from feature_store.store_reader import FeatureStoreReader, StoreReader
from feature_store.twin_reader import TwinReader

OpenReader = Callable[[Path], StoreReader]


@pytest.fixture(params=[FeatureStoreReader, TwinReader])
def open_reader(request: pytest.FixtureRequest) -> OpenReader:
    opened: OpenReader = request.param
    return opened


@pytest.fixture
def reader(store: FeatureStore, open_reader: OpenReader, tmp_path: Path) -> Iterator[StoreReader]:
    opened = open_reader(tmp_path / "store")
    yield opened
    opened.close()


def test_a_reader_stands_still_until_it_catches_up(store: FeatureStore, reader: StoreReader) -> None:
    assert reader.catch_up() == CommitInfo(0, 0, 0)
    store.commit({"user": [(b"a", b"1")], "meta": [(b"m", b"2")]}, 7, 8)
    assert reader.get("user", [b"a"]) == [None]
    assert reader.commit_info.number == 0
    assert reader.catch_up() == reader.commit_info == CommitInfo(1, 7, 8)
    assert reader.get("user", [b"a", b"b"]) == [b"1", None]
    assert list(reader.items("meta")) == [(b"m", b"2")]


def test_a_reader_sees_a_last_commit_whose_log_has_given_way_to_tables(
    store: FeatureStore, reader: StoreReader
) -> None:
    """RocksDB's view alone does not: it moves on by what it reads in logs, and nothing more is written."""
    store.commit({"user": [(b"a", b"1")]}, 1, 1)
    assert reader.catch_up().number == 1
    store.commit({"user": [(b"a", b"2")]}, 2, 2)
    for family in store._family.values():
        family.flush()
    assert reader.catch_up().number == 2
    assert reader.get("user", [b"a"]) == [b"2"]


@pytest.mark.parametrize("is_missed", [False, True])
def test_a_reader_moves_to_another_store_in_the_place_of_its_own(
    tmp_path: Path, open_reader: OpenReader, is_missed: bool
) -> None:
    """Also where the files of both have the same names, and whether or not it looked in between."""
    path = tmp_path / "store"
    for round_number, num_commits in enumerate((5, 2)):
        store = FeatureStore(path)
        for n in range(num_commits):
            store.commit({"user": [(b"a", b"%d" % round_number)]}, n, n)
        if round_number == 0:
            reader = open_reader(path)
            first = reader.identity
            store.close()
            FeatureStore(path).close()
            assert reader.catch_up().number == 5
            assert reader.identity == first != ""
            shutil.rmtree(path)
            if not is_missed:
                with pytest.raises(StoreError, match="there is no feature store"):
                    reader.catch_up()
    assert reader.catch_up() == CommitInfo(2, 1, 1)
    assert reader.identity not in (first, "")
    assert reader.get("user", [b"a"]) == [b"1"]
    reader.close()
    store.close()


def test_a_reader_refuses_a_torn_view(tmp_path: Path, open_reader: OpenReader) -> None:
    FeatureStore(tmp_path).close()
    raw = Rdict(str(tmp_path), options(), {name: options() for name in FAMILIES})
    raw.get_column_family("item")[b""] = CommitInfo(4, 5, 6).encode()
    reader = open_reader(tmp_path)
    with pytest.raises(StoreError, match="between commits"):
        reader.catch_up()
    reader.close()
    raw.close()


def test_a_reader_of_nothing_says_what_to_start(tmp_path: Path, open_reader: OpenReader) -> None:
    with pytest.raises(StoreError, match="start stream-trainer first"):
        open_reader(tmp_path)


@pytest.mark.parametrize("seed", range(4))
def test_each_commit_is_seen_whatever_was_flushed_before(
    tmp_path: Path, open_reader: OpenReader, seed: int
) -> None:
    rng = random.Random(seed)
    store = FeatureStore(tmp_path / "store")
    reader = open_reader(tmp_path / "store")
    for n in range(1, 60):
        families = rng.sample(FAMILIES, rng.randrange(1, 4))
        store.commit({family: [(b"n", b"%d" % n)] for family in families}, n, n)
        for family in rng.sample(FAMILIES, rng.choice([0, 0, 1, 3, len(FAMILIES)])):
            store._family[family].flush()
        if rng.random() < 0.05:
            store.close()
            store = FeatureStore(tmp_path / "store")
        if rng.random() < 0.7:
            assert reader.catch_up() == CommitInfo(n, n, n)
            assert [reader.get(family, [b"n"]) for family in families] == [[b"%d" % n]] * len(families)
    reader.close()
    store.close()


@pytest.mark.parametrize("is_missed", [False, True])
def test_a_reader_moves_to_a_backup_that_came_back(
    tmp_path: Path, open_reader: OpenReader, is_missed: bool
) -> None:
    """It is the same store, with files of the same names; what is shown does not go to and fro."""
    path, backup = tmp_path / "store", tmp_path / "backup"
    store = FeatureStore(path)
    store.commit({"user": [(b"a", b"1")]}, 1, 1)
    store.close()
    shutil.copytree(path, backup)
    store = FeatureStore(path)
    reader = open_reader(path)
    for n in (2, 3):
        store.commit({"user": [(b"a", b"%d" % n)]}, n, n)
        assert reader.catch_up().number == n
    store.close()
    shutil.rmtree(path)
    if not is_missed:
        with pytest.raises(StoreError, match="there is no feature store"):
            reader.catch_up()
    shutil.copytree(backup, path)
    store = FeatureStore(path)
    for _ in range(3):
        assert reader.catch_up() == reader.commit_info == CommitInfo(1, 1, 1)
        assert reader.get("user", [b"a"]) == [b"1"]
    store.commit({"user": [(b"a", b"again")]}, 2, 2)
    for _ in range(3):
        assert reader.catch_up().number == 2
        assert reader.get("user", [b"a"]) == [b"again"]
    reader.close()
    store.close()
