"""What a user of a store and the process that owns it or has a view of it say to each other, over pipes.

Owns the shapes and their bytes.
"""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeAlias

import msgspec
from msgspec import Struct

from feature_store.store import CommitInfo, Pair

PAIRS_A_MESSAGE = 1000


class Open(Struct, frozen=True, array_like=True, tag=0):
    """To the process, once: which store, and the file descriptor of the shared memory."""

    path: str
    rows_fd: int = -1


class Get(Struct, frozen=True, array_like=True, tag=1):
    """To the process: values wanted."""

    family: str
    keys: list[bytes]


class ReadAhead(Struct, frozen=True, array_like=True, tag=7):
    """To the process: values that will be wanted, keys by family."""

    keys: dict[str, list[bytes]]


class Items(Struct, frozen=True, array_like=True, tag=2):
    """To the process: a whole column family wanted."""

    family: str


class Begin(Struct, frozen=True, array_like=True, tag=3):
    """To the process: a commit follows."""

    watermark_ms: int
    latest_click_ms: int


class Put(Struct, frozen=True, array_like=True, tag=4):
    """To the process: some pairs of the commit; None deletes."""

    family: str
    pairs: list[Pair]


class PutRows(Struct, frozen=True, array_like=True, tag=6):
    """To the process: some rows of the commit, which stand in the shared memory from `start` on, behind those
    of the same family that were told before.
    """

    family: str
    keys: list[bytes]
    start: int
    row_bytes: int


class PutChanges(Struct, frozen=True, array_like=True, tag=8):
    """To the process: some of the commit's changes by sequence, after those told before."""

    family: str
    encoded: bytes


class Finish(Struct, frozen=True, array_like=True, tag=5):
    """To the process: the commit is whole."""


class Look(Struct, frozen=True, array_like=True, tag=9):
    """To a reader's process: the view is to show the newest commit."""


class Opened(Struct, frozen=True, array_like=True, tag=10):
    """From the process: the store is open, and holds this."""

    info: CommitInfo


class Values(Struct, frozen=True, array_like=True, tag=11):
    """From the process: what was wanted by `Get`."""

    values: list[bytes | None]


class ReadEarly(Struct, frozen=True, array_like=True, tag=14):
    """From the process: what will be wanted, in the order of the keys of `ReadAhead`."""

    values: dict[str, list[bytes | None]]


class Pairs(Struct, frozen=True, array_like=True, tag=12):
    """From the process: some of what was wanted by `Items`."""

    pairs: list[tuple[bytes, bytes]]
    is_last: bool


class Committed(Struct, frozen=True, array_like=True, tag=13):
    """From the process: a commit is durable."""

    info: CommitInfo


class Shown(Struct, frozen=True, array_like=True, tag=15):
    """From a reader's process: what its view shows, and why it is no newer if `Look` failed."""

    info: CommitInfo
    identity: str
    failure: str | None = None


Order: TypeAlias = Open | Get | ReadAhead | Items | Begin | Put | PutRows | PutChanges | Finish | Look
Answer: TypeAlias = Opened | Values | ReadEarly | Pairs | Committed | Shown

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def in_pieces(items: Iterator[tuple[bytes, bytes]]) -> Iterator[Pairs]:
    """Yield a whole column family."""
    is_last = False
    while not is_last:
        pairs = list(islice(items, PAIRS_A_MESSAGE))
        is_last = len(pairs) < PAIRS_A_MESSAGE
        yield Pairs(pairs, is_last)


def all_pairs(piece: Pairs, next_piece: Callable[[], Pairs]) -> list[tuple[bytes, bytes]]:
    """Return a whole column family, of which this is the first piece."""
    found = list(piece.pairs)
    while not piece.is_last:
        piece = next_piece()
        found += piece.pairs
    return found
