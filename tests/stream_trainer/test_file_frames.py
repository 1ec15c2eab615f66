"""The file log's frames: bytes and back, and every flipped bit noticed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_trainer.event_log import TopicPartition
from stream_trainer.file_frames import FileRecord, FrameError, decode_records, encode_record, skip_records

CLICKS = TopicPartition("clicks", 0)


texts = st.text(max_size=20)
maybe_bytes = st.none() | st.binary(max_size=200)
headers = st.lists(st.tuples(texts, st.binary(max_size=20)), max_size=3).map(tuple)


@given(
    st.lists(st.tuples(maybe_bytes, maybe_bytes, st.integers(0, 2**62), headers), max_size=6),
    st.integers(0, 2**60),
)
def test_frames_return_what_was_put_in(parts: list[tuple], first: int) -> None:
    records = [
        FileRecord("clicks", 0, first + n, ts, key, value, heads)
        for n, (key, value, ts, heads) in enumerate(parts)
    ]
    chunk = b"".join(encode_record(r.offset, r.key, r.value, r.timestamp, r.headers) for r in records)
    assert decode_records(CLICKS, chunk, 0, first, 100) == (records, len(chunk))
    assert skip_records(chunk, 0, first, 100, check_bodies=True) == (len(records), len(chunk))


def test_every_flipped_bit_is_noticed() -> None:
    frame = encode_record(5, b"user", b"value", 1, (("a", b"b"),))
    behind = encode_record(6, b"user", b"next", 1)
    for bit in range(len(frame) * 8):
        damaged = bytearray(frame + behind)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError):
            decode_records(CLICKS, bytes(damaged), 0, 5, 10)
        with pytest.raises(FrameError):
            skip_records(bytes(damaged), 0, 5, 10, check_bodies=True)


@pytest.mark.parametrize("num_behind", [0, 1, 2])
def test_a_damaged_length_is_noticed_without_a_look_at_bodies(num_behind: int) -> None:
    frames = [encode_record(5 + n, b"user", b"value", 1) for n in range(1 + num_behind)]
    for bit in range(32):
        damaged = bytearray(b"".join(frames))
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(FrameError) as caught:
            skip_records(bytes(damaged), 0, 5, 10, check_bodies=False)
        assert caught.value.position == 0
