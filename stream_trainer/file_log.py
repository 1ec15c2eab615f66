"""The embedded event log: files in a folder, no server, any number of reading processes.

Owns the folder's topics as a whole: making, listing, retention. `file_reader` and `file_writer` own the
records, `file_segments` the layout, `file_frames` the bytes. Never deletes a record on its own.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from feature_store.errors import MissingTopicError
from stream_trainer.event_log import TopicPartition
from stream_trainer.file_reader import FileReader
from stream_trainer.file_segments import (
    make_topic,
    num_partitions,
    partition_folder,
    segment_offsets,
    segment_path,
    topic_folder,
)
from stream_trainer.file_writer import FileWriter


class FileEventLog:
    """Keeps `EventLog` in a folder. Holds nothing open itself."""

    def __init__(self, path: Path) -> None:
        self._root = path

    def create_topics(self, num_partitions: Mapping[str, int]) -> None:
        """Make the topics that are missing; leaves those that exist alone.

        Raises:
            LogError: a topic's name or number of partitions is impossible.
        """
        for topic, count in num_partitions.items():
            if not topic_folder(self._root, topic).is_dir():
                make_topic(self._root, topic, count)

    def partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        """All partitions of the topics, sorted.

        Raises:
            MissingTopicError: names those that do not exist.
        """
        counts = {topic: num_partitions(self._root, topic) for topic in topics}
        missing = sorted(topic for topic, count in counts.items() if count == 0)
        if missing:
            raise MissingTopicError(
                f"no topics {', '.join(missing)} in {self._root}: create them, or mend the names"
            )
        return sorted(
            TopicPartition(topic, number) for topic, count in counts.items() for number in range(count)
        )

    def topic_ids(self, topics: Sequence[str]) -> dict[str, str]:
        """A UUID per topic that changes when the topic is deleted and made again.

        Raises:
            MissingTopicError: names those that do not exist.
        """
        self.partitions(topics)
        return {topic: (topic_folder(self._root, topic) / "id").read_text().strip() for topic in topics}

    def beginning_offsets(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """The first offset that each partition still holds.

        Raises:
            MissingTopicError: a partition does not exist.
        """
        return {name: segment_offsets(partition_folder(self._root, name))[0] for name in partitions}

    def delete_before(self, partition: TopicPartition, offset: int) -> None:
        """Delete the segments that end before `offset`: retention, by whole segments, never the last one."""
        folder = partition_folder(self._root, partition)
        firsts = segment_offsets(folder)
        for first, following in pairwise(firsts):
            if following <= offset:
                segment_path(folder, first).unlink()

    def reader(self) -> FileReader:
        """A reader with nothing assigned yet."""
        return FileReader(self._root)

    def writer(self) -> FileWriter:
        """A writer; each topic has one at a time, and the second to send to it gets LogError."""
        return FileWriter(self._root)

    def close(self) -> None:
        """Nothing to release; readers and writers close on their own."""
