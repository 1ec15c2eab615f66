"""The event log on Apache Kafka.

Owns the topics as a whole; `kafka_reader` and `kafka_writer` own the records. Never joins a consumer group: a
restart would wait for its old self to time out, and offsets come from the feature store.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from kafka import KafkaAdminClient  # type: ignore[import-untyped]
from kafka import TopicPartition as KafkaPartition
from kafka.admin import OffsetSpec  # type: ignore[import-untyped]
from kafka.errors import (  # type: ignore[import-untyped]
    NoError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from feature_store.configuration import LogSettings
from feature_store.errors import LogError, MissingTopicError
from stream_trainer.event_log import TopicPartition
from stream_trainer.kafka_client import check_client_settings, connect, kafka_errors
from stream_trainer.kafka_reader import KafkaReader
from stream_trainer.kafka_writer import KafkaWriter


class KafkaEventLog:
    """Keeps `EventLog` on a Kafka cluster. Holds no connection itself."""

    def __init__(self, settings: LogSettings) -> None:
        """Check the client settings; connects to nothing.

        Raises:
            SettingsError: `log.client` has a key that no client knows, or one that is not to be changed.
        """
        check_client_settings(settings)
        self._settings = settings

    def create_topics(self, num_partitions: Mapping[str, int]) -> None:
        """Make the topics that are missing; leaves those that exist alone.

        Replication and cleanup policy are the cluster's defaults.

        Raises:
            LogError: the cluster refuses.
        """
        with self._admin() as admin, kafka_errors("creating topics"):
            for topic, count in num_partitions.items():
                try:
                    admin.create_topics({topic: {"num_partitions": count}})
                except TopicAlreadyExistsError:
                    continue
            admin.wait_for_topics(list(num_partitions))

    def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """All partitions of the topics, sorted.

        Raises:
            MissingTopicError: names those that do not exist.
        """
        described = self._describe(topics)
        return sorted(
            TopicPartition(topic["name"], partition["partition_index"])
            for topic in described
            for partition in topic["partitions"]
        )

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """A UUID per topic that changes when the topic is deleted and made again.

        Raises:
            MissingTopicError: names those that do not exist.
        """
        return {topic["name"]: str(topic["topic_id"]) for topic in self._describe(topics)}

    def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds.

        Raises:
            MissingTopicError: a topic does not exist.
        """
        self._describe(sorted({partition.topic for partition in partitions}))
        with self._admin() as admin, kafka_errors("asking for the first offsets"):
            found = admin.list_partition_offsets(
                {KafkaPartition(*partition): OffsetSpec.EARLIEST for partition in partitions}
            )
        return {partition: found[KafkaPartition(*partition)].offset for partition in partitions}

    def reader(self) -> KafkaReader:
        """A reader with nothing assigned yet."""
        return KafkaReader(self._settings)

    def writer(self) -> KafkaWriter:
        """A writer; there may be many."""
        return KafkaWriter(self._settings, self.partitions)

    def close(self) -> None:
        """Nothing to release; readers and writers close on their own."""

    def _admin(self) -> Any:
        # One per question: an admin client that has lived through an outage finds no node afterwards.
        return connect(KafkaAdminClient, self._settings)

    def _describe(self, topics: Sequence[str]) -> list[dict[str, Any]]:
        with self._admin() as admin, kafka_errors("asking for topics"):
            described: list[dict[str, Any]] = admin.describe_topics(list(topics))
        missing = []
        for topic in described:
            error = for_code(topic["error_code"])
            if error is UnknownTopicOrPartitionError:
                missing.append(topic["name"])
            elif error is not NoError:
                raise LogError(
                    f"topic '{topic['name']}' at {self._settings.bootstrap_servers}: {error.description}"
                )
        if missing:
            raise MissingTopicError(
                f"no topics {', '.join(sorted(missing))} at {self._settings.bootstrap_servers}: "
                "create them, or mend the names"
            )
        return described
