"""The Category Alignment Loss (dat.md), with a gradient of its own.

Pure. Written out because autograd would go back through the means for nothing: centred rows sum to zero, so
that part of the gradient is zero.
Legend: D width, T items, n of them with a category, C categories, G groups of M rows, N = G × M.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

_ROWS_A_GROUP = 16


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
    groups = _groups(order_n, starts_C, counts_C)
    if len(known_n) < len(category_np):
        embedding_TD = embedding_TD.index_select(0, torch.from_numpy(known_n))
    loss: Tensor = _Alignment.apply(embedding_TD, groups)
    return loss


class _Groups(NamedTuple):
    """The rows of each category stand together, filled up with zeros to whole groups, all of one size: so
    that one product does for all, however uneven the categories are.
    """

    places_n: Tensor
    """Where each row stands among the G × M places."""
    is_filled_GM1: Tensor
    """1 where there is a row, else 0."""
    category_G: Tensor
    counts_C: Tensor


def _groups(
    order_n: npt.NDArray[np.int64], starts_C: npt.NDArray[np.int64], counts_C: npt.NDArray[np.int64]
) -> _Groups:
    """Place rows, which in this order stand by category."""
    num_groups_C = -(-counts_C // _ROWS_A_GROUP)
    firsts_C = np.cumsum(num_groups_C) - num_groups_C
    places_n = np.empty(len(order_n), np.int64)
    places_n[order_n] = np.arange(len(order_n)) + np.repeat(_ROWS_A_GROUP * firsts_C - starts_C, counts_C)
    is_filled_N = np.zeros(int(num_groups_C.sum()) * _ROWS_A_GROUP, np.float32)
    is_filled_N[places_n] = 1
    return _Groups(
        torch.from_numpy(places_n),
        torch.from_numpy(is_filled_N).view(-1, _ROWS_A_GROUP, 1),
        torch.from_numpy(np.repeat(np.arange(len(counts_C)), num_groups_C)),
        torch.from_numpy(counts_C),
    )


class _Alignment(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_nD: Tensor, groups: _Groups) -> Tensor:
        width, counts_C = embedding_nD.shape[1], groups.counts_C
        rows_ND = embedding_nD.new_zeros(groups.is_filled_GM1.numel(), width)
        rows_GMD = rows_ND.index_copy_(0, groups.places_n, embedding_nD).view(-1, _ROWS_A_GROUP, width)
        mean_CD = _sums(rows_GMD.sum(1), groups) / counts_C.view(-1, 1)
        mean_G1D = mean_CD.index_select(0, groups.category_G).unsqueeze(1)
        rows_GMD.addcmul_(mean_G1D, groups.is_filled_GM1, value=-1)
        per_degree_C11 = 1 / (counts_C - 1).clamp(min=1).to(rows_GMD.dtype).view(-1, 1, 1)
        covariance_CDD = _sums(rows_GMD.transpose(1, 2) @ rows_GMD, groups) * per_degree_C11
        major = int(torch.argmax(counts_C))
        apart_CDD = (covariance_CDD - covariance_CDD[major]) * (counts_C > 1).view(-1, 1, 1)
        ctx.major = major
        ctx.save_for_backward(rows_GMD, apart_CDD, per_degree_C11, groups.category_G, groups.places_n)
        return apart_CDD.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """∂‖A‖²/∂C_i = 2A for each C_i − C_major = A, minus their sum for C_major; ∂/∂X of XᵀX/(n − 1) with
        symmetric weights G is 2XG/(n − 1).
        """
        rows_GMD, apart_CDD, per_degree_C11, category_G, places_n = ctx.saved_tensors
        weights_CDD = apart_CDD.clone()
        weights_CDD[ctx.major] = -apart_CDD.sum(0)
        weights_CDD *= 4 * gradient * per_degree_C11
        rows_GMD = rows_GMD @ weights_CDD.index_select(0, category_G)
        return rows_GMD.view(-1, rows_GMD.shape[2]).index_select(0, places_n), None


def _sums(of_groups: Tensor, groups: _Groups) -> Tensor:
    """Add up the groups of each category."""
    sums = of_groups.new_zeros(len(groups.counts_C), *of_groups.shape[1:])
    return sums.index_add_(0, groups.category_G, of_groups)
