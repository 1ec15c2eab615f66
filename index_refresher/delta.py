"""What became of items since a generation was made: the deleted are not answered any more, those that are new
or have new features are searched beside it, under the generation's towers.

Owns the two sets between one full refresh and the next. Rows that only moved wait for that one. Never changes
a generation.
"""

import logging
import threading
from functools import cached_property
from typing import NamedTuple, TypeVar

import numpy as np

from feature_store.item_changes import KEY, ItemChanges
from feature_store.store import CommitInfo
from index_refresher.changed_items import ChangedItems
from index_refresher.contents import Generation
from index_refresher.embed import F32, I64
from index_refresher.index import Found, ItemIndex, Mask
from index_refresher.names import StoreNames

log = logging.getLogger(__name__)

_Kind = TypeVar("_Kind")
_AT_ONCE = 512  # so long queries wait for the reader
_MOST_FRESH = 20_000  # searched one by one, at every query


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

    def __init__(self, generation: Generation, names: StoreNames, num_threads: int) -> None:
        manifest = generation.manifest
        self._index = generation.item_index
        self._reader = names.reader
        self._num_threads = num_threads
        self._items = ChangedItems(generation.trained, names, manifest.popularity_total, manifest.num_items)
        self._total = manifest.num_item_changes
        self._commit, self._store = CommitInfo(), manifest.store
        self._deleted: set[str] = set()
        self._fresh: dict[str, F32] = {}
        self._told = False

    def follow(self, commit: CommitInfo, reader_lock: threading.Lock) -> Delta | None:
        """Return the delta as of the commit that the reader shows, None if nothing changed since the last
        call. Between two pieces of work others may have the reader.
        """
        with reader_lock:
            store, changes = self._reader.identity, ItemChanges(self._reader.get("meta", [KEY])[0])
        if commit.number == 0 or (commit, store) == (self._commit, self._store):
            return None
        goes_on = changes.knows(self._total) and commit.number > self._commit.number and store == self._store
        numbers = changes.since(self._total) if goes_on else self._begin_again(changes, reader_lock)
        for start in range(0, len(numbers), _AT_ONCE):
            with reader_lock:
                deleted, live, embeddings_nD = self._items.look(numbers[start : start + _AT_ONCE])
            self._take(deleted, live, embeddings_nD)
        self._total, self._commit, self._store = changes.total, commit, store
        return None if goes_on and not len(numbers) else self._delta()

    def _begin_again(self, changes: ItemChanges, reader_lock: threading.Lock) -> I64:
        """Compare with the whole corpus, because the changes that are kept do not reach back to what is known
        (too many, or another store); return which items to look at.
        """
        log.warning("the store is another, or does not tell of all items that changed: comparing with all")
        with reader_lock:
            self._deleted, new = self._items.compare(self._place_of, self._deleted)
        self._fresh.clear()
        return np.union1d(changes.since(0), new)

    def _take(self, deleted: list[str], live: list[str], embeddings_nD: F32) -> None:
        self._deleted -= set(live)
        self._deleted.update(item_id for item_id in deleted if item_id in self._place_of)
        for item_id in deleted:
            self._fresh.pop(item_id, None)
        for item_id, p_D in zip(live, embeddings_nD, strict=True):
            # What a full refresh would refuse leaves the generation's own embedding, if it has one.
            if not np.isfinite(p_D).all():
                self._fresh.pop(item_id, None)
            elif len(self._fresh) < _MOST_FRESH or item_id in self._fresh:
                self._fresh[item_id] = p_D
            elif not self._told:
                self._told = True
                log.warning("over %d items are new or changed: more wait for the next refresh", _MOST_FRESH)

    @cached_property
    def _place_of(self) -> dict[str, int]:
        return {item_id: place for place, item_id in enumerate(self._index.item_ids)}

    def _delta(self) -> Delta:
        hidden = self._deleted | self._fresh.keys()
        places = [self._place_of[item_id] for item_id in hidden if item_id in self._place_of]
        fresh = None
        if self._fresh:
            fresh = ItemIndex.exact(
                list(self._fresh), np.stack(list(self._fresh.values())), self._num_threads
            )
        return Delta(frozenset(self._deleted), Mask(places, len(self._index)) if places else None, fresh)


def _together(first: list[list[_Kind]], second: list[list[_Kind]]) -> list[list[_Kind]]:
    return [one + other for one, other in zip(first, second, strict=True)]
