"""The losses of DAT (dat.md) and of later practice: pure functions of scores and embeddings.

Legend: B positives, J candidates of each (column 0 is the positive), D width, T items, n of them with a
category, C categories, M items of the largest.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def bce_loss(logits_BJ: Tensor, valid_BJ: Tensor) -> Tensor:
    """Return loss_p of the paper: the mean binary cross-entropy over all valid pairs, column 0 being the
    positive.

    >>> round(float(bce_loss(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))), 4)
    0.6931
    """
    labels_BJ = torch.zeros_like(logits_BJ)
    labels_BJ[:, 0] = 1.0
    losses_BJ = F.binary_cross_entropy_with_logits(logits_BJ, labels_BJ, reduction="none")
    return (losses_BJ * valid_BJ).sum() / valid_BJ.sum()


def sampled_softmax_loss(logits_BJ: Tensor, valid_BJ: Tensor) -> Tensor:
    """Return the mean cross-entropy of the positive (column 0) among its valid candidates.

    >>> round(float(sampled_softmax_loss(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool))), 4)
    0.6931
    """
    masked_BJ = logits_BJ.masked_fill(~valid_BJ, float("-inf"))
    return F.cross_entropy(masked_BJ, masked_BJ.new_zeros(len(masked_BJ), dtype=torch.long))


def mimic_loss(augmented_BD: Tensor, target_BD: Tensor, num_pairs: int) -> Tensor:
    """Return loss_u or loss_v: Σ ‖a − sg(p)‖² over the positives, divided by the number of pairs T.

    Negatives contribute nothing (their two terms cancel), and no gradient reaches the target: only the
    augmented vectors learn.

    >>> float(mimic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), 2))
    2.0
    """
    return (augmented_BD - target_BD.detach()).square().sum() / num_pairs


def category_alignment_loss(embedding_TD: Tensor, category_T: Tensor) -> Tensor:
    """Return loss_CA: Σ ‖C(S_major) − C(S_i)‖_F² over the batch's categories other than the one with most
    items.

    C is the sample covariance. Items without a category (negative numbers) are left out, as is a category
    with fewer than two items, which has no covariance. Of equally large categories the smallest number is the
    major one.
    """
    known_T = category_T >= 0
    embedding_nD = embedding_TD[known_T]
    _, category_n, counts_C = torch.unique(category_T[known_T], return_inverse=True, return_counts=True)
    if int((counts_C > 1).sum()) < 2:
        return embedding_TD.sum() * 0.0
    num, width, most = len(counts_C), embedding_TD.shape[1], int(counts_C.max())
    sums_CD = embedding_nD.new_zeros(num, width).index_add(0, category_n, embedding_nD)
    means_CD = sums_CD / counts_C.unsqueeze(1)
    centred_nD = embedding_nD - means_CD.index_select(0, category_n)
    # One product for all categories: the rows of each stand together, filled up with zeros to the longest.
    order_n = torch.argsort(category_n, stable=True)
    starts_C = torch.cumsum(counts_C, 0) - counts_C
    sorted_n = category_n[order_n]
    place_n = sorted_n * most + torch.arange(len(order_n)) - starts_C[sorted_n]
    rows_CMD = embedding_nD.new_zeros(num * most, width).index_copy(
        0, place_n, centred_nD.index_select(0, order_n)
    )
    rows_CMD = rows_CMD.view(num, most, width)
    covariance_CDD = rows_CMD.transpose(1, 2) @ rows_CMD / (counts_C - 1).clamp(min=1).view(-1, 1, 1)
    apart_CDD = covariance_CDD - covariance_CDD[int(torch.argmax(counts_C))]
    return torch.sum(apart_CDD[counts_C > 1].square())
