"""Items that changed since a generation was made, embedded as it would have: under its towers, popularity as
a share of what its items had.

Owns the reading of what became of an item. Never keeps what it found (`delta.py`). Legend: n items, D
embedding width.
"""

from collections.abc import Collection, Set
from itertools import compress

import msgpack
import numpy as np

from index_refresher.contents import Trained
from index_refresher.embed import F32, I64, Scorer, with_popularity
from index_refresher.names import StoreNames


class ChangedItems:
    """Looks at items as they stand in the reader's commit. For one thread at a time, as its reader."""

    def __init__(self, trained: Trained, names: StoreNames, popularity_total: float, num_items: int) -> None:
        self._scorer = Scorer(trained, names)
        self._popularity_total = popularity_total
        self._num_items = num_items

    def look(self, numbers_n: I64) -> tuple[list[str], list[str], F32]:
        """Return which of the items are deleted, which are live, and the embeddings of these: NaN where the
        reader shows another store than the generation's.
        """
        scorer, keys = self._scorer, [number.to_bytes(4, "big") for number in numbers_n.tolist()]
        names = [name for name in scorer.reader.get("item_number", keys) if name is not None]
        assert len(names) == len(keys), "an item that changed has no number"
        is_live = [_is_live(place) for place in scorer.reader.get("corpus", keys)]
        live = list(compress(names, is_live))
        deleted = [name.decode() for name, lives in zip(names, is_live, strict=True) if not lives]
        if not live:
            return deleted, [], np.zeros((0, 0), np.float32)
        if not scorer.fits:
            return deleted, [name.decode() for name in live], np.full((len(live), 1), np.nan, np.float32)
        rows, _ = scorer.rows("item", live)
        progress = msgpack.unpackb(scorer.reader.get("meta", [b"progress"])[0] or b"")
        p_nD = with_popularity(
            scorer.item_embeddings(rows),
            scorer.popularity(rows, progress["num_positives"]),
            self._popularity_total,
            self._num_items,
            scorer.settings,
        )
        return deleted, [name.decode() for name in live], p_nD

    def compare(self, item_ids: Collection[str], deleted: Set[str]) -> tuple[set[str], I64]:
        """Return which of these items are deleted, with those that were before and are not live, and the
        numbers of the live ones that are not these: by all of the corpus, which takes a while. What the store
        has not heard of is not deleted: another one may yet be learning its log.
        """
        reader = self._scorer.reader
        names = [name for _, name in reader.items("item_number")]
        numbers = (int.from_bytes(key, "big") for key, place in reader.items("corpus") if _is_live(place))
        live = {names[number].decode(): number for number in numbers}
        known = set(item_ids)
        new = [number for item_id, number in live.items() if item_id not in known]
        named = known.intersection(name.decode() for name in names)
        return (named | deleted) - live.keys(), np.array(new, np.int64)


def _is_live(place: bytes | None) -> bool:
    return place is not None and int.from_bytes(place, "big", signed=True) >= 0
