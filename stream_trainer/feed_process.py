"""The input side in a process of its own, so that polling, decoding, merging and joining go on while the
trainer learns.

What it hands over is what `feed.LocalFeed` would have: the same facts in the same order.
"""

import logging
from collections.abc import Mapping

from feature_store.configuration import Configuration
from feature_store.errors import LogError
from feature_store.worker import Worker
from stream_trainer import feed_worker
from stream_trainer.chunk import Chunk, Place, Position
from stream_trainer.event_log import TopicPartition
from stream_trainer.feed import Feed, LocalFeed
from stream_trainer.feed_messages import Begin, Progress, Start, Started, decode_answer, encode
from stream_trainer.open_log import open_log


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
        self._worker = Worker(feed_worker, LogError)
        self._progress: list[Place] = []
        level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
        self._worker.send(encode(Begin(config.model_dump_json(), until_end, level)))

    def start(self, position: Position) -> dict[str, str]:
        """Let the process go on from here; return the topics' UUIDs."""
        self._worker.send(encode(Start(position)))
        answer = decode_answer(self._worker.receive() or b"")
        assert isinstance(answer, Started)
        return answer.topic_ids

    def next_chunk(self, timeout_s: float) -> Chunk | None:
        """Return what the process has read next; None if that takes longer."""
        message = self._worker.receive(timeout_s)
        if message is None:
            return None
        self._tell_progress()
        chunk = decode_answer(message)
        assert isinstance(chunk, Chunk)
        return chunk

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Let the process tell operators how far the commits are, when it hears of it next."""
        self._progress = [Place(*partition, offset, 0) for partition, offset in offsets.items()]

    def close(self) -> None:
        """End the process, which first does what it was told last; a second call does nothing."""
        if not self._worker.is_closed:
            self._tell_progress()
        self._worker.close()

    def _tell_progress(self) -> None:
        """Once a chunk at most: between two chunks the process reads all orders, so that they never fill the
        pipe while it waits for us to read.
        """
        if self._progress:
            self._worker.send(encode(Progress(self._progress)))
            self._progress = []
