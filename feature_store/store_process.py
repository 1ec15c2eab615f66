"""The feature store in a process of its own, because writing it holds Python's lock: a commit is handed over,
and whoever made it goes on while it is written.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from feature_store import store_worker
from feature_store.configuration import StoreSettings
from feature_store.errors import StoreError
from feature_store.sequenced import EncodedChanges
from feature_store.shared_rows import SharedRows
from feature_store.store import CommitInfo, FeatureStore, RowWrites, Writes
from feature_store.store_messages import (
    PAIRS_A_MESSAGE,
    Begin,
    Committed,
    Finish,
    Get,
    Items,
    Open,
    Opened,
    Pairs,
    Put,
    PutChanges,
    PutRows,
    ReadAhead,
    ReadEarly,
    Values,
    all_pairs,
    decode_answer,
    encode,
)
from feature_store.worker import Worker

_MESSAGES_A_PIECE = 4
_LATE = object()  # stands where nothing was read ahead; None stands for no value


class Store(Protocol):
    """What the trainer needs of a store: it reads what was committed, begun or durable alike."""

    waits_s: list[float]
    """How long a commit that was being written held up each read, until somebody takes them out."""

    @property
    def last_commit(self) -> CommitInfo:
        """The last commit that was begun."""

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key, None where there is none."""

    def read_ahead(self, keys: Mapping[str, list[bytes]]) -> None:
        """Say, by family, which keys `get` will be asked for next, so that they can be read meanwhile. No
        commit that is begun from now on may hold one of them before `get` has returned it. What was said
        before and is not among them is let go.
        """

    def peek(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return those values that were read ahead and `get` has not returned yet, None for the others."""

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all keys and values in the order of keys."""

    def commit(self, writes: Writes, watermark_ms: int, latest_click_ms: int, rows: RowWrites) -> CommitInfo:
        """Begin to make all writes durable together, or none, once the commit before is durable.

        Rows and writes may be asked for later, piece by piece: whoever gives them keeps what they were
        (`RowTable.take_dirty`).
        """

    def is_durable(self, wait: bool = False) -> bool:
        """Hand over a piece of the last commit that was begun; return whether it is durable, or with `wait`
        once it is.
        """

    def close(self) -> None:
        """Release the store once what was begun is durable."""


def open_store(settings: StoreSettings) -> Store:
    """Open the configured store, in the process that the settings say.

    Raises:
        StoreError: see `FeatureStore`.
    """
    return StoreProcess(settings.path) if settings.own_process else FeatureStore(settings.path)


class StoreProcess:
    """Keeps `Store` by a child process, which dies with this one."""

    def __init__(self, path: Path) -> None:
        self.waits_s: list[float] = []
        self._rows = SharedRows()
        self._worker = Worker(store_worker, StoreError, [self._rows.fd])
        self._is_writing = False
        self._rest: Iterator[bytes] | None = None
        self._asked: Mapping[str, list[bytes]] | None = None
        self._early: dict[str, dict[bytes, bytes | None]] = {}
        self._worker.send(encode(Open(str(path), self._rows.fd)))
        try:
            opened = decode_answer(self._worker.receive() or b"")
        except StoreError:
            self.close()
            raise
        assert isinstance(opened, Opened)
        self.last_commit = opened.info

    def get(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the value of each key; waits for what is being read ahead, and for a commit that is being
        written if a key was not read ahead.
        """
        self._receive_early()
        early = self._early.get(family, {})
        values: list[Any] = [early.pop(key, _LATE) for key in keys]  # once: it may change from now on
        late = [place for place, value in enumerate(values) if value is _LATE]
        if late:
            self._wait_for_commit()
            self._worker.send(encode(Get(family, [keys[place] for place in late])))
            answer = decode_answer(self._worker.receive() or b"")
            assert isinstance(answer, Values)
            for place, value in zip(late, answer.values, strict=True):
                values[place] = value
        return values

    def read_ahead(self, keys: Mapping[str, list[bytes]]) -> None:
        """Let the process read those that are not at hand, after the commit that is being written, while this
        one goes on.

        Nothing is sent behind it before it is answered: both sides would wait for each other.
        """
        self._receive_early()
        at_hand, self._early, asked = self._early, {}, {}
        for family, wanted in keys.items():
            here = at_hand.get(family, {})
            self._early[family] = {key: here[key] for key in wanted if key in here} if here else {}
            asked[family] = [key for key in wanted if key not in here] if here else wanted
        if not any(asked.values()):
            return
        if self._rest is not None:
            start = time.perf_counter()
            self._hand_over(None)
            self.waits_s.append(time.perf_counter() - start)
        self._worker.send(encode(ReadAhead(asked)))
        self._asked = asked

    def peek(self, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return those values that were read ahead and that `get` has not returned yet, None for the others;
        waits for what is being read ahead.
        """
        self._receive_early()
        return list(map(self._early.get(family, {}).get, keys))

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over all keys and values; waits for a commit that is being written."""
        self.is_durable(wait=True)
        self._receive_early()
        self._worker.send(encode(Items(family)))
        return iter(all_pairs(self._next_pairs(), self._next_pairs))

    def commit(self, writes: Writes, watermark_ms: int, latest_click_ms: int, rows: RowWrites) -> CommitInfo:
        """Begin a commit, which `is_durable` hands over; waits for the commit before."""
        self.is_durable(wait=True)
        self._receive_early()
        self.last_commit = CommitInfo(self.last_commit.number + 1, watermark_ms, latest_click_ms)
        self._worker.send(encode(Begin(watermark_ms, latest_click_ms)))
        self._rest = self._messages(writes, rows)
        self._is_writing = True
        return self.last_commit

    def is_durable(self, wait: bool = False) -> bool:
        """Hand over a piece of the last commit; return whether it is durable, or with `wait` once it is.

        Raises:
            StoreError: it could not be written.
        """
        self._hand_over(None if wait else _MESSAGES_A_PIECE)
        if self._rest is not None:
            return False
        if self._is_writing:
            message = self._worker.receive(None if wait else 0)
            if message is None:
                return False
            answer = decode_answer(message)
            assert isinstance(answer, Committed)
            assert answer.info == self.last_commit
            self._is_writing = False
        return True

    def close(self) -> None:
        """End the process once the last commit is durable; a second call does nothing."""
        if not self._worker.is_closed:
            self._hand_over(None)
            self._worker.close()
            self._rows.close()

    def _next_pairs(self) -> Pairs:
        answer = decode_answer(self._worker.receive() or b"")
        assert isinstance(answer, Pairs)
        return answer

    def _wait_for_commit(self) -> None:
        if self._is_writing:
            start = time.perf_counter()
            self.is_durable(wait=True)
            self.waits_s.append(time.perf_counter() - start)

    def _receive_early(self) -> None:
        """Receive what was read ahead, if anything: after a commit begun before it, and none was since."""
        if self._asked is None:
            return
        self._wait_for_commit()
        answer = decode_answer(self._worker.receive() or b"")
        assert isinstance(answer, ReadEarly)
        asked, self._asked = self._asked, None
        for family, keys in asked.items():
            self._early[family].update(zip(keys, answer.values[family], strict=True))

    def _messages(self, writes: Writes, rows: RowWrites) -> Iterator[bytes]:
        """Yield a commit's messages. Rows first: until theirs, each that changes must be copied aside."""
        start = 0
        for family, chunks in rows.items():
            for keys, rows_nW in chunks:
                end = self._rows.write(start, rows_nW)
                yield encode(PutRows(family, keys, start, rows_nW.shape[1] * 4))
                start = end
        for family, given in writes.items():
            if isinstance(given, EncodedChanges):
                for encoded in given.encoded:
                    yield encode(PutChanges(family, encoded))
                continue
            pieces = iter(given)
            while some := list(islice(pieces, PAIRS_A_MESSAGE)):
                yield encode(Put(family, some))

    def _hand_over(self, num_messages: int | None) -> None:
        """Hand over so many messages, or all that are left; after the last one the commit is whole."""
        rest, self._rest = self._rest, None  # a commit that fails half-way must never be finished
        if rest is None:
            return
        num_handed = 0
        for message in islice(rest, num_messages):
            self._worker.send(message)
            num_handed += 1
        if num_handed == num_messages:
            self._rest = rest
        else:
            self._worker.send(encode(Finish()))
