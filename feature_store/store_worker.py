"""`python -m feature_store.store_worker`: the process that owns a store, started by `store_process.py` alone.

A commit that is cut off by the end of its sender is none: only a whole one is written.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import numpy.typing as npt

from feature_store.errors import StoreLockedError
from feature_store.sequenced import GatheredChanges
from feature_store.shared_rows import SharedRows
from feature_store.store import FeatureStore, Pair
from feature_store.store_messages import (
    PAIRS_A_MESSAGE,
    Begin,
    Committed,
    Finish,
    Get,
    Items,
    Open,
    Opened,
    Put,
    PutChanges,
    PutRows,
    ReadAhead,
    ReadEarly,
    Values,
    decode_order,
    encode,
    in_pieces,
)
from feature_store.worker import run_worker

_LOCK_TIMEOUT_S = 2


def serve(orders: Connection, answers: Connection) -> None:
    """Read and write the store until the orders end."""
    order = decode_order(orders.recv_bytes())
    assert isinstance(order, Open)
    with closing(SharedRows(order.rows_fd)) as rows, closing(_open(Path(order.path))) as store:
        answers.send_bytes(encode(Opened(store.last_commit)))
        while True:
            order = decode_order(orders.recv_bytes())
            if isinstance(order, Get):
                answers.send_bytes(encode(Values(store.get(order.family, order.keys))))
            elif isinstance(order, ReadAhead):
                early = {family: store.get(family, keys) for family, keys in order.keys.items()}
                answers.send_bytes(encode(ReadEarly(early)))
            elif isinstance(order, Items):
                for piece in in_pieces(store.items(order.family)):
                    answers.send_bytes(encode(piece))
            elif isinstance(order, Begin):
                puts = _puts(orders, rows, store)
                info = store.commit_pairs(puts, order.watermark_ms, order.latest_click_ms)
                answers.send_bytes(encode(Committed(info)))


def _open(path: Path) -> FeatureStore:
    """Open the store; after a kill its former owner may be dying yet."""
    deadline_s = time.monotonic() + _LOCK_TIMEOUT_S
    while True:
        try:
            return FeatureStore(path)
        except StoreLockedError:
            if time.monotonic() > deadline_s:
                raise
        time.sleep(0.05)


def _puts(orders: Connection, rows: SharedRows, store: FeatureStore) -> Iterator[tuple[str, Iterable[Pair]]]:
    """Yield what is to be written, once all of it was told: the sender does not wait for the writing."""
    puts: list[Put] = []
    changes: dict[str, GatheredChanges] = {}
    of_rows: dict[str, list[PutRows]] = {}
    while not isinstance(order := decode_order(orders.recv_bytes()), Finish):
        if isinstance(order, Put):
            puts.append(order)
        elif isinstance(order, PutChanges):
            if order.family not in changes:
                changes[order.family] = store.gather(order.family)
            changes[order.family].add(order.encoded)
        else:
            assert isinstance(order, PutRows)
            of_rows.setdefault(order.family, []).append(order)
    for family, parts in of_rows.items():
        keys = [key for part in parts for key in part.keys]
        places = _near_together(keys)
        for first in range(0, len(places), PAIRS_A_MESSAGE):  # all at once would be in memory once more
            some = places[first : first + PAIRS_A_MESSAGE]
            values = rows.read(parts[0].start, some, parts[0].row_bytes)
            yield family, zip([keys[place] for place in some.tolist()], values, strict=True)
    for put in puts:
        yield put.family, put.pairs
    for family, gathered in changes.items():
        yield family, gathered.pairs()


def _near_together(keys: list[bytes]) -> npt.NDArray[np.int64]:
    """Return places such that keys nearly ascend, by their first eight bytes: RocksDB inserts what follows
    the key before in half the time, and to sort whole keys would take what that saves.
    """
    return np.argsort(np.array(keys, "S8").view(">u8").astype(np.uint64))


if __name__ == "__main__":
    sys.exit(run_worker(serve))
