"""From the log to events in merge order: polls, decodes, sends what is bad to the dead-letter topic, merges.

Owns the reader, the merge and the writer of dead letters. Never learns; offsets are returned with each event
and become durable only with the commit.
"""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import TypeAlias

from feature_store.codec import decode_many
from feature_store.configuration import Configuration
from feature_store.errors import (
    DecodeError,
    DecodeReason,
    LogError,
    OffsetLostError,
    TopicRecreatedError,
)
from feature_store.schema import Event
from stream_trainer.event_log import EventLog, EventWriter, Headers, Record, TopicPartition
from stream_trainer.merge import Merge

log = logging.getLogger(__name__)

_LOOK_FOR_PARTITIONS_S = 30.0
_MAX_WAITING = 20_000  # records of one partition that wait in the merge before it is paused
_POLL_RECORDS = 2_000  # of one partition, often: while it is read nothing of the others is ready
_MAX_BURIED_BYTES = 900_000  # a record of the log holds 1 MiB, and the headers need room
_MAX_BURIED_KEY_BYTES = 1_000
_MAX_CARRIED_HEADERS = 100
_READ_OF = attrgetter("key", "value", "timestamp")
_OFFSET_OF, _WRITTEN_OF = attrgetter("offset"), attrgetter("timestamp")

Merged: TypeAlias = tuple[TopicPartition, int, int, Event | None]
"""One record in merge order: partition, its event time so far in ms, its offset, and its event, None if it
could not be decoded. Plain tuples, made once: there are a hundred thousand a second.
"""


class Ingest:
    """Reads the log. `buried` counts dead letters by reason; `now` is a monotonic clock in seconds."""

    def __init__(
        self,
        config: Configuration,
        event_log: EventLog,
        buried: Counter[str],
        until_end: bool,
        now: Callable[[], float],
    ) -> None:
        self._config = config
        self._log = event_log
        self._buried = buried
        self._until_end = until_end
        self._now = now
        self._kinds = config.topics.kinds()
        self._max_ahead_ms = round(config.join.max_ahead_seconds * 1000)
        self._reader = event_log.reader()
        self._dead: EventWriter | None = None
        self._ends: dict[TopicPartition, int] = {}
        self._position: dict[TopicPartition, int] = {}
        self._last_seen: dict[TopicPartition, float] = {}
        self._paused: set[TopicPartition] = set()
        self._bad: dict[tuple[TopicPartition, int], tuple[Record, DecodeError]] = {}
        self._open: set[TopicPartition] = set()
        self._begun: dict[TopicPartition, int] = {}
        self._next_look = self._next_count = 0.0

    def start(
        self,
        next_offsets: Mapping[TopicPartition, int],
        latest_ts_ms: Mapping[TopicPartition, int],
        stored_ids: Mapping[str, str],
    ) -> dict[str, str]:
        """Seek to the stored offsets and return the topics' UUIDs.

        Raises:
            MissingTopicError: a topic does not exist.
            TopicRecreatedError: a topic is not the one that the offsets belong to.
            OffsetLostError: the log no longer holds what was not yet learned.
        """
        topics = list(self._kinds)
        dead_letters = self._config.topics.dead_letters  # missed now, not when the first bad message comes
        partitions = [p for p in self._log.partitions([*topics, dead_letters]) if p.topic != dead_letters]
        ids = self._log.topic_ids(topics)
        for topic, stored in stored_ids.items():
            if topic in ids and ids[topic] != stored:
                raise TopicRecreatedError(
                    f"topic '{topic}' was deleted and made again since the last commit (its id was {stored}, "
                    f"now {ids[topic]}), so the stored offsets name other records; what the old topic held "
                    "after them is lost. Start with a new store.path, or use a topic of another name"
                )
        beginning = self._log.beginning_offsets(partitions)
        known = {p for p in next_offsets if p.topic in ids}
        gone = sorted(known - set(partitions))
        if gone:
            raise OffsetLostError(
                f"partitions with stored offsets are gone: {gone}; their unread records are lost"
            )
        self._position = {p: next_offsets.get(p, beginning[p]) for p in partitions}
        self._begun = {p: offset for p, offset in beginning.items() if p not in next_offsets}
        self._reader.assign(self._position)
        self._ends = self._reader.end_offsets()
        self._merge: Merge[int, Event | None] = Merge(partitions, latest_ts_ms)
        self._bad.clear()
        self._open = set(partitions)
        self._last_seen = dict.fromkeys(partitions, self._now())
        self._settle()
        return ids

    def take_begun(self) -> dict[TopicPartition, int]:
        """Return partitions that were begun since the last call without a stored offset, and where."""
        begun, self._begun = self._begun, {}
        return begun

    @property
    def at_end(self) -> bool:
        """Whether a bounded replay has handed out everything."""
        return self._until_end and not self._open and not len(self._merge)

    @property
    def lag_records(self) -> int:
        """Records between what was polled and the end of the log, plus those that wait in the merge."""
        return len(self._merge) + sum(max(0, end - self._position[p]) for p, end in self._ends.items())

    def next_events(self, max_events: int, timeout_s: float) -> list[Merged]:
        """Return the next events in merge order, polling if none is ready; maybe none after `timeout_s`."""
        ready = self._merge.pop_ready(max_events)
        if not ready:
            self._poll(timeout_s)
            ready = self._merge.pop_ready(max_events)
        if self._bad:  # each is buried in its turn, so that a restart meets it again if that did not come
            for partition, _, offset, event in ready:
                if event is None:
                    self._bury(*self._bad.pop((partition, offset)))
        return ready

    def flush_dead_letters(self) -> None:
        """Return once all dead letters are durable: before the commit that passes over them."""
        if self._dead is not None:
            self._dead.flush()

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell operators how far the commits are."""
        self._reader.report_progress(offsets)

    def close(self) -> None:
        """Release the reader and the writer of dead letters."""
        self._reader.close()
        if self._dead is not None:
            self._dead.close()

    def _poll(self, timeout_s: float) -> None:
        self._pause_full()
        polled = self._reader.poll(_POLL_RECORDS, timeout_s)
        for partition, records in polled.items():
            self._push(partition, records)
        if not polled:
            self._position.update(self._reader.positions())
        self._settle()

    def _pause_full(self) -> None:
        """Keep what waits in the merge bounded; resume well below the bound, because it is costly."""
        waiting = {p: self._merge.waiting(p) for p in self._position}
        full = {
            p
            for p, n in waiting.items()
            if n >= _MAX_WAITING or (p in self._paused and n > _MAX_WAITING // 4)
        }
        if full - self._paused:
            self._reader.pause(sorted(full - self._paused))
        if self._paused - full:
            self._reader.resume(sorted(self._paused - full))
        self._paused = full

    def _push(self, partition: TopicPartition, records: Sequence[Record]) -> None:
        self._position[partition] = records[-1].offset + 1
        self._last_seen[partition] = self._now()
        if not self._until_end:
            self._open.add(partition)
        elif records[-1].offset >= self._ends[partition]:  # written since the start: it is for the next run
            records = [record for record in records if record.offset < self._ends[partition]]
        events, errors = decode_many(self._kinds[partition.topic], map(_READ_OF, records))
        for place, error in errors.items():
            self._bad[partition, records[place].offset] = records[place], error
        times_ms = [event.ts_ms if event is not None else 0 for event in events]
        if max(times_ms, default=0) > min(map(_WRITTEN_OF, records), default=0) + self._max_ahead_ms:
            self._refuse_what_is_ahead(partition, records, events, times_ms)
        self._merge.push(partition, times_ms, map(_OFFSET_OF, records), events)

    def _refuse_what_is_ahead(
        self,
        partition: TopicPartition,
        records: Sequence[Record],
        events: list[Event | None],
        times_ms: list[int],
    ) -> None:
        """Refuse events dated much later than they were written: one would take the stream's time along,
        and close every window. By the records' own times, so that a replay refuses the same.
        """
        for place, (record, ts_ms) in enumerate(zip(records, times_ms, strict=True)):
            if 0 < record.timestamp < ts_ms - self._max_ahead_ms:
                detail = (
                    f"field 'ts_ms': {ts_ms} is {(ts_ms - record.timestamp) / 1000:.0f} s after the record "
                    f"was written; join.max_ahead_seconds allows {self._max_ahead_ms / 1000:.0f}"
                )
                self._bad[partition, record.offset] = record, DecodeError(DecodeReason.AHEAD_OF_TIME, detail)
                events[place], times_ms[place] = None, 0

    def _settle(self) -> None:
        """Release the merge from partitions with nothing to read."""
        if self._until_end:
            ended = {p for p in self._open if self._position[p] >= self._ends[p]}
            for partition in ended:
                self._merge.end(partition)
            self._open -= ended
        else:
            self._release_idle()

    def _begin_added(self) -> None:
        """Read partitions that the topics got since the start, each from its first record. Records of their
        keys may have come by others before: the join knows its events by their IDs alone.
        """
        if self._now() < self._next_count:
            return
        try:
            added = self._reader.take_added(list(self._kinds))
        except LogError as error:  # what is read already comes on, or the reader will say why not
            log.warning("new partitions are looked for later: %s", error)
            added = {}
        self._next_count = self._now() + _LOOK_FOR_PARTITIONS_S
        if added:
            names = ", ".join(f"{p.topic}[{p.partition}]@{offset}" for p, offset in sorted(added.items()))
            log.warning("new partitions, read from their first record: %s", names)
            self._begun |= added
            self._position |= added
            self._merge.add(added)
            self._open.update(added)
            self._last_seen |= dict.fromkeys(added, self._now())

    def _release_idle(self) -> None:
        now, timeout = self._now(), self._config.join.idle_timeout_seconds
        if now >= self._next_look:
            self._begin_added()
            self._ends = self._reader.end_offsets()
            self._next_look = self._now() + timeout
        for partition in sorted(self._open):
            silent = now - self._last_seen[partition] >= timeout
            if (
                silent
                and not self._merge.waiting(partition)
                and self._position[partition] >= self._ends[partition]
            ):
                self._merge.idle(partition)
                self._open.discard(partition)

    def _bury(self, record: Record, error: DecodeError) -> None:
        """Send a bad message to the dead-letter topic with where it stood and what was wrong with it."""
        if self._dead is None:
            self._dead = self._log.writer()
        key, value, headers = _dead_letter(record, error)
        self._dead.send(self._config.topics.dead_letters, key, value, record.timestamp, headers)
        self._buried[error.reason.value] += 1
        log.warning("dead letter: %s[%d]@%d: %s", record.topic, record.partition, record.offset, error)


def _dead_letter(record: Record, error: DecodeError) -> tuple[bytes | None, bytes | None, Headers]:
    """Return key, value and headers. What would not fit with our headers is cut, and says how long it was."""
    headers: Headers = (
        ("origin_topic", record.topic.encode()),
        ("origin_partition", str(record.partition).encode()),
        ("origin_offset", str(record.offset).encode()),
        ("reason", error.reason.value.encode()),
        ("detail", error.detail.encode()),
    )
    key, value = record.key, record.value
    num_bytes = len(key or b"") + len(value or b"")
    carried = [(name, content or b"") for name, content in record.headers]
    num_header_bytes = sum(len(name.encode()) + len(content) for name, content in carried)
    if num_bytes + num_header_bytes <= _MAX_BURIED_BYTES and len(carried) <= _MAX_CARRIED_HEADERS:
        return key, value, (*headers, *carried)
    headers += (("truncated_from_bytes", str(num_bytes).encode()),)
    return key and key[:_MAX_BURIED_KEY_BYTES], value and value[:_MAX_BURIED_BYTES], headers
