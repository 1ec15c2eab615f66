"""`python -m stream_trainer.feed_worker`: the feed's own process, started by `feed_process.py` alone.

It reads the log as far ahead of the trainer as the pipe holds.
"""

import os
import sys
from contextlib import closing
from multiprocessing.connection import Connection

from feature_store.configuration import Configuration
from feature_store.telemetry import calm_garbage_collector, configure_logging
from feature_store.worker import run_worker
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import LocalFeed
from stream_trainer.feed_messages import Begin, Progress, Start, Started, decode_order, encode
from stream_trainer.open_log import open_log

_POLL_SECONDS = 0.1
_NICENESS = 10  # who learns goes first where cores are few: what is not read yet waits in the log


def serve(orders: Connection, answers: Connection) -> None:
    """Send chunks until the orders end."""
    begin = decode_order(orders.recv_bytes())
    assert isinstance(begin, Begin)
    configure_logging(begin.log_level)
    config = Configuration.model_validate_json(begin.config)
    feed = LocalFeed(config, open_log(config.log), begin.until_end)
    is_reading = False
    with closing(feed), calm_garbage_collector():
        while True:
            if is_reading and not orders.poll(0):
                chunk = feed.next_chunk(_POLL_SECONDS)
                answers.send_bytes(encode(chunk))
                is_reading = not chunk.at_end
                continue
            order = decode_order(orders.recv_bytes())
            if isinstance(order, Start):
                answers.send_bytes(encode(Started(feed.start(order.position))))
                is_reading = True
            elif isinstance(order, Progress):
                places = order.places
                feed.report_progress({TopicPartition(p.topic, p.partition): p.next_offset for p in places})


if __name__ == "__main__":
    os.nice(_NICENESS)
    sys.exit(run_worker(serve))
