"""The Category Alignment Loss (dat.md), with a gradient of its own.

Pure. Written out because autograd would go back through the means for nothing: centred rows sum to zero, so
that part of the gradient is zero.
Legend: D width, T items, n of them with a category, C categories, M items of the largest.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor


def category_alignment_loss(embedding_TD: Tensor, category_T: Tensor) -> Tensor:
    """Return loss_CA: Σ ‖C(S_major) − C(S_i)‖_F² over the batch's categories other than the one with most
    items.

    C is the sample covariance. Items without a category (negative numbers) are left out, as is a category
    with fewer than two items, which has no covariance. Of equally large categories the smallest number is the
    major one.
    """
    category_np = category_T.numpy()
    known_n = np.flatnonzero(category_np >= 0)
    order_n = np.argsort(category_np[known_n], kind="stable")
    sorted_n = category_np[known_n][order_n]
    _, starts_C, counts_C = np.unique(sorted_n, return_index=True, return_counts=True)
    if np.count_nonzero(counts_C > 1) < 2:
        return embedding_TD.sum() * 0.0
    # One product for all categories: the rows of each stand together, filled up with zeros to the longest.
    places_n = np.empty(len(known_n), np.int64)
    firsts_C = np.arange(len(counts_C)) * counts_C.max() - starts_C
    places_n[order_n] = np.arange(len(known_n)) + np.repeat(firsts_C, counts_C)
    if len(known_n) < len(category_np):
        embedding_TD = embedding_TD.index_select(0, torch.from_numpy(known_n))
    loss: Tensor = _Alignment.apply(embedding_TD, torch.from_numpy(places_n), torch.from_numpy(counts_C))
    return loss


class _Alignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_nD: Tensor, places_n: Tensor, counts_C: Tensor) -> Tensor:
        num, most, width = len(counts_C), int(counts_C.max()), embedding_nD.shape[1]
        rows_CMD = embedding_nD.new_zeros(num * most, width)
        rows_CMD = rows_CMD.index_copy_(0, places_n, embedding_nD).view(num, most, width)
        rows_CMD -= rows_CMD.sum(1, keepdim=True) / counts_C.view(-1, 1, 1)
        is_empty_CM1 = torch.arange(most).view(1, -1, 1) >= counts_C.view(-1, 1, 1)
        rows_CMD.masked_fill_(is_empty_CM1, 0.0)
        per_degree_C11 = 1 / (counts_C - 1).clamp(min=1).to(rows_CMD.dtype).view(-1, 1, 1)
        covariance_CDD = rows_CMD.transpose(1, 2) @ rows_CMD * per_degree_C11
        major = int(torch.argmax(counts_C))
        apart_CDD = (covariance_CDD - covariance_CDD[major]) * (counts_C > 1).view(-1, 1, 1)
        ctx.major = major
        ctx.save_for_backward(rows_CMD, apart_CDD, per_degree_C11, places_n)
        return apart_CDD.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """∂‖A‖²/∂C_i = 2A for each C_i − C_major = A, minus their sum for C_major; ∂/∂X of XᵀX/(n − 1) with
        symmetric weights G is 2XG/(n − 1).
        """
        rows_CMD, apart_CDD, per_degree_C11, places_n = ctx.saved_tensors
        weights_CDD = apart_CDD.clone()
        weights_CDD[ctx.major] = -apart_CDD.sum(0)
        rows_CMD = rows_CMD @ (weights_CDD * (4 * gradient * per_degree_C11))
        return rows_CMD.view(-1, rows_CMD.shape[2]).index_select(0, places_n), None, None
