"""The feature store: RocksDB column families that change only by whole commits.

Owns the folder on disk, the column families, and the one atomic write. Never interprets a value. Every column
family holds the number of the commit that it belongs to under the empty key, so that a reader can tell a torn
view from a whole one.
"""

import logging
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


class Families:
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


class FeatureStore(Families):
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
        self._has_failed = False
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
            self._has_failed = True
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
        """Release the lock; what was committed is on disk already.

        Raises:
            StoreError: RocksDB cannot close it; not after a write that failed, which has said why.
        """
        self._handle.clear()
        try:
            super().close()
        except Exception as error:
            if self._has_failed:
                return
            raise StoreError(
                f"RocksDB cannot close the feature store {self._path}: {error}. "
                f"Commit {self.last_commit.number} is whole: make room or mend the disk, and start again"
            ) from error
