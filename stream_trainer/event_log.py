"""The event log's contract: what the trainer and the simulator need of Kafka, and no more.

Owns `Record`, `TopicPartition` and the protocols. Two implementations keep them, under one contract suite:
`file_log.FileEventLog` (embedded) and `kafka_log.KafkaEventLog`. Nothing here decodes a value.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

Headers = tuple[tuple[str, bytes], ...]


class TopicPartition(NamedTuple):
    """Names one partition; sorts by topic, then partition."""

    topic: str
    partition: int


class Record(Protocol):
    """One message as the log holds it, in the shape of kafka-python's own records: there are a hundred
    thousand a second, so nothing copies them.
    """

    @property
    def topic(self) -> str:
        """Its topic."""

    @property
    def partition(self) -> int:
        """The number of its partition."""

    @property
    def offset(self) -> int:
        """Its place in the partition."""

    @property
    def timestamp(self) -> int:
        """The log's time of it in ms since 1970, not the event's; -1 if it has none."""

    @property
    def key(self) -> bytes | None:
        """The key as written."""

    @property
    def value(self) -> bytes | None:
        """The value as written."""

    @property
    def headers(self) -> Sequence[tuple[str, bytes | None]]:
        """Names and contents."""


class EventReader(Protocol):
    """Reads assigned partitions from given offsets. One per process and thread; no group, no rebalancing."""

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, each from its next offset.

        Raises:
            OffsetLostError: the log no longer (or not yet) holds an offset; says how many records are lost.
        """

    def take_added(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Read also the partitions that these topics got since `assign`, each from the first offset that it
        holds; return those. A cluster may tell of them a minute later.

        Raises:
            LogError: the log does not say; nothing has changed.
        """

    def poll(self, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
        """Return what is there, each partition's in offset order; empty after `timeout_s`, never blocks
        longer.

        Values and keys are bytes as written. An empty value (None or b"") means delete.
        """

    def end_offsets(self) -> dict[TopicPartition, int]:
        """The offset after the last record of each assigned partition, now."""

    def positions(self) -> dict[TopicPartition, int]:
        """The offset that each assigned partition goes on from: past what was returned, and past what stands
        behind it but is no record (Kafka's marks of transactions).
        """

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Do not return records of these until `resume`: keeps what waits in the merge bounded."""

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Return records of these again."""

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Tell operators how far we are (a group's committed offsets). Never read back."""

    def close(self) -> None:
        """Release files and sockets; a second call does nothing."""


class EventWriter(Protocol):
    """Appends records. Records of one key stay in order."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        timestamp_ms: int,
        headers: Headers = (),
    ) -> None:
        """Append to the key's partition; buffered until `flush`."""

    def flush(self) -> None:
        """Return once all that was sent is durable in the log. Raises LogError if any record was refused."""

    def close(self) -> None:
        """Flush and release; a second call does nothing."""


class EventLog(Protocol):
    """A set of topics, each with a number of partitions."""

    def create_topics(self, num_partitions: Mapping[str, int]) -> None:
        """Make the topics that are missing; leaves those that exist alone."""

    def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """All partitions of the topics, sorted. Raises MissingTopicError naming those that do not exist."""

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """A UUID per topic that changes when the topic is deleted and made again."""

    def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds."""

    def reader(self) -> EventReader:
        """A reader with nothing assigned yet."""

    def writer(self) -> EventWriter:
        """A writer. The file log admits one per topic at a time: LogError from `send` for a second."""

    def close(self) -> None:
        """Release what the log itself holds; readers and writers close on their own."""
