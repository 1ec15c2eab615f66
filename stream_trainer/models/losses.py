"""The losses of DAT (Yu et al. 2021) and of later practice: pure functions of scores and embeddings.

Legend: B positives, J candidates of each (column 0 is the positive), D width.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_LOGITS_AT_ONCE = 1 << 17  # half a MiB


def bce_loss(logits_BJ: Tensor) -> Tensor:
    """Return loss_p of the paper: the mean binary cross-entropy over all pairs that count (those not at minus
    infinity), column 0 being the positive.

    >>> round(float(bce_loss(torch.tensor([[0.0, 0.0, -torch.inf]]))), 4)
    0.6931
    """
    loss: Tensor = _BinaryCrossEntropy.apply(logits_BJ)
    return loss


def sampled_softmax_loss(logits_BJ: Tensor) -> Tensor:
    """Return the mean cross-entropy of the positive (column 0) among its candidates; those at minus infinity
    do not count.

    >>> round(float(sampled_softmax_loss(torch.tensor([[0.0, 0.0, -torch.inf]]))), 4)
    0.6931
    """
    loss: Tensor = _SampledSoftmax.apply(logits_BJ)
    return loss


class _LossByBlocks(torch.autograd.Function):
    """A block of rows at a time, gradient included: the matrix of logits is too large for the cache, and
    autograd would walk through it a dozen times.
    """

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Nearly always the loss is summed up as it is."""
        gradient_BJ: Tensor = ctx.gradient_BJ
        return gradient_BJ if float(gradient) == 1 else gradient_BJ * gradient


def _blocks(logits_BJ: Tensor) -> Iterator[slice]:
    num_rows = max(1, _LOGITS_AT_ONCE // logits_BJ.shape[1])
    return (slice(start, start + num_rows) for start in range(0, len(logits_BJ), num_rows))


class _BinaryCrossEntropy(_LossByBlocks):
    @staticmethod
    def forward(ctx: Any, logits_BJ: Tensor) -> Tensor:
        """The gradient is (sigmoid − 1 for the positive, sigmoid for the others) / pairs; of what is at minus
        infinity both it and the loss are 0 without further ado. Each −sigmoid(−x) is sigmoid(x) − 1 for a
        large x too.

        Of the others log(1 + exp x) = max(x, 0) − log max(sigmoid x, 1 − sigmoid x), to 1e-7: `softplus`
        takes five times as long for a million of them.
        """
        # By numpy: torch sums up booleans as integers of 8 bytes. NaN counts, so that it is seen.
        num_pairs = int(np.count_nonzero(logits_BJ.detach().numpy() != -np.inf))
        ctx.gradient_BJ = torch.empty_like(logits_BJ)
        sums = []
        for rows in _blocks(logits_BJ):
            logits, gradient = logits_BJ[rows], ctx.gradient_BJ[rows]
            torch.sigmoid(logits, out=gradient)
            larger = torch.maximum(gradient, 1 - gradient)
            others = logits[:, 1:].relu().sum() - _sum_of_logs(larger[:, 1:])
            sums.append(F.softplus(-logits[:, 0]).sum() + others)
            gradient[:, 0] = -torch.sigmoid(-logits[:, 0])
            gradient.div_(num_pairs)
        return torch.stack(sums).sum() / num_pairs


def _sum_of_logs(x_BJ: Tensor) -> Tensor:
    """Sum up the logarithms of numbers from ½ to 1: one for eight, whose product is at least 1/256."""
    num = x_BJ.shape[1] % 8
    products = x_BJ[:, num:]
    for _ in range(3):
        half = products.shape[1] // 2
        products = products[:, :half] * products[:, half:]
    return products.log_().sum() + x_BJ[:, :num].log().sum()


class _SampledSoftmax(_LossByBlocks):
    @staticmethod
    def forward(ctx: Any, logits_BJ: Tensor) -> Tensor:
        """The gradient is (softmax − 1 for the positive, softmax for the others) / B."""
        num = len(logits_BJ)
        ctx.gradient_BJ = torch.empty_like(logits_BJ)
        losses_B = logits_BJ.new_empty(num)
        for rows in _blocks(logits_BJ):
            logs, gradient = logits_BJ[rows].log_softmax(1), ctx.gradient_BJ[rows]
            losses_B[rows] = -logs[:, 0]
            torch.exp(logs, out=gradient)
            gradient[:, 0] -= 1
            gradient.mul_(1 / num)
        return losses_B.mean()


def mimic_loss(augmented_BD: Tensor, target_BD: Tensor, num_pairs: int) -> Tensor:
    """Return loss_u or loss_v: Σ ‖a − sg(p)‖² over the positives, divided by the number of pairs T.

    Negatives contribute nothing (their two terms cancel), and no gradient reaches the target: only the
    augmented vectors learn.

    >>> float(mimic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), 2))
    2.0
    """
    return (augmented_BD - target_BD.detach()).square().sum() / num_pairs
