"""How the file log writes a record as bytes, and reads it back.

Owns the frame: lengths, offset and two checksums. Pure: no file, no clock. `file_writer` and `file_reader`
own the files. A frame is, little-endian,

    u32 bytes of the body · u32 CRC of the body · u64 offset · u32 CRC of these 16 bytes
    body: i64 timestamp_ms · i32 key bytes · i32 value bytes (-1: None) · u16 headers · key · value
          then for each header: u16 name bytes · u32 value bytes · name · value

The header has a checksum of its own so that a damaged length is known at once: taken at its word it would
look like a record whose end is still to be written, and its reader would wait for ever.
"""

import struct
import zlib

from msgspec import Struct

from stream_trainer.event_log import Headers, Record, TopicPartition

MAX_RECORD_BYTES = 1 << 20  # Kafka's default; a chunk of a segment must hold at least one record

_FRAME = struct.Struct("<IIQIqiiH")
_CHECKED = struct.Struct("<IIQ")
_CRC = struct.Struct("<I")
_BODY = struct.Struct("<qiiH")
_HEADER = struct.Struct("<HI")
_HEAD_BYTES = _CHECKED.size + _CRC.size


class FileRecord(Struct, frozen=True, gc=False):
    """Keeps `Record` for the file log."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


class FrameError(ValueError):
    """The bytes at `position` are not the record `offset`. `is_last`: may be a write that was cut off."""

    def __init__(self, position: int, offset: int, problem: str, is_last: bool) -> None:
        super().__init__(f"record {offset}: {problem}")
        self.position = position
        self.is_last = is_last


def encode_record(
    offset: int, key: bytes | None, value: bytes | None, timestamp_ms: int, headers: Headers = ()
) -> bytes:
    """Return the record's frame.

    >>> frame = encode_record(7, b"user-1", None, 1_700_000_000_000, (("origin", b"clicks"),))
    >>> decode_records(TopicPartition("clicks", 0), frame, 0, 7, 10)
    ([FileRecord(topic='clicks', partition=0, offset=7, timestamp=1700000000000, key=b'user-1', value=None, \
headers=(('origin', b'clicks'),))], 62)
    """
    key_bytes = -1 if key is None else len(key)
    value_bytes = -1 if value is None else len(value)
    parts = [_BODY.pack(timestamp_ms, key_bytes, value_bytes, len(headers)), key or b"", value or b""]
    for name, content in headers:
        encoded = name.encode()
        parts += (_HEADER.pack(len(encoded), len(content)), encoded, content)
    body = b"".join(parts)
    checked = _CHECKED.pack(len(body), zlib.crc32(body), offset)
    return b"".join((checked, _CRC.pack(zlib.crc32(checked)), body))


def decode_records(
    partition: TopicPartition, chunk: bytes, position: int, offset: int, max_records: int
) -> tuple[list[Record], int]:
    """Return the complete records from `position` on, the first being `offset`, and the position after them.

    A frame whose end is not there yet is left for later. Damage is raised only when nothing precedes it, so
    that every record before it is returned first.

    Raises:
        FrameError: the first record is damaged, or is not the one that `offset` asks for.
    """
    records: list[Record] = []
    topic, number = partition
    unpack, crc32, num_bytes = _FRAME.unpack_from, zlib.crc32, len(chunk)
    last_start = num_bytes - _FRAME.size
    while position <= last_start and len(records) < max_records:
        body_bytes, body_crc, found, head_crc, timestamp_ms, key_bytes, value_bytes, num_headers = unpack(
            chunk, position
        )
        body = position + _HEAD_BYTES
        end = body + body_bytes
        head_is_good = crc32(chunk[position : position + _CHECKED.size]) == head_crc and found == offset
        if head_is_good and end > num_bytes:
            break
        if not head_is_good or crc32(chunk[body:end]) != body_crc:
            if records:
                break
            _refuse(chunk, position, offset)
        at = body + _BODY.size
        key = value = None
        if key_bytes >= 0:
            key = chunk[at : at + key_bytes]
            at += key_bytes
        if value_bytes >= 0:
            value = chunk[at : at + value_bytes]
            at += value_bytes
        headers = _decode_headers(chunk, at, num_headers) if num_headers else ()
        records.append(FileRecord(topic, number, offset, timestamp_ms, key, value, headers))
        position = end
        offset += 1
    return records, position


def skip_records(
    chunk: bytes, position: int, offset: int, max_records: int, *, check_bodies: bool
) -> tuple[int, int]:
    """Return how many complete records lie from `position` on, up to `max_records`, and where they end.

    Reads lengths and offsets, and checks the headers before and after the place where that stops: a damaged
    length leads to where no record is. With `check_bodies` all is checked: what a writer appends to must be
    sound.

    Raises:
        FrameError: a record is damaged.
    """
    unpack, num_bytes, last = _CHECKED.unpack_from, len(chunk), position
    last_start, first_offset, end_offset = num_bytes - _FRAME.size, offset, offset + max_records
    while position <= last_start and offset < end_offset:
        body_bytes, body_crc, found = unpack(chunk, position)
        end = position + _HEAD_BYTES + body_bytes
        if found != offset or end > num_bytes:
            break
        if check_bodies:
            _check_head(chunk, position, offset)
            if zlib.crc32(memoryview(chunk)[position + _HEAD_BYTES : end]) != body_crc:
                _refuse(chunk, position, offset)
        last, position = position, end
        offset += 1
    if offset > first_offset:
        _check_head(chunk, last, offset - 1)
    if position <= last_start and offset < end_offset:
        _check_head(chunk, position, offset)
    return offset - first_offset, position


def _check_head(chunk: bytes, position: int, offset: int) -> None:
    _, _, found = _CHECKED.unpack_from(chunk, position)
    (head_crc,) = _CRC.unpack_from(chunk, position + _CHECKED.size)
    if zlib.crc32(chunk[position : position + _CHECKED.size]) != head_crc or found != offset:
        _refuse(chunk, position, offset)


def _refuse(chunk: bytes, position: int, offset: int) -> None:
    body_bytes, _, found = _CHECKED.unpack_from(chunk, position)
    (head_crc,) = _CRC.unpack_from(chunk, position + _CHECKED.size)
    if zlib.crc32(chunk[position : position + _CHECKED.size]) != head_crc:
        raise FrameError(position, offset, "the header's checksum is wrong", not any(chunk[position:]))
    if found != offset:
        raise FrameError(position, offset, f"record {found} is there instead", False)
    is_last = position + _HEAD_BYTES + body_bytes == len(chunk)
    raise FrameError(position, offset, "the checksum is wrong", is_last)


def _decode_headers(chunk: bytes, at: int, num_headers: int) -> Headers:
    headers = []
    for _ in range(num_headers):
        name_bytes, content_bytes = _HEADER.unpack_from(chunk, at)
        at += _HEADER.size
        content = at + name_bytes
        headers.append((chunk[at:content].decode(), chunk[content : content + content_bytes]))
        at = content + content_bytes
    return tuple(headers)
