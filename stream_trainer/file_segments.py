"""Where the file log keeps what: folders for topics and partitions, files for segments.

Owns the layout and the naming rules. Never opens a segment.

    LOG/TOPIC/id                              the topic's UUID
    LOG/TOPIC/lock                            held by the topic's writer
    LOG/TOPIC/PARTITION/00000000000000000000.log   a segment, named by its first offset
"""

import os
import re
import shutil
import uuid
from pathlib import Path

from feature_store.disk import sync_folder
from feature_store.errors import LogError, MissingTopicError
from stream_trainer.event_log import TopicPartition

_TOPIC = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,248}")
_SUFFIX = ".log"


def topic_folder(root: Path, topic: str) -> Path:
    """Return the topic's folder, made or not.

    Raises:
        LogError: the name has other characters than Kafka allows, or could name a file outside the log.
    """
    if not _TOPIC.fullmatch(topic):
        raise LogError(f"topic name {topic!r}: use 1 to 249 of A-Z a-z 0-9 . _ -, the first not a dot")
    return root / topic


def partition_folder(root: Path, partition: TopicPartition) -> Path:
    """Return the partition's folder, made or not."""
    return topic_folder(root, partition.topic) / str(partition.partition)


def segment_path(folder: Path, first_offset: int) -> Path:
    """Return the file of the segment that starts at `first_offset`."""
    return folder / f"{first_offset:020d}{_SUFFIX}"


def segment_offsets(folder: Path) -> list[int]:
    """Return the first offsets of the partition's segments, ascending.

    Raises:
        MissingTopicError: the folder is not there, or holds no segment.
        LogError: it cannot be read.
    """
    names = _names(folder)
    offsets = sorted(int(name[: -len(_SUFFIX)]) for name in names if name.endswith(_SUFFIX))
    if not offsets:
        raise MissingTopicError(
            f"topic '{folder.parent.name}' has no partition {folder.name} in {folder.parent.parent}: "
            "create the topic"
        )
    return offsets


def num_partitions(root: Path, topic: str) -> int:
    """Return how many partitions the topic has; 0 if there is no such topic.

    Raises:
        LogError: the log cannot be read.
    """
    return sum(name.isdigit() for name in _names(topic_folder(root, topic)))


def _names(folder: Path) -> list[str]:
    """Return the names of what the folder holds; none if it does not exist."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise LogError(f"cannot read {folder}: {error.strerror}; mend that, or set log.path") from None


def make_topic(root: Path, topic: str, partitions: int) -> None:
    """Make the topic with empty partitions, all at once; leave it alone if it exists.

    Raises:
        LogError: there are no partitions, or the topic cannot be written.
    """
    folder = topic_folder(root, topic)
    if partitions < 1:
        raise LogError(f"topic '{topic}': {partitions} partitions; at least 1 is needed")
    try:
        _make(root, folder, partitions)
    except OSError as error:
        raise LogError(
            f"cannot make the topic '{topic}' in {root}: {error.strerror}; mend that, or set log.path"
        ) from error


def _make(root: Path, folder: Path, partitions: int) -> None:
    """Make the topic beside its place and then rename it, so that nobody ever sees half of it."""
    topic_id = uuid.uuid4()
    made = root / f".{folder.name}-{topic_id.hex}"
    made.mkdir(parents=True)
    with (made / "id").open("w") as file:
        file.write(f"{topic_id}\n")
        file.flush()
        os.fsync(file.fileno())
    (made / "lock").touch()
    for number in range(partitions):
        (made / str(number)).mkdir()
        segment_path(made / str(number), 0).touch()
        sync_folder(made / str(number))
    sync_folder(made)
    try:
        made.rename(folder)
    except OSError:
        shutil.rmtree(made)
        if not folder.is_dir():
            raise
    sync_folder(root)
