"""A view of the feature store for a server whose answers must not wait.

While a view moves RocksDB holds Python's lock, for some tenths of a second or for seconds. So views stand in
processes of their own, and in two: one is read while the other moves. Owns which of the two is read.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

from feature_store import reader_worker
from feature_store.errors import StoreError
from feature_store.store import CommitInfo
from feature_store.store_messages import (
    Get,
    Items,
    Look,
    Open,
    Pairs,
    Shown,
    Values,
    all_pairs,
    decode_answer,
    encode,
)
from feature_store.store_reader import store_files
from feature_store.worker import Worker

log = logging.getLogger(__name__)

_Answer = TypeVar("_Answer", Pairs, Shown, Values)


class TwinReader:
    """A `StoreReader` by two processes, which die with the thread that it was made in."""

    def __init__(self, path: Path) -> None:
        """Open both views.

        Raises:
            StoreError: there is no store there yet, or RocksDB cannot read it.
        """
        self._path = path
        store_files(path)  # where there is none, no process is started to say so
        self._read, self._spare = _View(path), _View(path)
        try:
            self._read.open()
            self._spare.open()
        except StoreError:
            self.close()
            raise

    @property
    def commit_info(self) -> CommitInfo:
        """The commit that is shown."""
        return self._read.shown.info

    @property
    def identity(self) -> str:
        """Which store is shown."""
        return self._read.shown.identity

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""
        return self._read.get(family, keys) if keys else []

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all keys and values in the order of keys."""
        return self._read.items(family)

    def catch_up(self, lock: AbstractContextManager[object] | None = None) -> CommitInfo:
        """Move the spare view, and then, holding `lock`, read that one. A process that has ended is replaced.

        Raises:
            StoreError: the spare view cannot be moved. The other one is read on or, if its process has ended,
                the spare one as it is.
        """
        if self._spare.has_ended:
            log.warning("a process that reads the feature store has ended: another one takes its place")
            self._spare.close()
            self._spare = _View(self._path)
            self._spare.open()
        try:
            self._spare.look()
            if self._goes_back():  # it missed what its next look finds
                self._spare.look()
        except StoreError:
            if self._read.has_ended and self._spare.shown.info.number and not self._spare.has_ended:
                self._change_over(lock)
            raise
        return self._change_over(lock)

    def _goes_back(self) -> bool:
        shown, spare = self._read.shown, self._spare.shown
        return spare.identity == shown.identity and spare.info.number < shown.info.number

    def _change_over(self, lock: AbstractContextManager[object] | None) -> CommitInfo:
        with lock or nullcontext():
            self._read, self._spare = self._spare, self._read
            return self._read.shown.info

    def close(self) -> None:
        """End both processes."""
        self._read.close()
        self._spare.close()


class _View:
    """One process and its view. Where the process has ended, that is said once, and it is closed."""

    def __init__(self, path: Path) -> None:
        self.shown = Shown(CommitInfo(), "")
        self._worker = Worker(reader_worker, StoreError)
        self._worker.send(encode(Open(str(path))))

    @property
    def has_ended(self) -> bool:
        return self._worker.is_closed or self._worker.process.poll() is not None

    def open(self) -> None:
        """Wait until the process has its view."""
        self.shown = self._ask(None, Shown)

    def look(self) -> None:
        """Move the view."""
        shown = self._ask(encode(Look()), Shown)
        if shown.failure is not None:
            if shown.identity != self.shown.identity:  # it is half-way to another store: not to be read
                self.shown = Shown(CommitInfo(), shown.identity)
            raise StoreError(shown.failure)
        self.shown = shown

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._ask(encode(Get(family, list(keys))), Values).values

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        first = self._ask(encode(Items(family)), Pairs)
        return iter(all_pairs(first, lambda: self._ask(None, Pairs)))

    def close(self) -> None:
        self._worker.close()

    def _ask(self, order: bytes | None, expected: type[_Answer]) -> _Answer:
        if self._worker.is_closed:
            raise StoreError("the process that read the feature store has ended; soon the other one is read")
        try:
            if order is not None:
                self._worker.send(order)
            answer = decode_answer(self._worker.receive() or b"")
            assert isinstance(answer, expected)
        except BaseException:  # an answer that nobody took would be taken for the next one's
            self.close()
            raise
        return answer
