"""The scores of each query's candidates, and their gradient, in compiled loops: no query's items are copied,
and what does not count is marked where it stands.

Pure. Legend: B queries, T items, D width, S candidates of a query's own, M that all share, X = 1 + S,
J = X + M.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from feature_store.compiled import compiled
from stream_trainer.models.loops import F32, I64, add_rows, array, check_places
from stream_trainer.models.parallel import compiled_parallel, prange


def candidate_scores(
    users_BD: Tensor, items_TD: Tensor, positive_B: Tensor, own_BS: Tensor, shared_M: Tensor
) -> Tensor:
    """Return each query's inner products with its positive, with candidates of its own, and with those that
    all share: (B, 1 + S + M). All are places among the items.

    Minus infinity where a place is -1, and where a candidate is the positive itself: it does not count, and
    a loss must pass no gradient there.

    >>> users, items = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    >>> candidate_scores(users, items, *map(torch.tensor, ([0], [[1, -1, 0]], [1, 0]))).tolist()
    [[11.0, 17.0, -inf, -inf, 17.0, -inf]]
    """
    places_BX = torch.cat([positive_B.view(-1, 1), own_BS], dim=1)
    check_places(places_BX, len(items_TD))
    check_places(shared_M, len(items_TD))
    scores_BJ: Tensor = _Scores.apply(users_BD, items_TD, places_BX.numpy(), shared_M)
    return scores_BJ


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users_BD: Tensor, items_TD: Tensor, places_BX: I64, shared_M: Tensor) -> Tensor:
        num_own = places_BX.shape[1]
        scores_BJ = users_BD.new_empty(len(places_BX), num_own + len(shared_M))
        shared_MD = items_TD.index_select(0, shared_M)
        torch.mm(users_BD, shared_MD.T, out=scores_BJ[:, num_own:])
        _multiply(array(users_BD), array(items_TD), places_BX, scores_BJ.numpy())
        _hide(places_BX, shared_M.numpy(), np.full(len(items_TD), -1), scores_BJ.numpy())
        ctx.places_BX = places_BX
        ctx.save_for_backward(users_BD, items_TD, shared_M, shared_MD)
        return scores_BJ

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BJ: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """∂⟨u, v⟩/∂u is v, and u the other way."""
        users_BD, items_TD, shared_M, shared_MD = ctx.saved_tensors
        gradient_BM = gradient_BJ[:, ctx.places_BX.shape[1] :]
        moved_BD, moved_TD = gradient_BM @ shared_MD, torch.zeros_like(items_TD)
        add_rows(moved_TD.numpy(), shared_M.numpy(), (gradient_BM.T @ users_BD).numpy())
        arrays = (array(users_BD), array(items_TD), ctx.places_BX, array(gradient_BJ))
        _multiply_back(*arrays, moved_BD.numpy(), moved_TD.numpy())
        return moved_BD, moved_TD, None, None


@compiled_parallel
def _multiply(users_BD: F32, items_TD: F32, places_BX: I64, scores_BJ: F32) -> None:
    for b in prange(len(places_BX)):
        for x in range(places_BX.shape[1]):
            place, product = places_BX[b, x], np.float32(-np.inf)
            if place >= 0 and (x == 0 or place != places_BX[b, 0]):
                product = np.float32(0)
                for d in range(users_BD.shape[1]):
                    product += users_BD[b, d] * items_TD[place, d]
            scores_BJ[b, x] = product


@compiled
def _hide(places_BX: I64, shared_M: I64, first_T: I64, scores_BJ: F32) -> None:
    """Mark where the shared candidates are the positive: by lists of each item's places among them, because
    all queries times all candidates would be a walk through the whole of the scores.
    """
    num_own, next_M = places_BX.shape[1], np.empty(len(shared_M), np.int64)
    for m in range(len(shared_M)):
        next_M[m] = first_T[shared_M[m]]
        first_T[shared_M[m]] = m
    for b in range(len(places_BX)):
        m = first_T[places_BX[b, 0]]
        while m >= 0:
            scores_BJ[b, num_own + m] = -np.inf
            m = next_M[m]


@compiled
def _multiply_back(
    users_BD: F32, items_TD: F32, places_BX: I64, gradient_BJ: F32, moved_BD: F32, moved_TD: F32
) -> None:
    for b in range(len(places_BX)):
        for x in range(places_BX.shape[1]):
            place, gradient = places_BX[b, x], gradient_BJ[b, x]
            if place >= 0:
                for d in range(users_BD.shape[1]):
                    moved_BD[b, d] += gradient * items_TD[place, d]
                    moved_TD[place, d] += gradient * users_BD[b, d]
