"""A view of the feature store for other processes, by RocksDB's secondary instances.

Owns how the view is moved: which files tell that there is something new, when it must be begun anew, and what
keeps a torn view from being read. Other threads stand still while RocksDB works. Never writes to the store.
"""

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple, Protocol, Self

from rocksdict import AccessType

from feature_store.errors import StoreError
from feature_store.store import CommitInfo, Families

_CATCH_UP_TRIES = 20


class StoreFiles(NamedTuple):
    """Which store it is, and which manifest and log files of what sizes it is made of now. `opened` tells one
    opening of it from another, also where a backup came back with files of the same names.
    """

    identity: str
    opened: tuple[str, int, int]
    logs: dict[str, int]

    def go_on_in(self, later: Self) -> bool:
        """Whether nothing of it has given way to something else. One log more is begun when the rows of
        another go into tables, which that one outlives by a moment.
        """
        return self[:2] == later[:2] and self.logs.keys() == later.logs.keys()


class StoreReader(Protocol):
    """A view of the store for other processes: it stands still until `catch_up`. For one thread at a time."""

    @property
    def commit_info(self) -> CommitInfo:
        """The commit that is shown."""

    @property
    def identity(self) -> str:
        """Which store is shown, whatever its commits say: RocksDB names each that is made."""

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all keys and values in the order of keys, without the commit's own."""

    def catch_up(self, lock: AbstractContextManager[object] | None = None) -> CommitInfo:
        """Move the view to the newest whole commit and say which that is. Others may read it meanwhile, who
        hold `lock` while they do.

        Raises:
            StoreError: the store is not there, cannot be read, or the view stays torn.
        """

    def close(self) -> None:
        """Release the view."""


class _Secondary(Families):
    """What RocksDB shows of the store."""

    _keeps_blocks = True


class FeatureStoreReader(Families):
    """A `StoreReader` in this process, which stands still while the view moves. After a failure it may show a
    state between two commits.
    """

    def __init__(self, path: Path) -> None:
        """Open a view of the store at `path`.

        Raises:
            StoreError: there is no store there yet, or RocksDB cannot read it.
        """
        self._path = path
        self.commit_info = CommitInfo()
        self.identity = ""
        self._newest = 0
        self._files: StoreFiles | None = self._open()

    def catch_up(self, lock: AbstractContextManager[object] | None = None) -> CommitInfo:
        """Move the view to the newest whole commit and say which that is.

        Raises:
            StoreError: as there. Torn: column families disagree about the commit after several tries.
        """
        with lock or nullcontext():
            return self._catch_up()

    def _catch_up(self) -> CommitInfo:
        known, self._files = self._files, None  # after a failure all is done anew
        files = store_files(self._path)
        if known is None or not known.go_on_in(files):
            files = self._reopen()
        elif files == known and self.commit_info.number:  # to ask RocksDB takes some 40 ms
            self._files = files
            return self.commit_info
        if not self._is_whole():
            files = self._reopen()
            if not self._is_whole():
                raise StoreError(
                    f"the view of {self._path} stays between commits {sorted(self._infos())}; "
                    "is the disk failing?"
                )
        self._files = files
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

    def _reopen(self) -> StoreFiles:
        """Begin the view anew. RocksDB's own does not follow to the manifest that the next trainer begins.

        When a log file has given way to tables it may also miss the last commits, in some families or in all,
        or go back to before them, until the next one is written: for ever, if none is. If no other can be
        opened, the one there is stays: who reads it goes on.
        """
        db, families = self._db, self._family
        files = self._open()
        families.clear()
        db.close()
        return files

    def _open(self) -> StoreFiles:
        files = store_files(self._path)
        try:
            # RocksDB needs the folder for its own log alone, and only while it opens: nothing stays of a
            # process that is killed.
            with tempfile.TemporaryDirectory(prefix="dualstream-reader-") as scratch:
                opened = _Secondary(self._path, AccessType.secondary(scratch))
        except Exception as error:
            raise StoreError(f"RocksDB cannot read the feature store {self._path}: {error}") from error
        if store_files(self._path).identity != files.identity:
            opened.close()
            raise StoreError(f"another feature store came in the place of {self._path} while it was opened")
        self._db, self._family = opened._db, opened._family
        self._newest, self.identity = 0, files.identity
        return files


def store_files(path: Path) -> StoreFiles:
    """Return what a store is made of now.

    Raises:
        StoreError: there is none, or its folder cannot be read.
    """
    try:
        current = path / "CURRENT"  # RocksDB makes a new one when it opens a store
        opened = (current.read_text(), current.stat().st_ino, current.stat().st_mtime_ns)
        identity = "".join(file.read_text() for file in path.glob("IDENTITY"))
        logs = {file.name: _size(file) for file in path.glob("*.log")}
    except FileNotFoundError:
        raise StoreError(
            f"there is no feature store in {path}; start stream-trainer first, or set store.path"
        ) from None
    except OSError as error:
        raise StoreError(f"cannot read the feature store {path}: {error.strerror}") from None
    return StoreFiles(identity, opened, logs)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # its rows went into tables meanwhile: the next look misses it
        return -1
