"""What became of items since a generation was made: the deleted are not answered any more, those that are new
or have new features are searched beside it, under the generation's towers.

Owns the two sets between one full refresh and the next. Rows that only moved wait for that one. Never changes
a generation.
"""

import threading
from typing import NamedTuple, TypeVar

import numpy as np

from feature_store.item_changes import KEY, ItemChanges
from feature_store.store import CommitInfo, FeatureStoreReader
from index_refresher.embed import F32, ChangedItems
from index_refresher.generation import Generation
from index_refresher.index import Found, ItemIndex, Mask

_Kind = TypeVar("_Kind")
_AT_ONCE = 512  # so long queries wait for the reader


class Delta(NamedTuple):
    """What differs from a generation. Never changed: replaced."""

    deleted: frozenset[str] = frozenset()
    mask: Mask | None = None
    """Places of the generation's index that are not to be found there."""
    fresh: ItemIndex | None = None
    """Items to be searched beside it."""

    def search(self, index: ItemIndex, queries_QD: F32, k: int) -> Found:
        """Return the best k of the generation's index and of what is searched beside it."""
        found = index.search(queries_QD, k, self.mask)
        if self.fresh is None:
            return found
        beside = self.fresh.search(queries_QD, k)
        return Found(_together(found.item_ids, beside.item_ids), _together(found.scores, beside.scores))


class ItemFollower:
    """Keeps one generation's delta up to date with what the reader shows. For one thread at a time."""

    def __init__(self, generation: Generation, reader: FeatureStoreReader, num_threads: int) -> None:
        self._generation = generation
        self._reader = reader
        self._num_threads = num_threads
        self._items = ChangedItems(
            generation.towers, generation.model, reader, generation.manifest.popularity_total,
            generation.manifest.num_items,
        )  # fmt: skip
        self._total = generation.manifest.num_item_changes
        self._commit = 0
        self._deleted: set[str] = set()
        self._fresh: dict[str, F32] = {}

    def follow(self, commit: CommitInfo, reader_lock: threading.Lock) -> Delta | None:
        """Return the delta as of the commit that the reader shows, None if nothing changed since the last
        call. Between two pieces of work others may have the reader.
        """
        if commit.number == self._commit:
            return None
        with reader_lock:
            changes = ItemChanges(self._reader.get("meta", [KEY])[0])
        numbers = changes.since(self._total)
        for start in range(0, len(numbers), _AT_ONCE):
            with reader_lock:
                deleted, live, embeddings_nD = self._items.look(numbers[start : start + _AT_ONCE])
            self._deleted = (self._deleted | set(deleted)) - set(live)
            for item_id in deleted:
                self._fresh.pop(item_id, None)
            self._fresh.update(zip(live, embeddings_nD, strict=True))
        self._total, self._commit = max(self._total, changes.total), commit.number
        return self._delta() if len(numbers) else None

    def _delta(self) -> Delta:
        index = self._generation.item_index
        hidden = self._deleted | self._fresh.keys()
        places = [place for place, item_id in enumerate(index.item_ids) if item_id in hidden]
        fresh = None
        if self._fresh:
            fresh = ItemIndex.exact(
                list(self._fresh), np.stack(list(self._fresh.values())), self._num_threads
            )
        return Delta(frozenset(self._deleted), Mask(places, len(index)) if places else None, fresh)


def _together(first: list[list[_Kind]], second: list[list[_Kind]]) -> list[list[_Kind]]:
    return [one + other for one, other in zip(first, second, strict=True)]
