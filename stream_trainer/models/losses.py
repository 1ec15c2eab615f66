"""The losses of DAT (dat.md) and of later practice: pure functions of scores and embeddings.

Legend: B positives, J candidates of each (column 0 is the positive), D width.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS_AT_ONCE = 64


def bce_loss(logits_BJ: Tensor) -> Tensor:
    """Return loss_p of the paper: the mean binary cross-entropy over all pairs that count (those not at minus
    infinity), column 0 being the positive.

    >>> round(float(bce_loss(torch.tensor([[0.0, 0.0, -torch.inf]]))), 4)
    0.6931
    """
    labels_BJ = torch.zeros_like(logits_BJ)
    labels_BJ[:, 0] = 1.0
    counts_BJ = logits_BJ != -torch.inf  # NaN counts, so that it is seen
    known_BJ = torch.where(counts_BJ, logits_BJ, 0.0)
    losses_BJ = F.binary_cross_entropy_with_logits(known_BJ, labels_BJ, reduction="none")
    return (losses_BJ * counts_BJ).sum() / counts_BJ.sum()


def sampled_softmax_loss(logits_BJ: Tensor) -> Tensor:
    """Return the mean cross-entropy of the positive (column 0) among its candidates; those at minus infinity
    do not count.

    >>> round(float(sampled_softmax_loss(torch.tensor([[0.0, 0.0, -torch.inf]]))), 4)
    0.6931
    """
    loss: Tensor = _SampledSoftmax.apply(logits_BJ)
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """A block of rows at a time, gradient included: the matrix of logits is too large for the cache, and
    autograd would walk through it a dozen times.
    """

    @staticmethod
    def forward(ctx: Any, logits_BJ: Tensor) -> Tensor:
        """The gradient is (softmax − 1 for the positive, softmax for the others) / B."""
        num = len(logits_BJ)
        ctx.gradient_BJ = torch.empty_like(logits_BJ)
        losses_B = logits_BJ.new_empty(num)
        for start in range(0, num, _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            logs, gradient = logits_BJ[rows].log_softmax(1), ctx.gradient_BJ[rows]
            losses_B[rows] = -logs[:, 0]
            torch.exp(logs, out=gradient)
            gradient[:, 0] -= 1
            gradient.mul_(1 / num)
        return losses_B.mean()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Nearly always the loss is summed up as it is."""
        gradient_BJ: Tensor = ctx.gradient_BJ
        return gradient_BJ if float(gradient) == 1 else gradient_BJ * gradient


def mimic_loss(augmented_BD: Tensor, target_BD: Tensor, num_pairs: int) -> Tensor:
    """Return loss_u or loss_v: Σ ‖a − sg(p)‖² over the positives, divided by the number of pairs T.

    Negatives contribute nothing (their two terms cancel), and no gradient reaches the target: only the
    augmented vectors learn.

    >>> float(mimic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), 2))
    2.0
    """
    return (augmented_BD - target_BD.detach()).square().sum() / num_pairs
