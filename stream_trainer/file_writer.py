"""Appends to the file log: one writer per topic at a time.

Owns the topics' locks, what is not flushed yet, the roll to a new segment, and the cutting off of torn tails.
Never changes a byte that a reader may have returned.
"""

import fcntl
import os
import zlib
from pathlib import Path

from feature_store.disk import sync_folder
from feature_store.errors import LogError, MissingTopicError
from stream_trainer.event_log import Headers, TopicPartition
from stream_trainer.file_frames import MAX_RECORD_BYTES, FrameError, encode_record, skip_records
from stream_trainer.file_segments import (
    num_partitions,
    partition_folder,
    segment_offsets,
    segment_path,
    topic_folder,
)

SEGMENT_BYTES = 64 << 20
BUFFER_BYTES = 1 << 20


class FileWriter:
    """Keeps `EventWriter` for the file log. A topic is locked from its first record until `close`."""

    def __init__(self, root: Path, segment_bytes: int = SEGMENT_BYTES) -> None:
        self._root = root
        self._segment_bytes = segment_bytes
        self._locks: dict[str, int] = {}
        self._partitions: dict[str, list[_PartitionWriter]] = {}

    def send(
        self, topic: str, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers = ()
    ) -> None:
        """Append to the key's partition (CRC32 of the key; 0 without one); buffered until `flush`.

        Raises:
            MissingTopicError: there is no such topic.
            LogError: the record is too large, the topic has another writer, or its files are damaged.
        """
        partitions = self._partitions.get(topic)
        if partitions is None:
            partitions = self._partitions[topic] = self._open_topic(topic)
        number = zlib.crc32(key) % len(partitions) if key else 0
        partitions[number].append(key, value, timestamp_ms, headers)

    def flush(self) -> None:
        """Return once all that was sent is on the disk.

        Raises:
            LogError: the disk refused it (full, gone). What was not written is kept for the next flush.
        """
        for partition in self._all():
            partition.write()
        for partition in self._all():
            partition.sync()

    def close(self) -> None:
        """Flush and give up the topics; a second call does nothing."""
        try:
            self.flush()
        finally:
            for partition in self._all():
                partition.close()
            for lock in self._locks.values():
                os.close(lock)
            self._partitions, self._locks = {}, {}

    def _all(self) -> list["_PartitionWriter"]:
        return [partition for partitions in self._partitions.values() for partition in partitions]

    def _open_topic(self, topic: str) -> list["_PartitionWriter"]:
        count = num_partitions(self._root, topic)
        if count == 0:
            raise MissingTopicError(f"no topic '{topic}' in {self._root}: create it first")
        lock = os.open(topic_folder(self._root, topic) / "lock", os.O_RDWR)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise LogError(
                f"topic '{topic}' in {self._root} has another writer: stop that one first"
            ) from None
        self._locks[topic] = lock
        folders = [partition_folder(self._root, TopicPartition(topic, number)) for number in range(count)]
        return [_PartitionWriter(folder, self._segment_bytes) for folder in folders]


class _PartitionWriter:
    """The last segment of one partition."""

    def __init__(self, folder: Path, segment_bytes: int) -> None:
        self._folder = folder
        self._segment_bytes = segment_bytes
        first_offset = segment_offsets(folder)[-1]
        path = segment_path(folder, first_offset)
        num_records, self._size = _sound_part(path, first_offset)
        self._next_offset = first_offset + num_records
        self._descriptor = os.open(path, os.O_RDWR)
        os.truncate(self._descriptor, self._size)
        self._waiting: list[bytes] = []
        self._num_waiting_bytes = 0
        self._is_dirty = True  # a writer that was killed may have left bytes that were never synced

    def append(self, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers) -> None:
        frame = encode_record(self._next_offset, key, value, timestamp_ms, headers)
        if len(frame) > MAX_RECORD_BYTES:
            where = f"{self._folder.parent.name}/{self._folder.name}"
            raise LogError(f"record for {where} has {len(frame)} bytes; {MAX_RECORD_BYTES} are possible")
        self._waiting.append(frame)
        self._next_offset += 1
        self._num_waiting_bytes += len(frame)
        if self._num_waiting_bytes >= BUFFER_BYTES:
            self.write()

    def write(self) -> None:
        if not self._waiting:
            return
        if self._size >= self._segment_bytes:
            self._roll()
        waiting = memoryview(b"".join(self._waiting))
        self._is_dirty = True
        try:
            num_written = 0
            while num_written < len(waiting):
                num_written += os.pwrite(self._descriptor, waiting[num_written:], self._size + num_written)
        except OSError as error:
            os.truncate(self._descriptor, self._size)
            raise LogError(
                f"cannot append to {self._folder}: {error}; flush again once that is mended"
            ) from error
        self._size += len(waiting)
        self._waiting.clear()
        self._num_waiting_bytes = 0

    def sync(self) -> None:
        if self._is_dirty:
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                raise LogError(f"cannot make {self._folder} durable: {error}") from error
            self._is_dirty = False

    def close(self) -> None:
        os.close(self._descriptor)

    def _roll(self) -> None:
        """Start the next segment. The old one is synced first: once there is a next one it is final."""
        self.sync()
        path = segment_path(self._folder, self._next_offset - len(self._waiting))
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
        os.close(self._descriptor)
        self._descriptor, self._size = descriptor, 0
        sync_folder(self._folder)


def _sound_part(path: Path, first_offset: int) -> tuple[int, int]:
    """Return how many records of the segment are whole, and how many bytes they take.

    What is after them is the tail of a write that was cut off: by a kill it is short, by a power cut its last
    record may be damaged or all zeros. Damage with more behind it is no such tail: it was durable once and is
    not dropped.
    """
    content = path.read_bytes()
    try:
        return skip_records(content, 0, first_offset, len(content), check_bodies=True)
    except FrameError as error:
        if not error.is_last:
            raise LogError(
                f"{path}: byte {error.position}: {error}; restore the file, or cut it there and lose the rest"
            ) from None
        return skip_records(content[: error.position], 0, first_offset, len(content), check_bodies=False)
