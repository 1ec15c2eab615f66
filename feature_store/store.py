"""The feature store: RocksDB column families that change only by whole commits.

Owns the folder on disk, the column families, the one atomic write and the reader for other processes. Never
interprets a value. Every column family holds the number of the commit that it belongs to under the empty key,
so that a reader can tell a torn view from a whole one.
"""

import logging
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple, TypeAlias

import msgpack
from rocksdict import AccessType, Rdict, WriteBatch, WriteOptions

from feature_store.errors import StoreCorruptError, StoreError, StoreLockedError
from feature_store.rocksdb_options import options
from feature_store.row_chunk import RowChunk
from feature_store.sequenced import COUNTER_KEY, EncodedChanges, GatheredChanges

log = logging.getLogger(__name__)

FAMILIES = (
    "user",
    "item",
    "value",
    "item_number",
    "value_number",
    "corpus",
    "join",
    "rehearsal",
    "dense",
    "meta",
)
_COMMIT_KEY = b""
_CATCH_UP_TRIES = 20

RowWrites = Mapping[str, Iterable[RowChunk]]
_NO_ROWS: RowWrites = {}
Pair: TypeAlias = tuple[bytes, bytes | None]
Writes = Mapping[str, Iterable[Pair] | EncodedChanges]
"""By family: values of keys, None to delete; or changes of what stands in it by sequence."""


class CommitInfo(NamedTuple):
    """Which state of the trainer a view shows. Number 0: nothing is committed yet. Event times in ms."""

    number: int = 0
    watermark_ms: int = 0
    latest_click_ms: int = 0

    def encode(self) -> bytes:
        """Return the bytes kept under the empty key of every column family."""
        encoded: bytes = msgpack.packb(tuple(self))
        return encoded

    @classmethod
    def decode(cls, value: bytes | None) -> "CommitInfo":
        """Return what `encode` wrote; commit 0 for None."""
        return cls() if value is None else cls(*msgpack.unpackb(value))


class _Families:
    """Reading, common to the trainer's store and the readers of other processes."""

    _keeps_blocks = False

    def __init__(self, path: Path, access: AccessType) -> None:
        families = {name: options(self._keeps_blocks) for name in FAMILIES}
        self._db = Rdict(str(path), options(), families, access_type=access)
        self._family = {name: self._db.get_column_family(name) for name in FAMILIES}

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        return list(self._family[family].get(list(keys)) or ()) if keys else []

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all keys and values in the order of keys, without the commit's own."""
        for key, value in self._family[family].items():
            assert isinstance(key, bytes)
            if key != _COMMIT_KEY:
                yield key, value

    def _infos(self) -> set[CommitInfo]:
        return {CommitInfo.decode(f.get(_COMMIT_KEY)) for f in self._family.values()}

    def close(self) -> None:
        """Release the folder; a second call does nothing."""
        if self._family:
            self._family.clear()
            self._db.close()


class FeatureStore(_Families):
    """The trainer's store: the only writer."""

    def __init__(self, path: Path) -> None:
        """Open the store, making it if the folder does not exist.

        Raises:
            StoreLockedError: another process has it open.
            StoreCorruptError: its column families disagree about the commit.
            StoreError: the folder cannot be made, or RocksDB cannot open it.
        """
        self._path = path
        self.waits_s: list[float] = []  # here a read waits for no commit
        try:
            path.mkdir(parents=True, exist_ok=True)
            super().__init__(path, AccessType.read_write())
        except Exception as error:
            if f"{path}/LOCK: " in str(error):  # "lock" alone would also find a damaged block
                raise StoreLockedError(
                    f"another trainer has the feature store {path} open; stop it, or change store.path"
                ) from error
            raise StoreError(f"cannot open the feature store {path}: {error}") from error
        self._handle = {name: self._db.get_column_family_handle(name) for name in FAMILIES}
        self._sync = WriteOptions()
        self._sync.sync = True
        infos = self._infos()
        if len(infos) != 1:
            raise StoreCorruptError(
                f"the feature store {path} mixes commits {sorted(infos)}; restore it from a backup"
            )
        self.last_commit = infos.pop()

    def commit(
        self, writes: Writes, watermark_ms: int, latest_click_ms: int, rows: RowWrites = _NO_ROWS
    ) -> CommitInfo:
        """Make all writes and rows durable together, or none: one synced WriteBatch.

        Raises:
            StoreError: they cannot be written; what was committed before is whole.
        """
        of_rows = ((name, chunk.pairs()) for name, chunks in rows.items() for chunk in chunks)
        others = ((name, self._pairs(name, given)) for name, given in writes.items())
        return self.commit_pairs(chain(of_rows, others), watermark_ms, latest_click_ms)

    def gather(self, name: str) -> GatheredChanges:
        """Return changes of a family, of which there are none yet, on top of what is committed."""
        return GatheredChanges(self.get(name, [COUNTER_KEY])[0])

    def _pairs(self, name: str, given: Iterable[Pair] | EncodedChanges) -> Iterable[Pair]:
        if not isinstance(given, EncodedChanges):
            return given
        gathered = self.gather(name)
        for encoded in given.encoded:
            gathered.add(encoded)
        return gathered.pairs()

    def commit_pairs(
        self,
        writes: Iterable[tuple[str, Iterable[Pair]]],
        watermark_ms: int,
        latest_click_ms: int,
    ) -> CommitInfo:
        """As `commit`, of writes that come bit by bit: a family may come again."""
        info = CommitInfo(self.last_commit.number + 1, watermark_ms, latest_click_ms)
        batch = WriteBatch(raw_mode=True)
        for name, pairs in writes:
            handle, put = self._handle[name], batch.put
            for key, value in pairs:
                if value is None:
                    batch.delete(key, handle)
                else:
                    put(key, value, handle)
        for handle in self._handle.values():
            batch.put(_COMMIT_KEY, info.encode(), handle)
        try:
            self._db.write(batch, self._sync)
        except Exception as error:
            raise StoreError(
                f"RocksDB cannot write commit {info.number} to the feature store {self._path}: {error}. "
                f"Commit {self.last_commit.number} is whole: make room or mend the disk, and start again"
            ) from error
        self.last_commit = info
        return info

    def read_ahead(self, keys: Mapping[str, list[bytes]]) -> None:
        """Do nothing: here a read takes the same time whenever it comes."""

    def peek(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return None for each: nothing is read ahead here."""
        return [None] * len(keys)

    def is_durable(self, wait: bool = False) -> bool:
        """Return True: here a commit is durable when it returns."""
        return True

    def close(self) -> None:
        """Release the lock; what was committed is on disk already."""
        self._handle.clear()
        super().close()


class FeatureStoreReader(_Families):
    """A view of the store for other processes: it stands still until `catch_up`. For one thread at a time."""

    _keeps_blocks = True

    def __init__(self, path: Path) -> None:
        """Open a view of the store at `path`.

        Raises:
            StoreError: there is no store there yet, or RocksDB cannot read it.
        """
        self._path = path
        self.commit_info = CommitInfo()
        self.identity = ""
        """Which store is shown, whatever its commits say: RocksDB names each that is made."""
        self._newest = 0
        self._files: list[str] = []
        self._open()

    def catch_up(self) -> CommitInfo:
        """Move the view to the newest whole commit and say which that is.

        Raises:
            StoreError: the view stays torn: column families disagree about the commit after several tries.
        """
        try:
            files = self._list_files()
        except StoreError:
            self._files = []  # what comes in its place may have files of the same names
            raise
        if files != self._files:
            self._reopen()
        if not self._is_whole():
            self._reopen()
            if not self._is_whole():
                raise StoreError(
                    f"the view of {self._path} stays between commits {sorted(self._infos())}; "
                    "is the disk failing?"
                )
        return self.commit_info

    def _is_whole(self) -> bool:
        """Catch up; return whether all column families are of the newest commit that was ever seen in one."""
        for _ in range(_CATCH_UP_TRIES):
            try:
                self._db.try_catch_up_with_primary()
            except Exception as error:
                raise StoreError(f"RocksDB cannot follow the feature store {self._path}: {error}") from error
            infos = self._infos()
            self._newest = max(self._newest, *(info.number for info in infos))
            if {info.number for info in infos} == {self._newest}:
                self.commit_info = infos.pop()
                return True
            time.sleep(0.005)
        return False

    def _reopen(self) -> None:
        """Begin the view anew. RocksDB's own does not follow to the manifest that the next trainer begins.

        When a log file has given way to tables it may also miss the last commits, in some families or in all,
        or go back to before them, until the next one is written: for ever, if none is. If no other can be
        opened, the one there is stays: who reads it goes on.
        """
        db, families, scratch = self._db, self._family, self._scratch
        self._open()
        families.clear()
        db.close()
        shutil.rmtree(scratch, ignore_errors=True)

    def close(self) -> None:
        """Release the view and its scratch folder."""
        super().close()
        shutil.rmtree(self._scratch, ignore_errors=True)

    def _open(self) -> None:
        files, self._files = self._list_files(), []
        self._newest = 0
        scratch = Path(tempfile.mkdtemp(prefix="dualstream-reader-"))
        try:
            super().__init__(self._path, AccessType.secondary(str(scratch)))
        except Exception as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise StoreError(f"RocksDB cannot read the feature store {self._path}: {error}") from error
        self._files, self._scratch = files, scratch
        self.identity = files[0]

    def _list_files(self) -> list[str]:
        """Return which store it is, and which manifest and log files it is made of now."""
        try:
            manifest = (self._path / "CURRENT").read_text()
            identity = "".join(file.read_text() for file in self._path.glob("IDENTITY"))
        except FileNotFoundError:
            raise StoreError(
                f"there is no feature store in {self._path}; start stream-trainer first, or set store.path"
            ) from None
        except OSError as error:
            raise StoreError(f"cannot read the feature store {self._path}: {error.strerror}") from None
        return [identity, manifest, *sorted(file.name for file in self._path.glob("*.log"))]
