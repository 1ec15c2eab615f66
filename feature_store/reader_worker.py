"""`python -m feature_store.reader_worker`: a process with a view of a store; `twin_reader.py` starts it."""

import sys
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

from feature_store.errors import StoreError
from feature_store.store_messages import (
    Get,
    Items,
    Look,
    Open,
    Shown,
    Values,
    decode_order,
    encode,
    in_pieces,
)
from feature_store.store_reader import FeatureStoreReader
from feature_store.worker import run_worker


def serve(orders: Connection, answers: Connection) -> None:
    """Read the view, and move it when told to, until the orders end."""
    order = decode_order(orders.recv_bytes())
    assert isinstance(order, Open)
    with closing(FeatureStoreReader(Path(order.path))) as reader:
        answers.send_bytes(encode(Shown(reader.commit_info, reader.identity)))
        while True:
            order = decode_order(orders.recv_bytes())
            if isinstance(order, Get):
                answers.send_bytes(encode(Values(reader.get(order.family, order.keys))))
            elif isinstance(order, Items):
                for piece in in_pieces(reader.items(order.family)):
                    answers.send_bytes(encode(piece))
            else:
                assert isinstance(order, Look)
                answers.send_bytes(encode(_looked(reader)))


def _looked(reader: FeatureStoreReader) -> Shown:
    try:
        reader.catch_up()
        failure = None
    except StoreError as error:  # the view that there is goes on
        failure = str(error)
    return Shown(reader.commit_info, reader.identity, failure)


if __name__ == "__main__":
    sys.exit(run_worker(serve))
