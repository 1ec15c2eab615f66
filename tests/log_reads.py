"""What a log's reader returns, in one list."""

from stream_trainer.event_log import EventReader, Record, TopicPartition
from stream_trainer.file_frames import FileRecord


def plain(record: Record) -> FileRecord:
    """Copy what both logs' records have, to compare with."""
    headers = tuple((name, content or b"") for name, content in record.headers)
    place = (record.topic, record.partition, record.offset)
    return FileRecord(*place, record.timestamp, record.key, record.value, headers)


def poll(reader: EventReader, max_records: int, timeout_s: float) -> list[Record]:
    """Poll once; check that each record stands under its own partition."""
    polled = reader.poll(max_records, timeout_s)
    for partition, records in polled.items():
        assert records, f"nothing of {partition}, but it is there"
        assert {TopicPartition(record.topic, record.partition) for record in records} == {partition}
    return [record for records in polled.values() for record in records]
