"""One tower: from the parts of a query or an item to a vector (Yu et al. 2021); and what parts are made of.

Legend: B rows, Z input width, K embedding width, N numeric features, D output width.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from feature_store.configuration import ModelSettings
from stream_trainer.models import loops
from stream_trainer.models.dropout import Draws, Dropout
from stream_trainer.models.relu_layers import Beside, relu_layers


class NumericLayers(nn.Module):
    """One small layer per numeric feature (the reproduction's), whose second input says that the value is
    missing.
    """

    def __init__(self, num_features: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_features, 2, width).uniform_(-0.5, 0.5))
        self.bias = nn.Parameter(torch.zeros(num_features, width))

    def forward(self, numbers_BN: Tensor) -> Tensor:
        """Return (B, N × width); NaN counts as missing."""
        missing_BN = torch.isnan(numbers_BN)
        inputs_BN2 = torch.stack([torch.nan_to_num(numbers_BN), missing_BN.to(numbers_BN.dtype)], dim=-1)
        return (torch.einsum("bni,niw->bnw", inputs_BN2, self.weight) + self.bias).flatten(1)


class Tower(nn.Module):
    """h = ReLU(W h + b) through the hidden layers, then a last layer to D; the output is divided by its
    length unless `model.normalise` is off.
    """

    def __init__(self, input_dim: int, model: ModelSettings) -> None:
        super().__init__()
        widths = [input_dim, *model.hidden, model.output_dim]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.last_relu = model.last_relu
        self.normalise = model.normalise
        self.dropout = model.dropout
        self.beside: Beside | None = None
        """Who sees to the weights' gradients; None: autograd."""

    def forward(
        self,
        parts: Sequence[Tensor],
        residual_BD: Tensor | None = None,
        draws: Draws | None = None,
    ) -> Tensor:
        """Return p (B, D) of the parts of z (B, ·); of length one, if so set (or zero where a last ReLU
        killed every unit). Leading dimensions may be more than one. Without draws nothing is dropped.
        """
        dropout = None
        if draws is not None and self.dropout:
            shape = (parts[0].shape[:-1].numel(), sum(part.shape[-1] for part in parts))
            dropout = Dropout(draws.kept(shape, self.dropout), 1 / (1 - self.dropout))
        h = relu_layers(parts, self.layers, self.last_relu, dropout, self.beside)
        h = h.float()  # layers may compute in bfloat16; lengths and sums want more
        if residual_BD is not None:
            h = h + residual_BD
        return unit_length(h, self.normalise)


def unit_length(x: Tensor, normalise: bool) -> Tensor:
    """Divide vectors (…, D) by their length if so set: scores are then cosines."""
    return loops.unit_length(x) if normalise else x


class HistoryWeights(nn.Module):
    """How much each place of a history counts, the newest last: learned, and at the start `decay` times as
    much as the next newer one. What a user did last says most about what comes next.
    """

    def __init__(self, length: int, decay: float) -> None:
        super().__init__()
        self.log_weight_L = nn.Parameter(math.log(decay) * torch.arange(length - 1.0, -1.0, -1.0))

    def forward(self) -> Tensor:
        """Return the weights (L,), above 0."""
        return self.log_weight_L.exp()


def feature_parts(
    values_BFK: Tensor | None, numbers_BN: Tensor | None, numeric: NumericLayers | None
) -> list[Tensor]:
    """Return what side features add to an input: the pooled values, and the layers over the numbers."""
    parts = [] if values_BFK is None else [values_BFK]
    return [*parts, numeric(numbers_BN)] if numeric is not None and numbers_BN is not None else parts
