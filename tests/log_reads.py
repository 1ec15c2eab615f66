"""What a log's reader returns, in one list."""

from typing import NamedTuple

from stream_trainer.event_log import EventReader, Headers, Record, TopicPartition


class Plain(NamedTuple):
    """A record of either log, to compare with."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def plain(record: Record) -> Plain:
    """Copy what both logs' records have."""
    headers = tuple((name, content or b"") for name, content in record.headers)
    place = (record.topic, record.partition, record.offset)
    return Plain(*place, record.timestamp, record.key, record.value, headers)


def poll(reader: EventReader, max_records: int, timeout_s: float) -> list[Record]:
    """Poll once; check that each record stands under its own partition."""
    polled = reader.poll(max_records, timeout_s)
    for partition, records in polled.items():
        assert records, f"nothing of {partition}, but it is there"
        assert {TopicPartition(record.topic, record.partition) for record in records} == {partition}
    return [record for records in polled.values() for record in records]
