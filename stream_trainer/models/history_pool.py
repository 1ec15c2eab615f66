"""A query's history as one vector, and its gradient, in compiled loops: autograd would walk through memory
for every step of it.

Pure. Legend: B queries, L places of the history, I items, K embedding width.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_store.compiled import compiled
from stream_trainer.models.loops import F32, I64, array, check_places
from stream_trainer.models.parallel import compiled_parallel, prange

F64 = npt.NDArray[np.float64]


def pool_history(
    embedding_IK: Tensor, history_BL: Tensor, weight_L: Tensor | None = None, mean: bool = False
) -> Tensor:
    """Sum each row's embeddings, each times its place's weight, over the square root of the weights' sum:
    (B, K), zeros for an empty history. Without weights all count the same.

    `history_BL` holds rows of `embedding_IK`, -1 where there is none. The square root lets a longer history
    speak louder than a `mean` would, without drowning the rest (SVD++, Koren 2008).

    >>> pool_history(torch.tensor([[1.0], [3.0]]), torch.tensor([[0, 0, 1, 1], [-1, -1, -1, -1]])).tolist()
    [[4.0], [0.0]]
    >>> embedding, history = torch.tensor([[1.0], [3.0]]), torch.tensor([[0, 1], [-1, 1]])
    >>> pool_history(embedding, history, torch.tensor([3.0, 1.0])).tolist()
    [[3.0], [3.0]]
    """
    check_places(history_BL, len(embedding_IK))
    weight_L = embedding_IK.new_ones(history_BL.shape[1]) if weight_L is None else weight_L
    assert len(weight_L) == history_BL.shape[1], f"{len(weight_L)} weights for {history_BL.shape[1]} places"
    pooled_BK: Tensor = _PoolHistory.apply(embedding_IK, history_BL.numpy(), weight_L, -1.0 if mean else -0.5)
    return pooled_BK


class _PoolHistory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_IK: Tensor, history_BL: I64, weight_L: Tensor, power: float) -> Tensor:
        embedding, weight = array(embedding_IK), array(weight_L)
        pooled = np.zeros((len(history_BL), embedding.shape[1]), np.float32)
        total = np.zeros(len(history_BL), np.float32)
        _pool_weighted(embedding, history_BL, weight, np.float32(power), pooled, total)
        pooled_BK = torch.from_numpy(pooled)
        ctx.history_BL, ctx.total_B, ctx.power = history_BL, total, np.float32(power)
        ctx.save_for_backward(embedding_IK, weight_L, pooled_BK)
        return pooled_BK

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BK: Tensor) -> tuple[Tensor, None, Tensor, None]:
        """Of p = t^q Σ w e with t = Σ w: ∂p/∂e = t^q w, and ∂p/∂w = t^q e + q p / t."""
        embedding, weight, pooled = (array(kept) for kept in ctx.saved_tensors)
        moved_IK, moved_L = np.zeros_like(embedding), np.zeros(len(weight), np.float64)
        _pool_weighted_back(
            *(embedding, ctx.history_BL, weight, ctx.power, pooled, ctx.total_B),
            *(array(gradient_BK), moved_IK, moved_L),
        )
        return torch.from_numpy(moved_IK), None, torch.from_numpy(moved_L.astype(np.float32)), None


@compiled_parallel
def _pool_weighted(
    embedding_IK: F32, history_BL: I64, weight_L: F32, power: np.float32, pooled_BK: F32, total_B: F32
) -> None:
    for b in prange(len(history_BL)):
        pooled_K = pooled_BK[b]
        for place in range(history_BL.shape[1]):
            item, weight = history_BL[b, place], weight_L[place]
            if item >= 0:
                total_B[b] += weight
                for k in range(len(pooled_K)):
                    pooled_K[k] += weight * embedding_IK[item, k]
        if total_B[b] > 0:
            scale = total_B[b] ** power
            for k in range(len(pooled_K)):
                pooled_K[k] *= scale


@compiled
def _pool_weighted_back(
    embedding_IK: F32,
    history_BL: I64,
    weight_L: F32,
    power: np.float32,
    pooled_BK: F32,
    total_B: F32,
    gradient_BK: F32,
    moved_IK: F32,
    moved_L: F64,
) -> None:
    width = embedding_IK.shape[1]
    for b in range(len(history_BL)):
        if total_B[b] <= 0:
            continue
        scale, through_total = total_B[b] ** power, np.float32(0)
        for k in range(width):
            through_total += gradient_BK[b, k] * pooled_BK[b, k]
        through_total *= power / total_B[b]
        for place in range(history_BL.shape[1]):
            item, factor, along = history_BL[b, place], scale * weight_L[place], np.float32(0)
            if item >= 0:
                for k in range(width):
                    moved_IK[item, k] += factor * gradient_BK[b, k]
                    along += gradient_BK[b, k] * embedding_IK[item, k]
                moved_L[place] += scale * along + through_total
