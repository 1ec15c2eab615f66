"""The input side as the trainer sees it: chunks of facts, from a log read here or by another process.

Owns the contract and the implementation in this process; `feed_process.py` has the other. Never learns.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Protocol

from feature_store.configuration import Configuration
from stream_trainer.chunk import Chunk, Position
from stream_trainer.chunker import Chunker
from stream_trainer.event_log import EventLog, TopicPartition
from stream_trainer.ingest import Ingest

_CHUNK_RECORDS = 1_000


class Feed(Protocol):
    """Where the trainer's facts come from."""

    until_end: bool
    """Whether it ends where the log ended at its start: a bounded replay."""

    def start(self, position: Position) -> dict[str, str]:
        """Go on from here; return the topics' UUIDs. May be called again after the end.

        Raises:
            LogError: what is to be read is not there; its subclasses say why.
        """

    def next_chunk(self, timeout_s: float) -> Chunk | None:
        """Return what comes next, None or nothing after `timeout_s`. Its dead letters are durable already.

        Raises:
            LogError: the log cannot be read any more.
        """

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell operators how far the commits are."""

    def close(self) -> None:
        """Release everything, the log included; a second call does nothing."""


class LocalFeed:
    """Reads the log in this process. `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        config: Configuration,
        event_log: EventLog,
        until_end: bool,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.until_end = until_end
        self._config = config
        self._log = event_log
        self._buried: Counter[str] = Counter()
        self._ingest = Ingest(config, event_log, self._buried, until_end, now)

    def start(self, position: Position) -> dict[str, str]:
        """Seek to the stored offsets and load the join; return the topics' UUIDs."""
        places = {TopicPartition(place.topic, place.partition): place for place in position.places}
        self._chunker = Chunker(self._config.join, position)
        ids = self._ingest.start(
            {partition: place.next_offset for partition, place in places.items()},
            {partition: place.latest_ts_ms for partition, place in places.items()},
            position.topic_ids,
        )
        self._chunker.begin_at(self._ingest.take_begun())
        return ids

    def next_chunk(self, timeout_s: float) -> Chunk:
        """Read and join a stretch of the log; the last one of a bounded replay closes all windows."""
        events = self._ingest.next_events(_CHUNK_RECORDS, timeout_s)
        self._chunker.begin_at(self._ingest.take_begun())
        self._chunker.add(events)
        at_end = self._ingest.at_end
        if at_end:
            self._chunker.close_windows()
        if self._buried:
            self._ingest.flush_dead_letters()
        chunk = self._chunker.take(self._ingest.lag_records, self._buried, at_end)
        self._buried.clear()
        return chunk

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell operators how far the commits are."""
        self._ingest.report_progress(offsets)

    def close(self) -> None:
        """Release the reader, the writer of dead letters and the log."""
        self._ingest.close()
        self._log.close()
