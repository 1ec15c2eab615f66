"""A tower's layers as one differentiable function: the same products and bits as a chain of `F.linear` and
`F.relu`, without the copies that autograd makes of the widest layers.

Under `torch.autocast` all of it computes in that type; sums stay in float32 inside the products. Legend: B
rows, Z input width, D output width, I and O widths of one layer.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS_MULTIPLE = 256


def relu_layers(z: Tensor, layers: Iterable[nn.Module], last_relu: bool) -> Tensor:
    """Return h = ReLU(W h + b) through all layers (…, D), the last one without ReLU unless so asked."""
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    z_BZ = z.reshape(-1, z.shape[-1])
    h_BD: Tensor = _ReluLayers.apply(z_BZ, last_relu, *parameters)
    return h_BD.view(*z.shape[:-1], h_BD.shape[-1])


class _ReluLayers(torch.autograd.Function):
    @staticmethod
    @torch.amp.custom_fwd(device_type="cpu", cast_inputs=torch.bfloat16)  # type: ignore[untyped-decorator]
    def forward(ctx: Any, z_BZ: Tensor, last_relu: bool, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        kept = [_filled_up(z_BZ)]
        for number, (weight_OI, bias_O) in enumerate(zip(weights, biases, strict=True), start=1):
            h_BO = torch.addmm(bias_O, kept[-1], weight_OI.T)
            kept.append(h_BO.relu_() if number < len(weights) or last_relu else h_BO)
        ctx.last_relu = last_relu
        ctx.save_for_backward(*weights, *kept)
        return kept[-1][: len(z_BZ)]

    @staticmethod
    @torch.amp.custom_bwd(device_type="cpu")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, gradient_BD: Tensor) -> tuple[Tensor | None, ...]:
        num = len(ctx.saved_tensors) // 2
        weights, kept = ctx.saved_tensors[:num], ctx.saved_tensors[num:]
        gradient_BO, gradients = _filled_up(gradient_BD), list[Tensor]()
        if ctx.last_relu:
            gradient_BO = torch.ops.aten.threshold_backward(gradient_BO, kept[num], 0)
        for number in range(num - 1, -1, -1):
            gradients = [gradient_BO.T @ kept[number], gradient_BO.sum(0), *gradients]
            gradient_BO = gradient_BO @ weights[number]
            if number:  # in place: this gradient is ours alone
                torch.ops.aten.threshold_backward.grad_input(
                    gradient_BO, kept[number], 0, grad_input=gradient_BO
                )
        return gradient_BO[: len(gradient_BD)], None, *gradients


def _filled_up(x_BZ: Tensor) -> Tensor:
    """Append rows of zeros in bfloat16: oneDNN compiles its products anew for each number of rows, which
    takes several times as long as they do, and batches differ in how many distinct items they have.
    """
    missing = -len(x_BZ) % _ROWS_MULTIPLE if x_BZ.dtype == torch.bfloat16 else 0
    return F.pad(x_BZ, (0, 0, 0, missing)) if missing else x_BZ
