"""What the trainer and its feed's process say to each other: whole messages over a worker's pipes.

Owns the bytes in those pipes. Chunks pass as they are; the rest is asked and answered here.
"""

from typing import TypeAlias

import msgspec
from msgspec import Struct

from stream_trainer.chunk import Chunk, Place, Position


class Begin(Struct, frozen=True, array_like=True, tag=10):
    """To the process, once: what to read and how. `config` is the configuration as JSON."""

    config: str
    until_end: bool
    log_level: str


class Start(Struct, frozen=True, array_like=True, tag=11):
    """To the process: go on from here."""

    position: Position


class Progress(Struct, frozen=True, array_like=True, tag=12):
    """To the process: so far reach the commits."""

    places: list[Place]


class Started(Struct, frozen=True, array_like=True, tag=13):
    """From the process: the topics' UUIDs; chunks follow."""

    topic_ids: dict[str, str]


Order: TypeAlias = Begin | Start | Progress
Answer: TypeAlias = Started | Chunk

encode = msgspec.msgpack.Encoder().encode
decode_order = msgspec.msgpack.Decoder(Order).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode
