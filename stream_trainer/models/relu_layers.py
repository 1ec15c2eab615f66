"""A tower's layers as one differentiable function: the same products and bits as a chain of `F.linear` and
`F.relu`, without the copies that autograd makes of the widest layers.

Under `torch.autocast` all of it computes in that type; sums stay in float32 inside the products. Legend: B
rows, Z input width, D output width, I and O widths of one layer.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stream_trainer.models.compiled import compiled

# oneDNN compiles its products in bfloat16 anew for each number of rows, which takes several times as long as
# they do, and batches differ in how many distinct items they have: rows of zeros fill up to a multiple.
_ROWS_MULTIPLE = 256
_LAST_NAN = -127  # a NaN with a sign in bfloat16, as an integer; below it are minus infinity and the numbers


def relu_layers(z: Tensor, layers: Iterable[nn.Module], last_relu: bool) -> Tensor:
    """Return h = ReLU(W h + b) through all layers (…, D), the last one without ReLU unless so asked."""
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    z_BZ = z.reshape(-1, z.shape[-1])
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else z.dtype
    h_BD: Tensor = _ReluLayers.apply(z_BZ, dtype, last_relu, *parameters)
    return h_BD.view(*z.shape[:-1], h_BD.shape[-1])


class _ReluLayers(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z_BZ: Tensor, dtype: torch.dtype, last_relu: bool, *parameters: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            weights, biases = ([p.to(dtype) for p in parameters[start::2]] for start in (0, 1))
            kept = [_filled_up(z_BZ, dtype)]
            for number, (weight_OI, bias_O) in enumerate(zip(weights, biases, strict=True), start=1):
                kept.append(torch.addmm(bias_O, kept[-1], weight_OI.T))
                if number < len(weights) or last_relu:
                    _cut_off(_flat(kept[-1]), _LAST_NAN if dtype == torch.bfloat16 else 0)
        ctx.last_relu = last_relu
        ctx.save_for_backward(*weights, *kept)
        return kept[-1][: len(z_BZ)]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BD: Tensor) -> tuple[Tensor | None, ...]:
        num = len(ctx.saved_tensors) // 2
        weights, kept = ctx.saved_tensors[:num], ctx.saved_tensors[num:]
        gradient_BO, gradients = _filled_up(gradient_BD, kept[-1].dtype), list[Tensor]()
        if ctx.last_relu:
            gradient_BO = gradient_BO.clone()
            _cut_off_back(_flat(gradient_BO), _flat(kept[num]))
        for number in range(num - 1, -1, -1):
            gradients = [gradient_BO.T @ kept[number], gradient_BO.sum(0), *gradients]
            gradient_BO = gradient_BO @ weights[number]
            if number:  # in place: this gradient is ours alone
                _cut_off_back(_flat(gradient_BO), _flat(kept[number]))
        return gradient_BO[: len(gradient_BD)], None, None, *gradients


def _filled_up(x_BZ: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows in this type; in bfloat16 rows of zeros are appended."""
    missing = -len(x_BZ) % _ROWS_MULTIPLE if dtype == torch.bfloat16 else 0
    if not missing:
        return x_BZ.contiguous().to(dtype)
    filled = x_BZ.new_empty((len(x_BZ) + missing, x_BZ.shape[1]), dtype=dtype)
    filled[: len(x_BZ)].copy_(x_BZ)
    filled[len(x_BZ) :].zero_()
    return filled


def _flat(x: Tensor) -> npt.NDArray[np.number]:
    """Return a contiguous tensor's memory; bfloat16, which NumPy does not know, as the integers that order
    alike above zero and are negative below.
    """
    flat: npt.NDArray[np.number] = (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).view(-1).numpy()
    return flat


@compiled
def _cut_off(flat: npt.NDArray[np.number], limit: int) -> None:
    """ReLU in place: what is below the limit becomes 0. NaN stays, so that it is seen."""
    for i in range(len(flat)):
        if flat[i] < limit:
            flat[i] = 0


@compiled
def _cut_off_back(gradient: npt.NDArray[np.number], kept: npt.NDArray[np.number]) -> None:
    """Its gradient: nothing passes where nothing did."""
    for i in range(len(gradient)):
        if kept[i] <= 0:
            gradient[i] = 0
