"""Reads assigned partitions of a Kafka cluster.

Owns a consumer that belongs to no group, and a second one, without partitions, that reports progress and asks
for end offsets: reading must not wait for a group's coordinator, nor a question behind a fetch that waits
half a second for new records. Never commits or moves an offset by itself.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from kafka import KafkaConsumer, OffsetAndMetadata  # type: ignore[import-untyped]
from kafka import TopicPartition as KafkaPartition
from kafka.errors import (  # type: ignore[import-untyped]
    CorruptRecordError,
    KafkaError,
    LeaderNotAvailableError,
    LogTruncationError,
    OffsetOutOfRangeError,
    RetriableError,
)

from feature_store.configuration import LogSettings
from feature_store.errors import LogError, OffsetLostError
from stream_trainer.event_log import Record, TopicPartition
from stream_trainer.kafka_client import connect, kafka_errors

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_MS = 2000
_LOOK_AGAIN_MS = 60_000
_ASK_AGAIN_S, _PATIENCE_S, _PATIENCE_AT_START_S = 0.1, 0.5, 20.0


class KafkaReader:
    """Keeps `EventReader` for Kafka. While brokers are away `poll` returns nothing; then it goes on."""

    def __init__(self, settings: LogSettings) -> None:
        self._consumer: Any = connect(
            KafkaConsumer,
            settings,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            check_crcs=True,
            isolation_level="read_committed",  # what a producer took back did not happen
            metadata_max_age_ms=_LOOK_AGAIN_MS,
        )
        self._side: Any = connect(
            KafkaConsumer,
            settings,
            group_id=settings.group_id,
            enable_auto_commit=False,
            isolation_level="read_committed",
        )
        self._progress: dict[KafkaPartition, OffsetAndMetadata] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._paused: dict[KafkaPartition, int] = {}
        self._known: dict[KafkaPartition, int] = {}  # where reading stands, but for transactions' marks
        self._broken: LogError | None = None
        self._is_closed = False

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, each from its next offset, instead of what was assigned before.

        Raises:
            OffsetLostError: the log no longer (or not yet) holds an offset; says how many records are lost.
            LogError: the cluster does not know a partition, or does not answer.
        """
        names = [KafkaPartition(*partition) for partition in sorted(offsets)]
        with kafka_errors(f"asking for the offsets of {len(names)} partitions"):
            firsts = _offsets(self._consumer.beginning_offsets, names, _PATIENCE_AT_START_S)
            ends = _offsets(self._consumer.end_offsets, names, _PATIENCE_AT_START_S)
        for name in names:
            if not firsts[name] <= offsets[name] <= ends[name]:
                raise _lost(name, offsets[name], firsts[name], ends[name])
        self._consumer.assign(names)
        for name in names:
            self._seek(name, offsets[name])
        self._paused.clear()
        self._ends = {TopicPartition(*name): ends[name] for name in names}

    def take_added(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Read also what these topics got since `assign`, as far as the client has heard of it: it looks by
        itself, every minute.

        Raises:
            LogError: the cluster does not say where they begin; nothing has changed.
        """
        with kafka_errors("asking for new partitions"):
            there = ((topic, n) for topic in topics for n in self._consumer.partitions_for_topic(topic))
            added = sorted(KafkaPartition(*name) for name in set(there) - self._ends.keys())
            if not added:
                return {}
            firsts = _offsets(self._consumer.beginning_offsets, added, _PATIENCE_S, ANSWER_TIMEOUT_MS)
        begun = {TopicPartition(*name): firsts[name] for name in added}
        self._ends |= begun
        self._assign_unpaused()
        for name in added:
            self._seek(name, firsts[name])
        return begun

    def poll(self, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
        """Return what is there, each partition's in offset order; empty after `timeout_s`.

        Raises:
            OffsetLostError: retention deleted what is next, or the cluster lost it.
            LogError: a batch is damaged, or the cluster refuses; this poll and every one after it.
        """
        if self._broken is not None:
            raise self._broken
        if len(self._paused) == len(self._ends):
            time.sleep(timeout_s)
            return {}
        try:
            batches = self._consumer.poll(timeout_ms=round(timeout_s * 1000), max_records=max_records)
        except OffsetOutOfRangeError as error:
            ((name, offset),) = error.args[0].items()
            with kafka_errors("asking what is left of the log"):
                first = self._consumer.beginning_offsets([name])[name]
                end = self._consumer.end_offsets([name])[name]
            raise _lost(name, offset, first, end) from error
        except LogTruncationError as error:
            raise _truncated(error) from error
        except CorruptRecordError as error:
            # The consumer raises this once and then waits for ever on that partition; skipping loses records.
            self._broken = LogError(
                f"{error}: restart to read it again; if it stays, the broker's disk is damaged: "
                "restore a replica, or delete the records up to there"
            )
            raise self._broken from error
        except KafkaError as error:
            self._broken = LogError(f"Kafka: polling: {error}")
            raise self._broken from error
        self._known |= {name: records[-1].offset + 1 for name, records in batches.items()}
        return {TopicPartition(*name): records for name, records in batches.items()}

    def end_offsets(self) -> dict[TopicPartition, int]:
        """The offset after the last record of each assigned partition, now.

        While brokers are away, the last known: lag is a figure to look at, not a reason to stop.
        """
        names = [KafkaPartition(*partition) for partition in self._ends]
        if names:
            try:
                ends = _offsets(self._side.end_offsets, names, _PATIENCE_S, ANSWER_TIMEOUT_MS)
                self._ends = {TopicPartition(*name): ends[name] for name in names}
            except KafkaError as error:
                log.warning("no end offsets from Kafka, keeping the last known: %s", error)
        return dict(self._ends)

    def positions(self) -> dict[TopicPartition, int]:
        """The offset that each assigned partition goes on from, past transactions' marks.

        While brokers are away, what is known without them: marks may be missed, no record is.

        Raises:
            OffsetLostError: the cluster lost records that were already read.
            LogError: the cluster refuses.
        """
        names = [KafkaPartition(*partition) for partition in self._ends]
        self._look_up([name for name in names if name not in self._paused])
        return {TopicPartition(*name): self._paused.get(name, self._known[name]) for name in names}

    def _look_up(self, names: Sequence[KafkaPartition]) -> None:
        """Ask the client, which may ask the cluster whether that place is still the same."""
        deadline_s = time.monotonic() + ANSWER_TIMEOUT_MS / 1000  # for all of them together
        with kafka_errors("asking where reading stands"):
            try:
                for name in names:
                    left_s = max(0.0, deadline_s - time.monotonic())
                    offset = self._consumer.position(name, timeout_ms=round(left_s * 1000))
                    self._known[name] = self._known[name] if offset is None else offset
            except LogTruncationError as error:
                raise _truncated(error) from error
            except RetriableError as error:
                # At each empty poll, while the client's own warnings are let through seldom.
                log.debug("where reading stands is not confirmed by Kafka, going on: %s", error)

    def _seek(self, name: KafkaPartition, offset: int) -> None:
        self._consumer.seek(name, offset)
        self._known[name] = offset

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Do not return records of these until `resume`.

        By taking them out of the assignment: the client's own pause parks what was fetched, and a resume
        then gives back one partition's records and forgets the others' while nothing new arrives.
        """
        names = [KafkaPartition(*partition) for partition in partitions]
        self._look_up([name for name in names if name not in self._paused])
        self._paused |= {name: self._known[name] for name in names if name not in self._paused}
        self._assign_unpaused()

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Return records of these again, from where they were paused."""
        names = [KafkaPartition(*partition) for partition in partitions]
        offsets = {name: self._paused.pop(name) for name in names if name in self._paused}
        self._assign_unpaused()
        for name, offset in offsets.items():
            self._seek(name, offset)

    def _assign_unpaused(self) -> None:
        names = (KafkaPartition(*partition) for partition in self._ends)
        self._consumer.assign([name for name in names if name not in self._paused])

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the offsets to `log.group_id` without waiting; a failure is only logged."""
        self._progress = {
            KafkaPartition(*partition): OffsetAndMetadata(offset, "", -1)
            for partition, offset in offsets.items()
        }
        try:
            self._side.commit_async(self._progress, callback=_log_refusal)
        except KafkaError as error:
            log.warning("progress was not reported to Kafka: %s", error)

    def close(self) -> None:
        """Report the last progress and disconnect; a second call does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._progress:
                self._side.commit(self._progress, timeout_ms=ANSWER_TIMEOUT_MS)
        except KafkaError as error:
            log.warning("progress was not reported to Kafka: %s", error)
        self._side.close(autocommit=False, timeout_ms=ANSWER_TIMEOUT_MS)
        self._consumer.close(autocommit=False, timeout_ms=ANSWER_TIMEOUT_MS)


def _log_refusal(_offsets: object, answer: object) -> None:
    if isinstance(answer, Exception):
        log.warning("progress was not reported to Kafka: %s", answer)


def _offsets(
    ask: Callable[..., dict[KafkaPartition, int]],
    names: list[KafkaPartition],
    patience_s: float,
    timeout_ms: int | None = None,
) -> dict[KafkaPartition, int]:
    """Return what the client answers. Of a partition that it does not know yet, or that has no leader, it
    gives nothing if it has others, but looks at the cluster again: so ask again for a while.
    """
    deadline_s = time.monotonic() + patience_s
    while True:
        try:
            return ask(names, timeout_ms=timeout_ms)
        except KeyError as error:
            if time.monotonic() > deadline_s:
                raise LeaderNotAvailableError(f"{error} is not known yet, or has no leader") from None
        time.sleep(_ASK_AGAIN_S)


def _truncated(error: LogTruncationError) -> OffsetLostError:
    return OffsetLostError(f"the cluster lost records that were already read: {error}")


def _lost(name: KafkaPartition, offset: int, first: int, end: int) -> OffsetLostError:
    where = f"topic '{name.topic}' partition {name.partition}: next is {offset}"
    if offset < first:
        return OffsetLostError(
            f"{where}, but retention left nothing before {first}: "
            f"{first - offset} records were deleted before they were read"
        )
    return OffsetLostError(
        f"{where}, but the log ends at {end}: {offset - end} records that were there before are lost"
    )
