"""`python -m stream_trainer.feed_worker FD`: the feed's own process, started by `feed_process.py` alone.

It reads the log ahead of the trainer and ends with it: when the socket closes. Signals are the trainer's to
answer.
"""

import signal
import sys
from contextlib import closing, suppress
from multiprocessing.connection import Connection

from feature_store.configuration import Configuration
from feature_store.errors import DualstreamError
from feature_store.telemetry import calm_garbage_collector, configure_logging
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import LocalFeed
from stream_trainer.feed_messages import Begin, Failed, Progress, Start, Started, decode_order, encode
from stream_trainer.open_log import open_log

_POLL_SECONDS = 0.1


def main() -> int:
    """Serve the trainer at the other end of the inherited socket."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # The connection breaks when the trainer goes, by itself or by force; nothing here needs saving then.
    with suppress(EOFError, ConnectionError), Connection(int(sys.argv[1])) as connection:
        serve(connection)
    return 0


def serve(connection: Connection) -> None:
    """Send chunks until the other end closes."""
    begin = decode_order(connection.recv_bytes())
    assert isinstance(begin, Begin)
    configure_logging(begin.log_level)
    try:
        config = Configuration.model_validate_json(begin.config)
        feed = LocalFeed(config, open_log(config.log), begin.until_end)
        with closing(feed), calm_garbage_collector():
            _send_chunks(connection, feed)
    except DualstreamError as error:
        connection.send_bytes(encode(Failed(type(error).__name__, str(error))))


def _send_chunks(connection: Connection, feed: LocalFeed) -> None:
    is_reading = False
    while True:
        if is_reading and not connection.poll(0):
            chunk = feed.next_chunk(_POLL_SECONDS)
            connection.send_bytes(encode(chunk))
            is_reading = not chunk.at_end
            continue
        order = decode_order(connection.recv_bytes())
        if isinstance(order, Start):
            connection.send_bytes(encode(Started(feed.start(order.position))))
            is_reading = True
        elif isinstance(order, Progress):
            feed.report_progress({TopicPartition(p.topic, p.partition): p.next_offset for p in order.places})


if __name__ == "__main__":
    sys.exit(main())
