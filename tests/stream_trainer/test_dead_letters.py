"""How dead letters are read and shown: in order, shortened, and unable to command a terminal."""

from pathlib import Path

import pytest

from feature_store.errors import MissingTopicError
from stream_trainer.dead_letters import describe, oldest_dead_letters
from stream_trainer.event_log import Headers
from stream_trainer.file_frames import FileRecord
from stream_trainer.file_log import FileEventLog

TOPIC = "dead-letters"


def origin(offset: int, reason: bytes = b"malformed", detail: bytes = b"no event") -> Headers:
    return (
        ("origin_topic", b"clicks"),
        ("origin_partition", b"1"),
        ("origin_offset", str(offset).encode()),
        ("reason", reason),
        ("detail", detail),
    )


def shown(key: bytes | None, value: bytes | None, headers: Headers) -> str:
    return describe(FileRecord(TOPIC, 0, 7, 5, key, value, headers))


def test_long_values_are_cut_and_say_how_long_they_are() -> None:
    line = shown(b"k" * 100, b"v" * 12_345, origin(3))
    key, value = f"b'{'k' * 80}'... of 100 bytes", f"b'{'v' * 80}'... of 12,345 bytes"
    assert line == f"clicks[1]@3: malformed: no event; key {key}, value {value}"
    line = shown(b"k", b"v", (*origin(3), ("truncated_from_bytes", b"2000000")))
    assert line.endswith("key b'k', value b'v', cut from 2000000 bytes")
    assert shown(None, b"", origin(3)).endswith("key none, value b''")


def test_nothing_of_a_message_commands_the_terminal() -> None:
    line = shown(
        b"\x1b[2J", b"\r\n\x07", origin(3, detail="\x1b]0;title\x07\u202e\nü\xff".encode() + b"\xff")
    )
    assert line.isprintable()
    assert "\\x1b]0;title\\x07\\u202e\\nüÿ�" in line


def test_headers_that_the_message_carried_do_not_hide_ours() -> None:
    line = shown(b"k", b"v", (*origin(3), ("reason", b"fine"), ("origin_topic", b"elsewhere")))
    assert line.startswith("clicks[1]@3: malformed: no event;")


def test_what_somebody_else_wrote_is_shown_too() -> None:
    assert shown(b"k", b"v", ()) == "dead-letters[0]@7: not from stream-trainer; key b'k', value b'v'"


def test_the_oldest_come_first_over_all_partitions(tmp_path: Path) -> None:
    log = FileEventLog(tmp_path)
    with pytest.raises(MissingTopicError, match=TOPIC):
        oldest_dead_letters(log, TOPIC, 10)
    log.create_topics({TOPIC: 3})
    assert oldest_dead_letters(log, TOPIC, 10) == ([], 0)
    writer = log.writer()
    for number in range(50):
        writer.send(TOPIC, b"key-%d" % number, b"v", 1000 + number, origin(number))
    writer.close()
    lines, num_all = oldest_dead_letters(log, TOPIC, 10)
    assert [line.split(":")[0] for line in lines] == [f"clicks[1]@{number}" for number in range(10)]
    assert num_all == 50
    lines, num_all = oldest_dead_letters(log, TOPIC, 1000)
    assert [line.split(":")[0] for line in lines] == [f"clicks[1]@{number}" for number in range(50)]
