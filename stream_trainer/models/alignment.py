"""The Category Alignment Loss (dat.md), with a gradient of its own.

Pure. Written out because autograd would go back through the means for nothing: centred rows sum to zero, so
that part of the gradient is zero.
Legend: D width, T items, C categories that some item of the batch has.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream_trainer.models.compiled import compiled

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


def category_alignment_loss(embedding_TD: Tensor, category_T: Tensor) -> Tensor:
    """Return loss_CA: Σ ‖C(S_major) − C(S_i)‖_F² over the batch's categories other than the one with most
    items.

    C is the sample covariance. Items without a category (negative numbers) are left out, as is a category
    with fewer than two items, which has no covariance. Of equally large categories the smallest number is the
    major one.
    """
    category_n = category_T.numpy()
    num_T = np.bincount(category_n[category_n >= 0]) if category_n.size else category_n
    numbers_C = np.flatnonzero(num_T)
    counts_C = num_T[numbers_C]
    if np.count_nonzero(counts_C > 1) < 2:
        return embedding_TD.sum() * 0.0
    place_of = np.full(len(num_T) + 1, -1, np.int64)  # the last place is that of -1
    place_of[numbers_C] = np.arange(len(numbers_C))
    loss: Tensor = _Alignment.apply(embedding_TD, place_of[np.maximum(category_n, -1)], counts_C)
    return loss


class _Alignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_TD: Tensor, place_T: I64, counts_C: I64) -> Tensor:
        embedding = embedding_TD.detach().contiguous().numpy()
        num, width = len(counts_C), embedding.shape[1]
        centred_TD, products_CDD = np.zeros_like(embedding), np.zeros((num, width, width), embedding.dtype)
        _add_products(embedding, place_T, counts_C, centred_TD, products_CDD)
        per_degree_C11 = (1 / np.maximum(counts_C - 1, 1)).astype(embedding.dtype)[:, None, None]
        covariance_CDD = products_CDD * per_degree_C11
        major = int(np.argmax(counts_C))
        apart_CDD = (covariance_CDD - covariance_CDD[major]) * (counts_C > 1)[:, None, None]
        ctx.weights_CDD = apart_CDD.copy()
        ctx.weights_CDD[major] = -apart_CDD.sum(0)
        ctx.weights_CDD *= 4 * per_degree_C11
        ctx.centred_TD, ctx.place_T = centred_TD, place_T
        return torch.tensor(np.square(apart_CDD).sum())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """∂‖A‖²/∂C_i = 2A for each C_i − C_major = A, minus their sum for C_major; ∂/∂X of XᵀX/(n − 1) with
        symmetric weights G is 2XG/(n − 1).
        """
        moved_TD = np.zeros_like(ctx.centred_TD)
        _weigh(ctx.centred_TD, ctx.place_T, ctx.weights_CDD, gradient.numpy().item(), moved_TD)
        return torch.from_numpy(moved_TD), None, None


@compiled
def _add_products(embedding_TD: F32, place_T: I64, counts_C: I64, centred_TD: F32, products_CDD: F32) -> None:
    """Take each row's category's mean off it, and add up the outer products of what is left."""
    width = embedding_TD.shape[1]
    mean_CD = np.zeros((len(counts_C), width), embedding_TD.dtype)
    for t in range(len(place_T)):
        if place_T[t] >= 0:
            for d in range(width):
                mean_CD[place_T[t], d] += embedding_TD[t, d]
    for c in range(len(counts_C)):
        for d in range(width):
            mean_CD[c, d] /= counts_C[c]
    for t in range(len(place_T)):
        if place_T[t] >= 0:
            row_D, products_DD = centred_TD[t], products_CDD[place_T[t]]
            for d in range(width):
                row_D[d] = embedding_TD[t, d] - mean_CD[place_T[t], d]
            for d in range(width):
                for e in range(width):
                    products_DD[d, e] += row_D[d] * row_D[e]


@compiled
def _weigh(centred_TD: F32, place_T: I64, weights_CDD: F32, factor: float, moved_TD: F32) -> None:
    """Multiply each row by its category's matrix."""
    width = centred_TD.shape[1]
    for t in range(len(place_T)):
        if place_T[t] >= 0:
            weights_DD, moved_D = weights_CDD[place_T[t]], moved_TD[t]
            for d in range(width):
                weight = moved_TD.dtype.type(factor * centred_TD[t, d])
                for e in range(width):
                    moved_D[e] += weight * weights_DD[d, e]
