"""The item index: the best items by inner product, exactly or nearly.

Owns the choice and the shape of the Faiss index. Never changes after it is built (an index changed while it
is searched gives wrong answers), never touches a disk, and never decides which answers are good enough: that
is `checks.py`.
Legend: N items, Q queries, D embedding width, A width in the index (D, or D + 1 for IVF), K answers.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import faiss
import msgpack
import numpy as np
import numpy.typing as npt

from feature_store.configuration import RefreshSettings

F32 = npt.NDArray[np.float32]
_faiss: Any = faiss  # its types know no keyword argument

_TRAINING_SEED = 1
_LISTS_PER_SQRT_ITEM = 4
_MIN_ITEMS_PER_LIST = 39  # below, Faiss warns that the clustering has too few points


class Mask:
    """Places of an index that are not to be found."""

    def __init__(self, places: Sequence[int], num_items: int) -> None:
        bits = np.zeros(num_items, np.uint8)
        bits[list(places)] = 1
        self.num_places = int(bits.sum())
        self._hidden = _faiss.IDSelectorBitmap(np.packbits(bits, bitorder="little"))
        self.selector = _faiss.IDSelectorNot(self._hidden)


class Found(NamedTuple):
    """For each query the items, best first, and their inner products with it."""

    item_ids: list[list[str]]
    scores: list[list[float]]


class ItemIndex:
    """An immutable index, safe to search from many threads at once.

    IVF clusters by Euclidean distance what it searches by inner product, after the classic reduction: one
    column more makes all items equally long. Clusters made of raw inner products follow the longest items
    instead, and with a popularity column recall fell from .96 to .89 at the same cost.
    """

    def __init__(
        self, item_ids: Sequence[str], index: Any, width: int, length: float, num_threads: int
    ) -> None:
        """Wrap a Faiss index, as `build` and `decode` do; `length` is that of all items in it, 0 for flat."""
        self.item_ids = tuple(item_ids)
        self.width = width
        self._index = index
        self._length = length
        self._num_threads = num_threads
        if len(set(self.item_ids)) != len(self.item_ids):
            raise ValueError("item IDs repeat: an index holds each item once")
        if index.ntotal != len(self.item_ids) or index.d != width + (length > 0):
            raise ValueError(
                f"{index.ntotal} vectors of width {index.d} for {len(self.item_ids)} IDs of width {width}"
            )

    @classmethod
    def build(cls, item_ids: Sequence[str], embeddings_ND: F32, settings: RefreshSettings) -> Self:
        """Return an index of these items: exact below `ivf_from_items`, IVF from there.

        The same input gives the same bytes, on one thread.
        """
        num_items, width = embeddings_ND.shape
        if num_items < settings.ivf_from_items:
            return cls.exact(item_ids, embeddings_ND, settings.num_threads)
        faiss.omp_set_num_threads(settings.num_threads)
        length = float(np.sqrt((embeddings_ND.astype(np.float64) ** 2).sum(1).max())) or 1.0
        num_lists = _num_lists(num_items)
        ivf = faiss.IndexIVFFlat(
            faiss.IndexFlatL2(width + 1), width + 1, num_lists, faiss.METRIC_INNER_PRODUCT
        )
        ivf.cp.seed = _TRAINING_SEED
        ivf.cp.spherical = (
            False  # Faiss' choice for inner products; measured recall .943 with it, .968 without
        )
        ivf.nprobe = min(settings.ivf_nprobe, num_lists)
        lengthened_NA = _lengthen(embeddings_ND, length)
        ivf.train(lengthened_NA)
        ivf.add(lengthened_NA)
        return cls(item_ids, ivf, width, length, settings.num_threads)

    @classmethod
    def exact(cls, item_ids: Sequence[str], embeddings_ND: F32, num_threads: int) -> Self:
        """Return an index of these items that is searched exactly."""
        flat = faiss.IndexFlatIP(embeddings_ND.shape[1])
        flat.add(np.ascontiguousarray(embeddings_ND))
        return cls(item_ids, flat, embeddings_ND.shape[1], 0.0, num_threads)

    @classmethod
    def decode(cls, index: bytes, items: bytes, num_threads: int) -> Self:
        """Return what `encode` wrote.

        Raises:
            ValueError: the bytes do not parse or fit together. Faiss misses much damage: verify first.
        """
        try:
            width, length, item_ids = msgpack.unpackb(items)
            parsed = faiss.deserialize_index(np.frombuffer(index, np.uint8))
        except (RuntimeError, TypeError, msgpack.UnpackException) as error:
            raise ValueError(f"the index does not parse: {' '.join(str(error).split())}") from error
        return cls(item_ids, parsed, width, length, num_threads)

    def encode(self) -> tuple[bytes, bytes]:
        """Return the Faiss index and, apart from it, the item IDs in its order with what `decode` needs."""
        return faiss.serialize_index(self._index).tobytes(), msgpack.packb(
            (self.width, self._length, self.item_ids)
        )

    @property
    def kind(self) -> str:
        """`flat` or `ivf`."""
        return "ivf" if self._length else "flat"

    def __len__(self) -> int:
        return len(self.item_ids)

    def search(self, queries_QD: F32, k: int, mask: Mask | None = None) -> Found:
        """Return the best min(k, items) of each query, best first, of those that are not masked.

        Faiss fills up with -1 where k exceeds the items or the probed lists hold too few: here the former is
        cut, and the latter searched again in all lists, so that an answer is never shorter than it must be.

        Raises:
            ValueError: k is not positive, the width is another, or a query is not finite (Faiss: nothing).
        """
        if k < 1 or queries_QD.ndim != 2 or queries_QD.shape[1] != self.width:
            raise ValueError(
                f"cannot search k = {k} of queries {queries_QD.shape} in an index of width {self.width}"
            )
        if not np.isfinite(queries_QD).all():
            bad = np.flatnonzero(~np.isfinite(queries_QD).all(1))
            raise ValueError(f"{len(bad)} of {len(queries_QD)} queries are not finite, first number {bad[0]}")
        if not len(queries_QD) or not self.item_ids:
            return Found([[] for _ in queries_QD], [[] for _ in queries_QD])
        faiss.omp_set_num_threads(self._num_threads)  # OpenMP keeps this number for each thread by itself
        num = min(k, len(self) - (mask.num_places if mask else 0))
        if not num:
            return Found([[] for _ in queries_QD], [[] for _ in queries_QD])
        selector = mask.selector if mask else None
        scores_QK, places_QK = self._search(np.ascontiguousarray(queries_QD, np.float32), num, selector)
        found = Found([], [])
        for places, scores in zip(places_QK.tolist(), scores_QK.tolist(), strict=True):
            kept = [n for n, place in enumerate(places) if place >= 0]  # no score, no place
            found.item_ids.append([self.item_ids[places[n]] for n in kept])
            found.scores.append([scores[n] for n in kept])
        return found

    def _search(self, queries_QD: F32, k: int, selector: Any) -> tuple[F32, npt.NDArray[np.int64]]:
        if not self._length:
            only = _faiss.SearchParameters(sel=selector) if selector else None
            scores_QK, places_QK = self._index.search(queries_QD, k, params=only)
            return scores_QK, places_QK
        # As long as the items, so that the nearest centroids are those of the largest inner products.
        scale_Q1 = np.linalg.norm(queries_QD, axis=1, keepdims=True) / self._length
        scale_Q1[scale_Q1 == 0] = 1
        queries_QA = np.concatenate(
            [queries_QD / scale_Q1, np.zeros((len(queries_QD), 1), np.float32)], axis=1
        )
        near = _faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nprobe)
        scores_QK, places_QK = self._index.search(queries_QA, k, params=near)
        short_Q = (places_QK < 0).any(1)
        if short_Q.any():
            everywhere = _faiss.SearchParametersIVF(sel=selector, nprobe=self._index.nlist)
            scores_QK[short_Q], places_QK[short_Q] = self._index.search(
                queries_QA[short_Q], k, params=everywhere
            )
        return scores_QK * scale_Q1, places_QK


def _num_lists(num_items: int) -> int:
    """Return how many lists an IVF index of this size has.

    >>> _num_lists(1_000_000), _num_lists(1_600), _num_lists(10)
    (4000, 41, 1)
    """
    return max(1, min(int(_LISTS_PER_SQRT_ITEM * math.sqrt(num_items)), num_items // _MIN_ITEMS_PER_LIST))


def _lengthen(embeddings_ND: F32, length: float) -> F32:
    """Return the embeddings with one column more, by which each becomes `length` long.

    >>> _lengthen(np.array([[3, 0], [0, 5]], np.float32), 5.0).tolist()
    [[3.0, 0.0, 4.0], [0.0, 5.0, 0.0]]
    """
    missing_N = length**2 - (embeddings_ND.astype(np.float64) ** 2).sum(1)
    column_N1 = np.sqrt(np.maximum(missing_N, 0)).astype(np.float32)[:, None]
    return np.concatenate([embeddings_ND, column_N1], axis=1)
