"""The Category Alignment Loss (Yu et al. 2021), with a gradient of its own.

Pure. Written out because autograd would go back through the means for nothing: centred rows sum to zero, so
that part of the gradient is zero.
Legend: D width, T items, C categories that some item of the batch has, n items that have one, sorted by it.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream_trainer.models.parallel import compiled_parallel, prange

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
        short_T = place_T.astype(np.min_scalar_type(-num))  # 16 bits or fewer sort several times as fast
        order_n = np.argsort(short_T, kind="stable")[np.count_nonzero(place_T < 0) :]
        centred_nD = embedding.take(order_n, 0)
        products_CDD = np.zeros((num, width, width), embedding.dtype)
        ends_C = np.cumsum(counts_C)
        _centre(centred_nD, counts_C, ends_C)
        _add_products(centred_nD, counts_C, ends_C, products_CDD)
        per_degree_C11 = (1 / np.maximum(counts_C - 1, 1)).astype(embedding.dtype)[:, None, None]
        covariance_CDD = products_CDD * per_degree_C11
        major = int(np.argmax(counts_C))
        apart_CDD = (covariance_CDD - covariance_CDD[major]) * (counts_C > 1)[:, None, None]
        ctx.weights_CDD = apart_CDD.copy()
        ctx.weights_CDD[major] = -apart_CDD.sum(0)
        ctx.weights_CDD *= 4 * per_degree_C11
        ctx.centred_nD, ctx.place_T, ctx.order_n, ctx.shape = centred_nD, place_T, order_n, embedding.shape
        return torch.tensor(np.square(apart_CDD).sum())

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """∂‖A‖²/∂C_i = 2A for each C_i − C_major = A, minus their sum for C_major; ∂/∂X of XᵀX/(n − 1) with
        symmetric weights G is 2XG/(n − 1).
        """
        moved_TD = np.zeros(ctx.shape, ctx.centred_nD.dtype)
        factor = gradient.numpy().item()
        _weigh(ctx.centred_nD, ctx.place_T, ctx.order_n, ctx.weights_CDD, factor, moved_TD)
        return torch.from_numpy(moved_TD), None, None


@compiled_parallel
def _centre(rows_nD: F32, counts_C: I64, ends_C: I64) -> None:
    """Take each category's mean off its rows."""
    for c in prange(len(counts_C)):
        mean_D = np.zeros(rows_nD.shape[1], rows_nD.dtype)
        for n in range(ends_C[c] - counts_C[c], ends_C[c]):
            for d in range(len(mean_D)):
                mean_D[d] += rows_nD[n, d]
        for d in range(len(mean_D)):
            mean_D[d] /= counts_C[c]
        for n in range(ends_C[c] - counts_C[c], ends_C[c]):
            for d in range(len(mean_D)):
                rows_nD[n, d] -= mean_D[d]


@compiled_parallel
def _add_products(rows_nD: F32, counts_C: I64, ends_C: I64, products_CDD: F32) -> None:
    """Add up each category's outer products; four rows at once, or memory takes longer than the products."""
    width = rows_nD.shape[1]
    for c in prange(len(counts_C)):
        products_DD, stop = products_CDD[c], ends_C[c]
        n = stop - counts_C[c]
        while n + 4 <= stop:
            p, q, r, s = rows_nD[n], rows_nD[n + 1], rows_nD[n + 2], rows_nD[n + 3]
            for d in range(width):
                for e in range(width):
                    products_DD[d, e] += p[d] * p[e] + q[d] * q[e] + r[d] * r[e] + s[d] * s[e]
            n += 4
        while n < stop:
            for d in range(width):
                for e in range(width):
                    products_DD[d, e] += rows_nD[n, d] * rows_nD[n, e]
            n += 1


@compiled_parallel
def _weigh(rows_nD: F32, place_T: I64, order_n: I64, weights_CDD: F32, factor: float, moved_TD: F32) -> None:
    """Multiply each row by its category's matrix, into its old place."""
    width = rows_nD.shape[1]
    by = rows_nD.dtype.type(factor)
    for n in prange(len(order_n)):
        w_DD, x_D, moved_D = weights_CDD[place_T[order_n[n]]], rows_nD[n], moved_TD[order_n[n]]
        d = 0
        while d + 4 <= width:
            p, q, r, s = by * x_D[d], by * x_D[d + 1], by * x_D[d + 2], by * x_D[d + 3]
            for e in range(width):
                moved_D[e] += p * w_DD[d, e] + q * w_DD[d + 1, e] + r * w_DD[d + 2, e] + s * w_DD[d + 3, e]
            d += 4
        while d < width:
            for e in range(width):
                moved_D[e] += by * x_D[d] * w_DD[d, e]
            d += 1
