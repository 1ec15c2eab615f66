"""Appends records to a Kafka cluster.

Owns one producer. Never makes a topic, and never drops a record in silence.
"""

from collections.abc import Callable, Sequence
from typing import Any

from kafka import KafkaProducer  # type: ignore[import-untyped]
from kafka.errors import KafkaError  # type: ignore[import-untyped]

from feature_store.configuration import LogSettings
from feature_store.errors import LogError
from stream_trainer.event_log import Headers, TopicPartition
from stream_trainer.kafka_client import connect, kafka_errors


class KafkaWriter:
    """Keeps `EventWriter` for Kafka: idempotent, acknowledged by all replicas in sync."""

    def __init__(
        self, settings: LogSettings, partitions: Callable[[Sequence[str]], list[TopicPartition]]
    ) -> None:
        """Connect. `partitions` raises MissingTopicError for a topic that does not exist."""
        self._partitions = partitions
        self._topics: set[str] = set()
        self._refusals: list[Exception] = []
        self._is_closed = False
        self._producer: Any = connect(
            KafkaProducer,
            settings,
            acks="all",
            enable_idempotence=True,
            linger_ms=20,
            batch_size=128 * 1024,
            compression_type="lz4",
        )

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers = ()
    ) -> None:
        """Append to the key's partition (by Kafka's usual hash); buffered until `flush`.

        Raises:
            MissingTopicError: there is no such topic.
            LogError: the record is too large, or the buffer is full and no broker takes anything.
        """
        if topic not in self._topics:
            self._partitions([topic])  # the producer itself would wait a minute for a topic that is not there
            self._topics.add(topic)
        if key is None and value is None:
            value = b""  # the producer takes only one None; an empty value means the same
        try:
            future = self._producer.send(topic, value, key, list(headers), timestamp_ms=timestamp_ms)
        except (KafkaError, ValueError) as error:
            raise LogError(f"topic '{topic}': record not accepted: {error}") from error
        future.add_errback(self._refusals.append)

    def flush(self) -> None:
        """Return once the cluster has acknowledged all that was sent.

        Raises:
            LogError: it refused some, or did not answer in time; says how many and why the first.
        """
        with kafka_errors("flushing"):
            self._producer.flush()
        refusals = self._refusals[:]
        del self._refusals[: len(refusals)]
        if refusals:
            raise LogError(f"Kafka refused {len(refusals)} records, the first because of: {refusals[0]}")

    def close(self) -> None:
        """Flush and disconnect; a second call does nothing."""
        if not self._is_closed:
            self._is_closed = True
            try:
                self.flush()
            finally:
                self._producer.close()
