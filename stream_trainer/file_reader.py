"""Reads the file log while a writer, perhaps in another process, appends to it.

Owns open segment files and the place in each. Takes no lock and never writes but for `progress.json`.
"""

import json
import os
import time
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path

from feature_store.errors import LogError, OffsetLostError, TopicRecreatedError
from stream_trainer.event_log import Record, TopicPartition
from stream_trainer.file_frames import MAX_RECORD_BYTES, FrameError, decode_records, skip_records
from stream_trainer.file_segments import num_partitions, partition_folder, segment_offsets, segment_path

CHUNK_BYTES = 2 * MAX_RECORD_BYTES
IDLE_S = 0.005


class FileReader:
    """Keeps `EventReader` for the file log."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._partitions: dict[TopicPartition, _PartitionReader] = {}
        self._paused: set[TopicPartition] = set()
        self._turn = 0

    def assign(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Read these partitions, each from its next offset, instead of what was assigned before.

        Raises:
            MissingTopicError: a topic or partition does not exist.
            OffsetLostError: the log no longer (or not yet) holds an offset; says how many records are lost.
            LogError: a segment is damaged.
        """
        kept = {
            name: reader
            for name, reader in self._partitions.items()
            if offsets.get(name) == reader.next_offset
        }
        for name in kept:  # a reader that stands there already need not look for its place again
            del self._partitions[name]
        self.close()
        for partition, offset in sorted(offsets.items()):
            self._partitions[partition] = kept.get(partition) or _PartitionReader(
                self._root, partition, offset
            )

    def take_added(self, topics: Sequence[str]) -> dict[TopicPartition, int]:
        """Read also what these topics got since `assign`."""
        there = {
            TopicPartition(topic, n) for topic in topics for n in range(num_partitions(self._root, topic))
        }
        added = {
            name: segment_offsets(partition_folder(self._root, name))[0]
            for name in there - self._partitions.keys()
        }
        self._partitions |= {name: _PartitionReader(self._root, name, added[name]) for name in sorted(added)}
        return added

    def poll(self, max_records: int, timeout_s: float) -> dict[TopicPartition, list[Record]]:
        """Return what is there, each partition's in offset order; empty after `timeout_s`.

        Partitions take turns at being first, so that a long one does not starve the others.

        Raises:
            LogError: a record is damaged; those before it are returned first.
            OffsetLostError: retention deleted what is next.
            TopicRecreatedError: the topic was deleted and made again.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            active = [pair for pair in self._partitions.items() if pair[0] not in self._paused]
            polled: dict[TopicPartition, list[Record]] = {}
            missing = max_records
            for number in range(len(active)):
                if missing:
                    name, reader = active[(self._turn + number) % len(active)]
                    if records := reader.read(missing):
                        polled[name] = records
                        missing -= len(records)
            self._turn += 1
            remaining_s = deadline_s - time.monotonic()
            if polled or remaining_s <= 0:
                return polled
            time.sleep(min(IDLE_S, remaining_s))

    def end_offsets(self) -> dict[TopicPartition, int]:
        """The offset after the last record of each assigned partition, now."""
        return {name: reader.end_offset() for name, reader in self._partitions.items()}

    def positions(self) -> dict[TopicPartition, int]:
        """The offset that each assigned partition goes on from."""
        return {name: reader.next_offset for name, reader in self._partitions.items()}

    def pause(self, partitions: Sequence[TopicPartition]) -> None:
        """Do not return records of these until `resume`."""
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[TopicPartition]) -> None:
        """Return records of these again."""
        self._paused.difference_update(partitions)

    def report_progress(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Write `progress.json` for operators: what is before these offsets may be deleted."""
        progress = {f"{topic}/{number}": offset for (topic, number), offset in sorted(offsets.items())}
        beside = self._root / f".progress-{os.getpid()}"
        beside.write_text(json.dumps(progress, indent=1))
        beside.replace(self._root / "progress.json")

    def close(self) -> None:
        """Release the files; a second call does nothing."""
        for reader in self._partitions.values():
            reader.close()
        self._partitions, self._paused = {}, set()


class _PartitionReader:
    """A place in one partition: `_chunk[_at:]` is read and not yet returned, of the segment `_first`."""

    def __init__(self, root: Path, partition: TopicPartition, offset: int) -> None:
        self._name = partition
        self._folder = partition_folder(root, partition)
        self._descriptor = -1
        self._end = _End(self._folder)
        firsts = segment_offsets(self._folder)
        if offset < firsts[0]:
            raise self._lost(offset, firsts[0])
        self._open(firsts[bisect_right(firsts, offset) - 1])
        self._skip_to(offset)

    def read(self, max_records: int) -> list[Record]:
        records = self._decode(max_records)
        while not records:
            # Listed before the file is read: once there is a next segment, this one grows no more.
            firsts = segment_offsets(self._folder)
            self._load()
            records = self._decode(max_records)
            if not records and not self._advance(firsts):
                break
        return records

    @property
    def next_offset(self) -> int:
        return self._offset

    def end_offset(self) -> int:
        return self._end.find()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _open(self, first: int) -> None:
        self.close()
        self._descriptor = os.open(segment_path(self._folder, first), os.O_RDONLY)
        self._first = self._offset = first
        self._base = self._at = 0
        self._chunk = b""

    def _load(self) -> None:
        self._base += self._at
        self._at = 0
        self._chunk = os.pread(self._descriptor, CHUNK_BYTES, self._base)

    def _decode(self, max_records: int) -> list[Record]:
        try:
            return self._decode_once(max_records)
        except FrameError:
            # A writer that starts may be cutting off a torn tail just here: look a second time.
            time.sleep(IDLE_S)
            self._load()
        try:
            return self._decode_once(max_records)
        except FrameError as error:
            raise self._damaged(error) from None

    def _decode_once(self, max_records: int) -> list[Record]:
        records, self._at = decode_records(self._name, self._chunk, self._at, self._offset, max_records)
        self._offset += len(records)
        return records

    def _advance(self, firsts: list[int]) -> bool:
        """Go on to the next segment if there is one; `firsts` was listed before this one was read."""
        is_deleted = os.fstat(self._descriptor).st_nlink == 0
        later = [first for first in firsts if first > self._first]
        if not is_deleted and not later:
            return False
        if later and later[0] == self._offset and not self._chunk:
            self._open(later[0])
            return True
        if is_deleted:
            firsts = segment_offsets(self._folder)
            if firsts[0] > self._offset:
                raise self._lost(self._offset, firsts[0])
            if self._offset in firsts and self._first not in firsts:
                self._open(self._offset)
                return True
            raise TopicRecreatedError(
                f"topic '{self._name.topic}' was deleted and made again while it was read"
            )
        path = segment_path(self._folder, self._first)
        raise LogError(
            f"{path} ends at byte {self._base} before record {self._offset}, and the next segment begins "
            f"at {later[0]}: restore the file"
        )

    def _skip_to(self, offset: int) -> None:
        while self._offset < offset:
            self._load()
            try:
                num_records, self._at = skip_records(
                    self._chunk, 0, self._offset, offset - self._offset, check_bodies=False
                )
            except FrameError as error:
                raise self._damaged(error) from None
            if num_records == 0:
                raise OffsetLostError(
                    f"{self._label()}: next is {offset}, but the log ends at {self._offset}: "
                    f"{offset - self._offset} records that were there before are lost"
                )
            self._offset += num_records

    def _lost(self, offset: int, first: int) -> OffsetLostError:
        return OffsetLostError(
            f"{self._label()}: next is {offset}, but retention left nothing before {first}: "
            f"{first - offset} records were deleted before they were read"
        )

    def _damaged(self, error: FrameError) -> LogError:
        path = segment_path(self._folder, self._first)
        return LogError(f"{path}: byte {self._base + error.position}: {error}; restore the file")

    def _label(self) -> str:
        return f"{self._folder.parent.parent}: topic '{self._name.topic}' partition {self._name.partition}"


class _End:
    """Finds a partition's end, and remembers it so that the next search starts there."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._first = -1
        self._offset = 0
        self._position = 0

    def find(self) -> int:
        first = segment_offsets(self._folder)[-1]
        if first != self._first:
            self._first = self._offset = first
            self._position = 0
        path = segment_path(self._folder, first)
        with path.open("rb", buffering=0) as file:
            while True:
                chunk = os.pread(file.fileno(), CHUNK_BYTES, self._position)
                try:
                    num_records, at = skip_records(chunk, 0, self._offset, len(chunk), check_bodies=False)
                except FrameError as error:
                    raise LogError(f"{path}: byte {self._position + error.position}: {error}") from None
                if num_records == 0:
                    return self._offset
                self._position += at
                self._offset += num_records
