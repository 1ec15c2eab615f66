"""What a generation holds, in memory: before it is published and after it was loaded.

Never touches a file: that is `generation.py`.
"""

from typing import NamedTuple, Self

import msgpack

from index_refresher.checks import CheckFigures
from index_refresher.index import ItemIndex
from index_refresher.manifest import Manifest


class Trained(NamedTuple):
    """A model as a commit has it: safetensors, settings as JSON, and the only store whose rows it fits."""

    towers: bytes
    model: str
    store: str


class Popular(NamedTuple):
    """The most popular items, best first, and how popular each is."""

    item_ids: tuple[str, ...]
    scores: tuple[float, ...]

    def encode(self) -> bytes:
        """Return the bytes of `popular.msgpack`."""
        packed: bytes = msgpack.packb(self)
        return packed

    @classmethod
    def decode(cls, value: bytes) -> Self:
        """Return what `encode` wrote."""
        item_ids, scores = msgpack.unpackb(value, use_list=False)
        return cls(item_ids, scores)


class Generation(NamedTuple):
    """A verified generation in memory; nobody changes it."""

    manifest: Manifest
    item_index: ItemIndex
    popular: Popular
    trained: Trained


class Draft(NamedTuple):
    """What is to be published, checked already."""

    commit: int
    watermark_ms: int
    latest_click_ms: int
    item_index: ItemIndex
    popular: Popular
    trained: Trained
    checks: CheckFigures
    num_item_changes: int = 0
    popularity_total: float = 0.0
