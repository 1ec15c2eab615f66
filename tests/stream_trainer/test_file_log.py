"""The embedded log's own promises: torn tails, kills, one writer, damage, segments, retention."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from log_reads import poll

from feature_store.errors import LogError, OffsetLostError, TopicRecreatedError
from stream_trainer.event_log import Record, TopicPartition
from stream_trainer.file_log import FileEventLog
from stream_trainer.file_reader import FileReader
from stream_trainer.file_writer import FileWriter

CLICKS = TopicPartition("clicks", 0)


@pytest.fixture
def log(tmp_path: Path) -> FileEventLog:
    log = FileEventLog(tmp_path)
    log.create_topics({"clicks": 1})
    return log


def segment(root: Path, first_offset: int = 0) -> Path:
    return root / "clicks" / "0" / f"{first_offset:020d}.log"


def append(log: FileEventLog, *values: bytes) -> None:
    writer = log.writer()
    for value in values:
        writer.send("clicks", b"user", value, 1)
    writer.close()


def drain(reader: FileReader) -> list[int]:
    """Offsets of all that is there."""
    offsets: list[int] = []
    while records := poll(reader, 1000, 0):
        offsets += [record.offset for record in records]
    return offsets


def contents(log: FileEventLog, offset: int = 0) -> list[bytes | None]:
    reader = log.reader()
    reader.assign({CLICKS: offset})
    values: list[bytes | None] = []
    while records := poll(reader, 1000, 0):
        values += [record.value for record in records]
    reader.close()
    return values


def test_a_tail_torn_at_any_byte_is_cut_off(log: FileEventLog, tmp_path: Path) -> None:
    append(log, b"first", b"second")
    whole = segment(tmp_path).stat().st_size
    append(log, b"third, which is torn")
    content = segment(tmp_path).read_bytes()
    for size in range(whole, len(content)):
        segment(tmp_path).write_bytes(content[:size])
        assert contents(log) == [b"first", b"second"]  # a reader does not show the torn record …
        append(log, b"again")
        assert contents(log) == [b"first", b"second", b"again"]  # … and a writer starts over in its place


def test_what_a_power_cut_leaves_is_cut_off(log: FileEventLog, tmp_path: Path) -> None:
    append(log, b"first")
    sound = segment(tmp_path).read_bytes()
    append(log, b"second")
    damaged = segment(tmp_path).read_bytes()[:-1] + b"?"
    for tail in (sound + bytes(4096), damaged):
        segment(tmp_path).write_bytes(tail)
        append(log, b"again")
        assert contents(log) == [b"first", b"again"]


def test_damage_in_the_middle_is_named_and_not_repaired(log: FileEventLog, tmp_path: Path) -> None:
    append(log, b"first", b"second", b"third")
    content = bytearray(segment(tmp_path).read_bytes())
    at = len(content) // 3
    content[at + 40] ^= 1
    segment(tmp_path).write_bytes(content)
    reader = log.reader()
    reader.assign({CLICKS: 0})
    assert [record.value for record in poll(reader, 10, 0)] == [b"first"]
    for _ in range(2):
        with pytest.raises(
            LogError, match=rf"{segment(tmp_path)}: byte {at}: record 1: the checksum is wrong"
        ):
            poll(reader, 10, 0)
    reader.close()
    with pytest.raises(LogError, match="record 1"):
        append(log, b"fourth")
    assert segment(tmp_path).read_bytes() == content


def test_a_damaged_length_is_damage_and_not_a_record_still_to_come(log: FileEventLog, tmp_path: Path) -> None:
    append(log, b"first", b"second")
    content = bytearray(segment(tmp_path).read_bytes())
    content[2] ^= 1  # 65,536 bytes longer than the file
    segment(tmp_path).write_bytes(content)
    reader = log.reader()
    reader.assign({CLICKS: 0})
    with pytest.raises(LogError, match="record 0: the header's checksum is wrong"):
        poll(reader, 10, 0)
    with pytest.raises(LogError, match="record 0"):
        reader.end_offsets()
    reader.close()
    with pytest.raises(LogError, match="record 0"):
        append(log, b"third")


KILLED_WRITER = """
import sys
from pathlib import Path
from stream_trainer.file_log import FileEventLog
writer = FileEventLog(Path(sys.argv[1])).writer()
number = 0
while True:
    for _ in range(500):
        writer.send("clicks", b"user", b"%d " % number * 100, number)
        number += 1
    writer.flush()
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_flushed(log: FileEventLog, tmp_path: Path) -> None:
    expected = 0
    reader = log.reader()
    reader.assign({CLICKS: 0})
    seen: list[Record] = []
    for run in range(3):
        command = [sys.executable, "-c", KILLED_WRITER, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            acknowledged = int(process.stdout.readline())
            stop_s = time.monotonic() + 0.1 * (run + 1)
            while time.monotonic() < stop_s:
                seen += poll(reader, 5000, 0.01)
            process.send_signal(signal.SIGKILL)
            acknowledged = int([str(acknowledged), *process.stdout.read().splitlines()][-1])
        while records := poll(reader, 5000, 0):
            seen += records
        assert len(seen) >= expected + acknowledged
        for number, record in enumerate(seen[expected:]):
            assert record.offset == expected + number
            assert record.value == b"%d " % number * 100
        expected = len(seen)
    append(log, b"after")
    assert [record.value for record in poll(reader, 10, 0)] == [b"after"]
    reader.close()


def test_a_topic_has_one_writer_at_a_time(log: FileEventLog) -> None:
    log.create_topics({"dead-letters": 1})
    first, second = log.writer(), log.writer()
    first.send("clicks", b"k", b"v", 0)
    with pytest.raises(LogError, match=r"'clicks'.*another writer"):
        second.send("clicks", b"k", b"v", 0)
    second.send("dead-letters", b"k", b"v", 0)
    first.close()
    second.send("clicks", b"k", b"w", 0)
    second.close()
    assert contents(log) == [b"v", b"w"]


def small_segments(log: FileEventLog, tmp_path: Path, count: int) -> None:
    writer = FileWriter(tmp_path, segment_bytes=1)
    for number in range(count):
        writer.send("clicks", b"user", b"%d" % number, number)
        writer.flush()
    writer.close()


def test_segments_roll_and_are_read_as_one(log: FileEventLog, tmp_path: Path) -> None:
    reader = log.reader()
    reader.assign({CLICKS: 0})
    small_segments(log, tmp_path, 6)
    assert sorted(path.name for path in segment(tmp_path).parent.iterdir()) == [
        f"{n:020d}.log" for n in range(6)
    ]
    assert drain(reader) == list(range(6))
    assert contents(log, 4) == [b"4", b"5"]
    assert reader.end_offsets() == {CLICKS: 6}
    reader.close()


def test_retention_drops_whole_segments_and_what_it_took_is_missed(log: FileEventLog, tmp_path: Path) -> None:
    small_segments(log, tmp_path, 6)
    early, late = log.reader(), log.reader()
    early.assign({CLICKS: 0})
    late.assign({CLICKS: 3})
    log.delete_before(CLICKS, 3)
    assert log.beginning_offsets([CLICKS]) == {CLICKS: 3}
    assert drain(late) == [3, 4, 5]
    assert [record.offset for record in poll(early, 1, 0)] == [0]  # its file is still open
    with pytest.raises(OffsetLostError, match=r"next is 1, .* before 3: 2 records"):
        poll(early, 100, 0)
    with pytest.raises(OffsetLostError, match=r"next is 2, .* before 3: 1 records"):
        early.assign({CLICKS: 2})
    log.delete_before(CLICKS, 1000)
    assert log.beginning_offsets([CLICKS]) == {CLICKS: 5}
    early.close()
    late.close()


def test_retention_behind_a_reader_goes_unnoticed(log: FileEventLog, tmp_path: Path) -> None:
    small_segments(log, tmp_path, 3)
    reader = log.reader()
    reader.assign({CLICKS: 0})
    assert drain(reader) == [0, 1, 2]
    small_segments(log, tmp_path, 1)
    log.delete_before(CLICKS, 3)
    assert drain(reader) == [3]
    reader.close()


def test_a_missing_piece_between_segments_is_named(log: FileEventLog, tmp_path: Path) -> None:
    small_segments(log, tmp_path, 3)
    segment(tmp_path, 1).write_bytes(segment(tmp_path, 1).read_bytes()[:-1])
    reader = log.reader()
    reader.assign({CLICKS: 0})
    assert len(poll(reader, 10, 0)) == 1
    with pytest.raises(LogError, match=r"0001\.log ends at byte 0 before record 1.*begins at 2"):
        poll(reader, 10, 0)
    reader.close()


def test_a_topic_recreated_under_a_reader_is_noticed(log: FileEventLog, tmp_path: Path) -> None:
    append(log, b"old", b"old")
    reader = log.reader()
    reader.assign({CLICKS: 0})
    poll(reader, 10, 0)
    shutil.rmtree(tmp_path / "clicks")
    log.create_topics({"clicks": 1})
    append(log, b"new")
    with pytest.raises(TopicRecreatedError, match="clicks"):
        poll(reader, 10, 0)
    reader.close()


def test_a_full_disk_loses_nothing_and_tears_nothing(
    log: FileEventLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = log.writer()
    writer.send("clicks", b"user", b"first", 0)
    writer.flush()
    sound = segment(tmp_path).read_bytes()

    def half_then_full(descriptor: int, data: memoryview, at: int) -> int:
        with segment(tmp_path).open("r+b") as file:
            file.seek(at)
            file.write(data[:10])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stream_trainer.file_writer.os.pwrite", half_then_full)
        writer.send("clicks", b"user", b"second", 0)
        with pytest.raises(LogError, match="No space left"):
            writer.flush()
    assert segment(tmp_path).read_bytes() == sound
    writer.close()
    assert contents(log) == [b"first", b"second"]


def test_a_long_partition_does_not_starve_the_others(tmp_path: Path) -> None:
    log = FileEventLog(tmp_path)
    log.create_topics({"clicks": 1, "impressions": 1})
    writer = log.writer()
    for number in range(100):
        writer.send("clicks", None, b"x", number)
    writer.send("impressions", None, b"y", 0)
    writer.close()
    reader = log.reader()
    reader.assign(dict.fromkeys(log.partitions(["clicks", "impressions"]), 0))
    assert "impressions" in {record.topic for _ in range(2) for record in poll(reader, 10, 0)}
    reader.close()


def test_progress_is_written_for_operators(log: FileEventLog, tmp_path: Path) -> None:
    reader = log.reader()
    reader.report_progress({CLICKS: 12})
    assert (tmp_path / "progress.json").read_text() == '{\n "clicks/0": 12\n}'
