"""A tower's layers as one differentiable function: the same products and bits as a chain of `F.linear` and
`F.relu`, without the copies that autograd makes of the widest layers.

Under `torch.autocast` all of it computes in that type; sums stay in float32 inside the products. Legend: B
rows, Z input width, D output width, I and O widths of one layer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from stream_trainer.models.dropout import Dropout
from stream_trainer.models.parallel import compiled_parallel, prange

Beside: TypeAlias = Callable[[Sequence[Tensor], Tensor, Tensor], None]
"""Takes a layer's W and b, the gradient (B, O) of what it gave and what it was given (B, I), and sees to the
gradients of W and b.
"""
I16 = npt.NDArray[np.int16]
# oneDNN compiles its products in bfloat16 anew for each number of rows, which takes several times as long as
# they do, and batches differ in how many distinct items they have: rows of zeros fill up to a multiple.
_ROWS_MULTIPLE = 256
_LAST_NAN = -127  # a NaN with a sign in bfloat16, as an integer; below it are minus infinity and the numbers


def relu_layers(
    parts: Sequence[Tensor],
    layers: Iterable[nn.Module],
    last_relu: bool,
    dropout: Dropout | None = None,
    beside: Beside | None = None,
) -> Tensor:
    """Return h = ReLU(W h + b) through all layers (…, D), the last one without ReLU unless so asked. The
    first h is the parts (…, ·) side by side, or what `dropout` leaves of them. With `beside`, autograd knows
    nothing of the gradients of W and b.
    """
    parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
    flat = [part.reshape(-1, part.shape[-1]) for part in parts]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else flat[0].dtype
    h_BD: Tensor = _ReluLayers.apply(dtype, last_relu, dropout, beside, len(flat), *flat, *parameters)
    return h_BD.view(*parts[0].shape[:-1], h_BD.shape[-1])


class _ReluLayers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        dtype: torch.dtype,
        last_relu: bool,
        dropout: Dropout | None,
        beside: Beside | None,
        num_parts: int,
        *parts_and_parameters: Tensor,
    ) -> Tensor:
        parts, parameters = parts_and_parameters[:num_parts], parts_and_parameters[num_parts:]
        with torch.autocast("cpu", enabled=False):
            weights, biases = ([p.to(dtype) for p in parameters[start::2]] for start in (0, 1))
            kept = [_side_by_side(parts, dtype, dropout)]
            for number, (weight_OI, bias_O) in enumerate(zip(weights, biases, strict=True), start=1):
                kept.append(torch.addmm(bias_O, kept[-1], weight_OI.T))
                if number < len(weights) or last_relu:
                    _cut_off(kept[-1])
        ctx.last_relu, ctx.dropout = last_relu, dropout
        ctx.beside, ctx.parameters = beside, parameters
        ctx.widths, ctx.dtypes = [part.shape[1] for part in parts], [part.dtype for part in parts]
        ctx.save_for_backward(*weights, *kept)
        return kept[-1][: len(parts[0])]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BD: Tensor) -> tuple[Tensor | None, ...]:
        num = len(ctx.saved_tensors) // 2
        weights, kept = ctx.saved_tensors[:num], ctx.saved_tensors[num:]
        gradient_BO, gradients = _filled_up(gradient_BD, kept[-1].dtype), list[Tensor | None]()
        if ctx.last_relu:
            gradient_BO = gradient_BO.clone()
            _cut_off_back(gradient_BO, kept[num])
        for number in range(num - 1, -1, -1):
            if ctx.beside is None:
                gradients = [*gradients_of_layer(gradient_BO, kept[number]), *gradients]
            else:
                ctx.beside(ctx.parameters[2 * number : 2 * number + 2], gradient_BO, kept[number])
                gradients = [None, None, *gradients]
            gradient_BO = gradient_BO @ weights[number]
            if number:  # in place: this gradient is ours alone
                _cut_off_back(gradient_BO, kept[number])
        to_parts = _apart(gradient_BO[: len(gradient_BD)], ctx.widths, ctx.dropout, ctx.dtypes)
        return None, None, None, None, None, *to_parts, *gradients


def gradients_of_layer(gradient_BO: Tensor, input_BI: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of W (O, I) and b (O,) of h = W x + b, in the type of what is given."""
    return gradient_BO.T @ input_BI, gradient_BO.sum(0)


def _side_by_side(parts: Sequence[Tensor], dtype: torch.dtype, dropout: Dropout | None) -> Tensor:
    """Return the parts (B, ·) as one (B, Z) in this type; in bfloat16 rows are appended."""
    if dropout is not None:
        return _filled_up(dropout.side_by_side(parts), dtype)
    widths, num = [part.shape[1] for part in parts], len(parts[0])
    z_BZ = parts[0].new_empty((num + _num_missing(num, dtype), sum(widths)), dtype=dtype)
    for part, place_BX in zip(parts, torch.split(z_BZ[:num], widths, dim=1), strict=True):
        place_BX.copy_(part)
    z_BZ[num:].zero_()
    return z_BZ


def _apart(
    gradient_BZ: Tensor, widths: Sequence[int], dropout: Dropout | None, dtypes: Sequence[torch.dtype]
) -> list[Tensor]:
    """Return the gradient of each part, contiguous, in the part's own type."""
    if dropout is None:
        parts: Sequence[Tensor] = torch.split(gradient_BZ, list(widths), dim=1)
    else:
        parts = dropout.apart(gradient_BZ, widths)
    return [part.to(dtype).contiguous() for part, dtype in zip(parts, dtypes, strict=True)]


def _num_missing(num: int, dtype: torch.dtype) -> int:
    return -num % _ROWS_MULTIPLE if dtype == torch.bfloat16 else 0


def _filled_up(x_BZ: Tensor, dtype: torch.dtype) -> Tensor:
    """Return rows in this type; in bfloat16 rows of zeros are appended."""
    missing = _num_missing(len(x_BZ), dtype)
    if not missing:
        return x_BZ.contiguous().to(dtype)
    filled = x_BZ.new_empty((len(x_BZ) + missing, x_BZ.shape[1]), dtype=dtype)
    filled[: len(x_BZ)].copy_(x_BZ)
    filled[len(x_BZ) :].zero_()
    return filled


def _cut_off(x: Tensor) -> None:
    """ReLU in place. NaN stays, so that it is seen."""
    if x.dtype == torch.bfloat16:
        _cut_off_bfloat16(_integers(x))
    else:
        x.relu_()


def _cut_off_back(gradient: Tensor, kept: Tensor) -> None:
    """Its gradient, in place: nothing passes where nothing did."""
    if kept.dtype == torch.bfloat16:
        _cut_off_back_bfloat16(_integers(gradient), _integers(kept))
    else:
        torch.ops.aten.threshold_backward.grad_input(gradient, kept, 0, grad_input=gradient)


def _integers(x: Tensor) -> I16:
    """Return a contiguous tensor's memory as the integers that order like it above zero and are negative
    below: NumPy does not know bfloat16. Torch's own ReLU takes twice as long in it as in integers.
    """
    flat: I16 = x.view(torch.int16).view(-1).numpy()
    return flat


@compiled_parallel
def _cut_off_bfloat16(flat: I16) -> None:
    for i in prange(len(flat)):
        if flat[i] < _LAST_NAN:
            flat[i] = 0


@compiled_parallel
def _cut_off_back_bfloat16(gradient: I16, kept: I16) -> None:
    for i in prange(len(gradient)):
        if kept[i] <= 0:
            gradient[i] = 0
