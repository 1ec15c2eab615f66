"""The losses of DAT (dat.md) and of later practice: pure functions of scores and embeddings.

Legend: B positives, J candidates of each (column 0 is the positive), D width, T items.
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
    order = torch.argsort(category_T[known_T], stable=True)
    grouped_TD = embedding_TD[known_T][order]
    _, counts = torch.unique(category_T[known_T], return_counts=True)
    covariances = [
        torch.cov(group.T, correction=1)
        for group in torch.split(grouped_TD, counts.tolist())
        if len(group) > 1
    ]
    if len(covariances) < 2:
        return embedding_TD.sum() * 0.0
    sizes = counts[counts > 1]
    stacked = torch.stack([c.reshape(embedding_TD.shape[1], -1) for c in covariances])
    return (stacked - stacked[int(torch.argmax(sizes))]).square().sum()
