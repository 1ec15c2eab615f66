"""The losses of DAT (Yu et al. 2021) and of later practice: pure functions of scores and embeddings.

Legend: B positives, J candidates of each (column 0 is the positive), D width.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from feature_store.compiled import compiled
from stream_trainer.models.loops import F32, array

# Of exp x. Less would be no normal number once it is divided by their sum, which makes products slow.
_NOTHING = np.float32(-70)


def bce_loss(logits_BJ: Tensor) -> Tensor:
    """Return loss_p of the paper: the mean binary cross-entropy over all pairs that count (those not at minus
    infinity), column 0 being the positive. In float32 alone.

    >>> round(float(bce_loss(torch.tensor([[0.0, 0.0, -torch.inf]]))), 4)
    0.6931
    """
    loss: Tensor = _BinaryCrossEntropy.apply(logits_BJ)
    return loss


def sampled_softmax_loss(logits_BJ: Tensor) -> Tensor:
    """Return the mean cross-entropy of the positive (column 0) among its candidates; those at minus infinity
    do not count. In float32 alone.

    >>> round(float(sampled_softmax_loss(torch.tensor([[0.0, 0.0, -torch.inf]]))), 4)
    0.6931
    """
    loss: Tensor = _SampledSoftmax.apply(logits_BJ)
    return loss


class _LossWithGradient(torch.autograd.Function):
    """The gradient is made with the loss: the matrix of logits may be too large for the cache, and autograd
    would walk through it a dozen times.
    """

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Nearly always the loss is summed up as it is."""
        gradient_BJ: Tensor = ctx.gradient_BJ
        return gradient_BJ if float(gradient) == 1 else gradient_BJ * gradient


class _BinaryCrossEntropy(_LossWithGradient):
    @staticmethod
    def forward(ctx: Any, logits_BJ: Tensor) -> Tensor:
        """The gradient is (sigmoid − 1 for the positive, sigmoid for the others) / pairs; of what is at minus
        infinity both it and the loss are 0 without further ado. Each −sigmoid(−x) is sigmoid(x) − 1 for a
        large x too.

        The others, which may be a million, take one walk (`_add_negatives`): torch's own `softplus` alone
        takes ten times as long.
        """
        # By numpy: torch sums up booleans as integers of 8 bytes. NaN counts, so that it is seen.
        num_pairs = int(np.count_nonzero(logits_BJ.detach().numpy() != -np.inf))
        gradient_BJ, losses_B = torch.empty_like(logits_BJ), F.softplus(-logits_BJ[:, 0])
        gradient_BJ[:, 0] = -torch.sigmoid(-logits_BJ[:, 0]) / num_pairs
        scale = np.float32(1 / num_pairs if num_pairs else np.nan)
        _add_negatives(array(logits_BJ), scale, gradient_BJ.numpy(), losses_B.numpy())
        ctx.gradient_BJ = gradient_BJ
        return losses_B.sum() / num_pairs


@compiled
def _add_negatives(logits_BJ: F32, scale: np.float32, gradient_BJ: F32, losses_B: F32) -> None:
    """Add up log(1 + exp x) of all columns but the first, each to 1e-7, and write the gradients
    scale × sigmoid x.

    With e = exp −|x| the loss is max(x, 0) + log(1 + e), and sigmoid x is 1 / (1 + e), or e / (1 + e) below
    zero; log(1 + e) is the series of 2 artanh(e / (2 + e)).
    """
    zero, one, two = np.float32(0), np.float32(1), np.float32(2)
    for b in range(len(logits_BJ)):
        loss = zero
        for j in range(1, logits_BJ.shape[1]):
            x = logits_BJ[b, j]
            e = _exp(-abs(x))
            z = e / (two + e)
            zz = z * z
            log = np.float32(1 / 9) + zz * (np.float32(1 / 11) + zz * np.float32(1 / 13))
            log = one + zz * (
                np.float32(1 / 3) + zz * (np.float32(1 / 5) + zz * (np.float32(1 / 7) + zz * log))
            )
            loss += max(x, zero) + two * z * log
            sigmoid = (one if x >= zero else e) / (one + e)
            gradient_BJ[b, j] = zero if x < _NOTHING else scale * sigmoid
        losses_B[b] += loss


class _SampledSoftmax(_LossWithGradient):
    @staticmethod
    def forward(ctx: Any, logits_BJ: Tensor) -> Tensor:
        """The gradient is (softmax − 1 for the positive, softmax for the others) / B."""
        ctx.gradient_BJ, losses_B = torch.empty_like(logits_BJ), torch.empty(len(logits_BJ))
        highest_B = logits_BJ.amax(1) if logits_BJ.numel() else losses_B
        _softmax(array(logits_BJ), highest_B.numpy(), ctx.gradient_BJ.numpy(), losses_B.numpy())
        return losses_B.mean()


@compiled
def _softmax(logits_BJ: F32, highest_B: F32, gradient_BJ: F32, losses_B: F32) -> None:
    """Write −log softmax of the first column, and the gradients of its mean."""
    num = np.float32(len(logits_BJ))
    for b in range(len(logits_BJ)):
        highest, total = highest_B[b], np.float32(0)
        for j in range(logits_BJ.shape[1]):
            below = logits_BJ[b, j] - highest
            e = np.float32(0) if below < _NOTHING else _exp(below)
            gradient_BJ[b, j] = e
            total += e
        for j in range(logits_BJ.shape[1]):
            gradient_BJ[b, j] /= total * num
        gradient_BJ[b, 0] -= np.float32(1) / num
        losses_B[b] = np.log(total) + highest - logits_BJ[b, 0]


@compiled
def _exp(x: np.float32) -> np.float32:
    """Return exp of x ≤ 0, to 1e-7: a power of 2 times the series for half an octave on either side. By
    series, because a call of `exp` for each keeps them from being done 16 at once.
    """
    one, octaves = np.float32(1), np.float32(1.44269504) * x
    octaves = max(octaves, np.float32(-126))
    whole = np.floor(octaves + np.float32(0.5))
    r = np.float32(0.693147181) * (octaves - whole)
    series = np.float32(1 / 720) + r * np.float32(1 / 5040)
    series = np.float32(1 / 24) + r * (np.float32(1 / 120) + r * series)
    series = one + r * (one + r * (np.float32(1 / 2) + r * (np.float32(1 / 6) + r * series)))
    power = np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)).view(np.float32)
    return np.float32(series * power)


def mimic_loss(augmented_BD: Tensor, target_BD: Tensor, num_pairs: int) -> Tensor:
    """Return loss_u or loss_v: Σ ‖a − sg(p)‖² over the positives, divided by the number of pairs T.

    Negatives contribute nothing (their two terms cancel), and no gradient reaches the target: only the
    augmented vectors learn.

    >>> float(mimic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0]]), 2))
    2.0
    """
    return (augmented_BD - target_BD.detach()).square().sum() / num_pairs
