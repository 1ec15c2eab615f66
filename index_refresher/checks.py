"""What a generation must pass before it may replace the one in use.

Owns the checks and their thresholds. Pure: judges arrays and an index, publishes nothing.
Legend: N items, Q queries, S sampled items, D embedding width, T width of the tower's own output, K answers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from feature_store.errors import GenerationError
from index_refresher.index import F32, ItemIndex

_MIN_SPREAD = 1e-3
_MAX_SELF_QUERIES = 256
_RECALL_K = 100
_QUERIES_AT_ONCE = 16
_RELATIVE_TOLERANCE = 1e-4


class CheckFigures(BaseModel):
    """What the checks measured; part of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    spread: float
    self_retrieval: float
    recall: float


def check_embeddings(item_ids: Sequence[str], embeddings_ND: F32, tower_width: int) -> float:
    """Return how far apart the items are: distance from their mean over length, as root mean squares.

    Only the first `tower_width` columns count: a popularity column differs between items even when the towers
    died.

    Raises:
        GenerationError: there is no item, an embedding is not finite, or the towers collapsed.
    """
    if not len(embeddings_ND):
        raise GenerationError(
            "no item is live in the feature store, so there is nothing to recommend; send items first"
        )
    finite_N = np.asarray(np.isfinite(embeddings_ND).all(axis=1))
    if not finite_N.all():
        raise GenerationError(
            f"the embeddings of {int((~finite_N).sum())} of {len(finite_N)} items are not finite, first "
            f"{item_ids[int(finite_N.argmin())]!r}; lower learning.dense_learning_rate, or restore the store"
        )
    spread = _spread(embeddings_ND[:, :tower_width])
    if len(embeddings_ND) > 1 and spread < _MIN_SPREAD:
        raise GenerationError(
            f"the model has collapsed: all {len(embeddings_ND)} items have nearly the same embedding (spread "
            f"{spread:.1e}, at least {_MIN_SPREAD:g} is needed), so all users would get the same answer; set "
            "model.last_relu = false and model.temperature = 0.1, or model.preset = 'default'"
        )
    return spread


def check_index(
    index: ItemIndex, embeddings_ND: F32, queries_QD: F32, min_recall: float
) -> tuple[float, float]:
    """Return the share of items that find themselves, and the queries' recall against exact search.

    Embeddings are not of unit length, so an item need not be its own best match: it passes where what comes
    first scores at least what the item itself does. Scores and IDs must agree in all answers: that finds IDs
    in wrong order.

    Raises:
        GenerationError: an answer's score is not its item's, or too few answers are right.
    """
    place_of = {item_id: place for place, item_id in enumerate(index.item_ids)}
    step = max(1, len(embeddings_ND) // _MAX_SELF_QUERIES)
    sample_SD = embeddings_ND[::step][:_MAX_SELF_QUERIES]
    own_S = np.einsum("sd,sd->s", sample_SD, sample_SD)
    best_S = _checked_scores(index, place_of, embeddings_ND, sample_SD, 1)[:, 0]
    self_retrieval = float((best_S >= own_S - _tolerance(own_S)).mean())
    k = min(_RECALL_K, len(embeddings_ND))
    hits = []
    for start in range(0, len(queries_QD), _QUERIES_AT_ONCE):
        part_QD = queries_QD[start : start + _QUERIES_AT_ONCE]
        exact_QN = part_QD @ embeddings_ND.T
        kth_Q1 = np.partition(exact_QN, -k, axis=1)[:, -k, None]
        found_QK = _checked_scores(index, place_of, embeddings_ND, part_QD, k)
        hits.append((found_QK >= kth_Q1 - _tolerance(kth_Q1)).mean(1))
    recall = float(np.concatenate(hits).mean())
    for name, figure in (("self-retrieval", self_retrieval), ("recall against exact search", recall)):
        if figure < min_recall:
            raise GenerationError(
                f"{name} of the {index.kind} index is {figure:.3f}, less than refresh.min_recall = "
                f"{min_recall:g}; raise refresh.ivf_nprobe, or refresh.ivf_from_items for exact search"
            )
    return self_retrieval, recall


def _checked_scores(
    index: ItemIndex, place_of: dict[str, int], embeddings_ND: F32, queries_QD: F32, k: int
) -> npt.NDArray[np.float32]:
    found = index.search(queries_QD, k)
    scores_QK = np.array(found.scores, np.float32)
    places_QK = np.array([[place_of[item_id] for item_id in ids] for ids in found.item_ids])
    true_QK = np.einsum("qd,qkd->qk", queries_QD, embeddings_ND[places_QK])
    # Rounding grows with the terms of a sum, not with the sum.
    terms_QK = np.einsum("qd,qkd->qk", np.abs(queries_QD), np.abs(embeddings_ND[places_QK]))
    wrong_QK = np.abs(true_QK - scores_QK) > _tolerance(terms_QK)
    if wrong_QK.any():
        query, rank = np.argwhere(wrong_QK)[0]
        raise GenerationError(
            f"the index scores item {found.item_ids[query][rank]!r} {scores_QK[query, rank]:.6g}, but its "
            f"embedding gives {true_QK[query, rank]:.6g}: vectors and IDs do not belong together"
        )
    return scores_QK


def _tolerance(scale: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.asarray(_RELATIVE_TOLERANCE * np.abs(scale) + 1e-7, np.float32)


def _spread(embeddings_NT: F32) -> float:
    """Return the items' distance from their mean over their length, root mean squares; 0 where all are zero.

    >>> round(_spread(np.array([[1, 1], [1, -1]], np.float32)), 3), _spread(np.zeros((3, 2), np.float32))
    (0.707, 0.0)
    """
    p_NT = embeddings_NT.astype(np.float64)
    length = float(np.sqrt((p_NT**2).sum(1).mean()))
    if not length:
        return 0.0
    return float(np.sqrt(((p_NT - p_NT.mean(0)) ** 2).sum(1).mean())) / length
