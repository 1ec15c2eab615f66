"""How well the items held out were ranked: hit rate, MRR and NDCG, all from ranks.

Pure. Owns the rank of a target among scores and what is made of ranks. Legend: Q queries, N items.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Ranks = npt.NDArray[np.float64]


def middle_ranks(
    scores_QN: npt.NDArray[np.floating],
    target_Q: npt.NDArray[np.integer],
    excluded: Sequence[npt.ArrayLike],
) -> Ranks:
    """Return the rank (Q,) of each query's target, from 1, among the items not excluded for that query.

    Items of equal score share the middle of their places, which is the mean over all orders of them: a model
    that scores all items alike ranks as random does, in the middle, and not first. `excluded` holds each
    query's items to leave out, usually those the user has already; the target itself is never left out.

    Raises:
        ValueError: a score is NaN, or a target's score is not finite: such a rank would mean nothing.

    >>> middle_ranks(np.array([[0.9, 0.5, 0.5, 0.1]]), np.array([1]), [[]]).tolist()
    [2.5]
    >>> middle_ranks(np.array([[0.9, 0.5, 0.5, 0.1]]), np.array([1]), [[0, 2]]).tolist()
    [1.0]
    """
    num_queries, num_items = scores_QN.shape
    target_scores_Q = scores_QN[np.arange(num_queries), target_Q]
    if np.isnan(scores_QN).any() or not np.isfinite(target_scores_Q).all():
        raise ValueError("scores to rank hold NaN, or a target's score is not finite")
    greater_Q = (scores_QN > target_scores_Q[:, None]).sum(axis=1)
    equal_Q = (scores_QN == target_scores_Q[:, None]).sum(axis=1) - 1
    places = [
        np.setdiff1d(np.asarray(items, np.int64), target) + query * num_items
        for query, (items, target) in enumerate(zip(excluded, target_Q, strict=True))
    ]
    flat = np.concatenate(places) if places else np.zeros(0, np.int64)
    queries, scores = flat // num_items, scores_QN.reshape(-1)[flat]
    greater_Q -= np.bincount(queries[scores > target_scores_Q[queries]], minlength=num_queries)
    equal_Q -= np.bincount(queries[scores == target_scores_Q[queries]], minlength=num_queries)
    return np.asarray(1.0 + greater_Q + equal_Q / 2.0, np.float64)


def hit_rate(ranks: Ranks, k: int) -> float:
    """Return the share of targets among the first `k`.

    >>> hit_rate(np.array([1.0, 10.0, 10.5, 200.0]), 10)
    0.5
    """
    return _mean(ranks <= k)


def mrr(ranks: Ranks) -> float:
    """Return the mean of 1 / rank, not cut off anywhere. Tables show it times ten, as the paper does.

    >>> mrr(np.array([1.0, 4.0]))
    0.625
    """
    return _mean(1.0 / ranks)


def ndcg(ranks: Ranks, k: int) -> float:
    """Return NDCG@k for one relevant item a query: the mean of 1 / log2(rank + 1), 0 beyond rank `k`.

    >>> ndcg(np.array([1.0, 3.0, 11.0]), 10)
    0.5
    """
    return _mean(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0))


def _mean(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> float:
    if not len(values):
        raise ValueError("no ranks: nothing was held out, so there is nothing to average")
    return float(values.mean())
