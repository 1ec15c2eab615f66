"""The tower's layers as one function, against the chain of torch's own layers. Legend as there."""

from collections.abc import Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stream_trainer.models.dropout import Dropout
from stream_trainer.models.relu_layers import relu_layers


def chain(z: Tensor, layers: Iterable[nn.Module], last_relu: bool) -> Tensor:
    """Return the same by torch's own layers."""
    layers = list(layers)
    h = z
    for number, layer in enumerate(layers, start=1):
        h = layer(h)
        h = F.relu(h) if number < len(layers) or last_relu else h
    return h


def in_one(z: Tensor, layers: Iterable[nn.Module], last_relu: bool) -> Tensor:
    """Return ours of an input that comes in one part."""
    return relu_layers([z], layers, last_relu)


def make(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.ModuleList]:
    """Return inputs and three layers, by one seed."""
    torch.manual_seed(1)
    layers = nn.ModuleList(nn.Linear(a, b, dtype=dtype) for a, b in [(shape[-1], 9), (9, 7), (7, 4)])
    return torch.randn(shape, dtype=dtype, requires_grad=True), layers


def learned(function: object, shape: tuple[int, ...], last_relu: bool) -> list[Tensor]:
    """Return the output, and every gradient of its square sum."""
    z, layers = make(shape)
    assert callable(function)
    output = function(z, layers, last_relu)
    output.square().sum().backward()
    gradients = [parameter.grad for parameter in (z, *layers.parameters())]
    return [output, *(gradient for gradient in gradients if gradient is not None)]


@pytest.mark.parametrize("shape", [(50, 6), (10, 5, 6), (0, 6)])
@pytest.mark.parametrize("last_relu", [False, True])
def test_it_is_bit_for_bit_the_chain_of_layers(shape: tuple[int, ...], last_relu: bool) -> None:
    ours, theirs = learned(in_one, shape, last_relu), learned(chain, shape, last_relu)
    assert len(ours) == len(theirs) == 8
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def test_the_gradient_is_the_slope() -> None:
    z, layers = make((5, 6), torch.float64)
    parameters = tuple(layers.parameters())
    assert torch.autograd.gradcheck(lambda z, *_: in_one(z, layers, False), (z, *parameters))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_of_the_parts_side_by_side_is_left_what_dropout_leaves(dtype: torch.dtype) -> None:
    """As by `torch.cat` and a product before the layers, in float32; gradients come back in it."""
    z, layers = make((300, 6))
    first, second = (part.detach().clone().requires_grad_() for part in z.split([4, 2], dim=1))
    dropout = Dropout(torch.rand(z.shape) < 0.7, 1 / 0.7)
    factor = dropout.kept_BZ / 0.7
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, theirs = relu_layers([first, second], layers, False, dropout), in_one(z * factor, layers, False)
    assert torch.equal(ours, theirs)
    ours.float().square().sum().backward()
    theirs.float().square().sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert first.grad.dtype == torch.float32
    assert torch.equal(torch.cat([first.grad, second.grad], dim=1), z.grad)


@pytest.mark.parametrize("shape", [(0, 6), (1, 6), (256, 6), (300, 6), (10, 5, 6)])
@pytest.mark.parametrize("last_relu", [False, True])
def test_under_autocast_it_computes_in_bfloat16_and_gradients_come_back_in_float32(
    shape: tuple[int, ...], last_relu: bool
) -> None:
    """Rows that fill up the last block count for nothing, though ReLU of a bias is not zero."""
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = learned(in_one, shape, last_relu), learned(chain, shape, last_relu)
    assert ours[0].dtype == theirs[0].dtype == torch.bfloat16
    for one, other in zip(ours, theirs, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=0.03, atol=0.03)
    assert {gradient.dtype for gradient in ours[1:]} == {torch.float32}


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_no_number_is_not_cut_off(sign: float, dtype: torch.dtype) -> None:
    """A NaN that became 0 would leave constant embeddings, and nobody would know why."""
    z, layers = make((3, 6))
    with torch.no_grad():
        layers[0].bias[0] = torch.copysign(torch.tensor(float("nan")), torch.tensor(sign))
        layers[0].bias[1] = -float("inf")
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, theirs = in_one(z, layers, False), chain(z, layers, False)
    assert theirs.isnan().all()
    assert ours.isnan().all()
