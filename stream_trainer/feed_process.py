"""The input side in a process of its own, so that polling, decoding, merging and joining go on while the
trainer learns.

Owns that process and the socket to it. What it hands over is what `feed.LocalFeed` would have: the same facts
in the same order.
"""

import logging
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection

from feature_store import errors
from feature_store.configuration import Configuration
from feature_store.errors import LogError
from stream_trainer import feed_worker
from stream_trainer.chunk import Chunk, Place, Position
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import Feed, LocalFeed
from stream_trainer.feed_messages import (
    Answer,
    Begin,
    Failed,
    Order,
    Progress,
    Start,
    Started,
    decode_answer,
    encode,
)
from stream_trainer.open_log import open_log

_START_TIMEOUT_S = 300
_END_TIMEOUT_S = 20


def open_feed(config: Configuration, until_end: bool) -> Feed:
    """Return the feed over the configured log, in the process that the settings say.

    Raises:
        SettingsError: `log.client` has a key that no Kafka client knows.
    """
    if config.join.own_process:
        return FeedProcess(config, until_end)
    return LocalFeed(config, open_log(config.log), until_end)


class FeedProcess:
    """Keeps `Feed` by a child process, which dies with this one."""

    def __init__(self, config: Configuration, until_end: bool) -> None:
        self.until_end = until_end
        open_log(config.log).close()  # wrong settings are an error here, not there
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", feed_worker.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # a Ctrl-C is for the trainer
            )
        self._connection = Connection(os.dup(self._socket.fileno()))
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        self._send(Begin(config.model_dump_json(), until_end, level))

    def start(self, position: Position) -> dict[str, str]:
        """Let the process go on from here; return the topics' UUIDs."""
        self._send(Start(position))
        answer = self._receive(_START_TIMEOUT_S)
        if not isinstance(answer, Started):
            raise LogError(f"the input process did not start within {_START_TIMEOUT_S} s")
        return answer.topic_ids

    def next_chunk(self, timeout_s: float) -> Chunk | None:
        """Return what the process has read next; None if that takes longer."""
        answer = self._receive(timeout_s)
        assert answer is None or isinstance(answer, Chunk)
        return answer

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let the process tell operators how far the commits are."""
        self._send(Progress([Place(*partition, offset, 0) for partition, offset in offsets.items()]))

    def close(self) -> None:
        """End the process, which first does what it was told last; a second call does nothing."""
        if self._connection.closed:
            return
        with self._socket, self._connection:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_WR)
            with suppress(EOFError, ConnectionError):
                while self._connection.poll(_END_TIMEOUT_S):
                    self._connection.recv_bytes()  # it may be waiting to be rid of a chunk
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _send(self, order: Order) -> None:
        with suppress(ConnectionError):  # why it ended is said by what is received next
            self._connection.send_bytes(encode(order))

    def _receive(self, timeout_s: float) -> Answer | None:
        try:
            if not self._connection.poll(timeout_s):
                return None
            answer: Answer = decode_answer(self._connection.recv_bytes())
        except (EOFError, ConnectionError):
            code = self._process.wait(_END_TIMEOUT_S)
            raise LogError(
                f"the input process ended unasked, with exit code {code}; what it said stands above. Nothing "
                "is lost: start again"
            ) from None
        if isinstance(answer, Failed):
            raise _error_of(answer)
        return answer


def _error_of(failed: Failed) -> errors.DualstreamError:
    kind = getattr(errors, failed.error, errors.LogError)
    error: object = kind(failed.text)
    assert isinstance(error, errors.DualstreamError)
    return error
