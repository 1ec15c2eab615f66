"""What the dead-letter topic holds, for people to read: one line each.

Owns the reading and the shortening; `ingest.py` decides what is written. Never decodes a value, and lets
nothing reach a terminal that could command it: anybody may have sent these messages.
"""

from contextlib import closing
from heapq import merge
from itertools import islice
from operator import itemgetter

from stream_trainer.event_log import EventLog, EventReader, Record, TopicPartition

_SHOWN_BYTES = 80
_POLL_S = 0.5


def oldest_dead_letters(event_log: EventLog, topic: str, limit: int) -> tuple[list[str], int]:
    """Return the oldest letters, described, and how many there are in all.

    Of several partitions each keeps its order; between them the time that the log gave the message decides.

    Raises:
        MissingTopicError: there is no such topic.
        LogError: the log cannot be read.
    """
    partitions = event_log.partitions([topic])
    first = event_log.beginning_offsets(partitions)
    with closing(event_log.reader()) as reader:
        reader.assign(first)
        ends = reader.end_offsets()
        found = [_read(reader, name, first[name], ends[name], limit) for name in partitions]
    letters = islice(merge(*found, key=itemgetter(0)), limit)
    return [line for _, line in letters], sum(ends[name] - first[name] for name in partitions)


def _read(
    reader: EventReader, name: TopicPartition, offset: int, end: int, limit: int
) -> list[tuple[int, str]]:
    """Return the log's time and the description of the first letters of one partition, up to `end`."""
    reader.assign({name: offset})
    found: list[tuple[int, str]] = []
    while len(found) < limit and reader.positions()[name] < end:
        for records in reader.poll(limit - len(found), _POLL_S).values():
            found += [(record.timestamp, describe(record)) for record in records if record.offset < end]
    return found


def describe(record: Record) -> str:
    r"""Return where a message stood, what was wrong with it, its key and the beginning of its value.

    >>> from stream_trainer.file_frames import FileRecord
    >>> origin = (("origin_topic", b"clicks"), ("origin_partition", b"0"), ("origin_offset", b"41"))
    >>> why = (("reason", b"malformed"), ("detail", b"neither msgpack nor JSON"))
    >>> describe(FileRecord("dead-letters", 0, 0, 5, b"ann", b"\x00?", origin + why))
    "clicks[0]@41: malformed: neither msgpack nor JSON; key b'ann', value b'\\x00?'"
    """
    headers = dict(reversed(record.headers))  # ours come first: the message may carry others of the same name
    shown = f"key {_shortened(record.key)}, value {_shortened(record.value)}"
    if "origin_topic" not in headers:
        return f"{record.topic}[{record.partition}]@{record.offset}: not from stream-trainer; {shown}"
    names = ("origin_topic", "origin_partition", "origin_offset", "reason", "detail")
    topic, partition, offset, reason, detail = (_printable(headers.get(name)) for name in names)
    cut = headers.get("truncated_from_bytes")
    if cut is not None:
        shown += f", cut from {_printable(cut)} bytes"
    return f"{topic}[{partition}]@{offset}: {reason}: {detail}; {shown}"


def _shortened(content: bytes | None) -> str:
    if content is None:
        return "none"
    if len(content) <= _SHOWN_BYTES:
        return repr(content)
    return f"{content[:_SHOWN_BYTES]!r}... of {len(content):,} bytes"


def _printable(content: bytes | None) -> str:
    text = (content or b"?").decode(errors="replace")
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)
