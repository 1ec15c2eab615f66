"""Gradients of weights computed beside: the same bits, and no mistake goes unnoticed."""

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from learning import World, blocks, configuration
from torch import Tensor, nn

from stream_trainer.models import weight_gradients
from stream_trainer.models.relu_layers import gradients_of_layer, relu_layers
from stream_trainer.models.weight_gradients import WeightGradients


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def gradients(beside: WeightGradients | None, dtype: torch.dtype, num_calls: int) -> list[Tensor]:
    """Return the gradients of the input and of all parameters, after some calls of the same layers."""
    torch.manual_seed(5)
    layers = nn.ModuleList([nn.Linear(6, 40), nn.Linear(40, 30), nn.Linear(30, 4)])
    z = torch.randn(700, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        add = None if beside is None else beside.add
        outputs = [relu_layers([z * call], layers, False, None, add) for call in range(1, num_calls + 1)]
    torch.stack(outputs).float().square().sum().backward()
    if beside is not None:
        beside.wait()
    found = [parameter.grad for parameter in (z, *layers.parameters())]
    assert all(gradient is not None and gradient.dtype == torch.float32 for gradient in found)
    return [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_calls", [1, 2])
def test_they_are_those_of_autograd_bit_for_bit(dtype: torch.dtype, num_calls: int) -> None:
    ours, theirs = gradients(WeightGradients(), dtype, num_calls), gradients(None, dtype, num_calls)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)


def learned(*overrides: str) -> tuple[list[dict[str, float]], list[Tensor], Tensor]:
    """Learn fourteen steps; return the losses, the weights, and what items are then."""
    items, stream = blocks(7, num_users=40, clicks=6)
    world = World(configuration("learning.seed=3", "learning.batch_size=16", *overrides))
    world.add_items({name: {"category": f"c{n % 5}"} for n, name in enumerate(items)})
    ops = [world.click(user, item, k) for k, (user, item) in enumerate(stream)]
    losses = world.learn_all(ops[:224])
    return losses, [p.detach() for p in world.learner.model.parameters()], world.item_embeddings()


@pytest.mark.parametrize("preset", ["default", "paper", "youtube_dnn", "mind", "fm"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_learner_learns_the_same_with_and_without_the_thread(preset: str, precision: str) -> None:
    given = (f"model.preset={preset}", f"learning.precision={precision}")
    losses, weights, items = learned(*given, "learning.gradient_thread=true")
    same_losses, same_weights, same_items = learned(*given, "learning.gradient_thread=false")
    assert losses == same_losses
    assert torch.equal(items, same_items)
    for one, other in zip(weights, same_weights, strict=True):
        assert torch.equal(one, other)


def test_a_step_waits_for_gradients_that_are_late(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _, _ = learned("learning.gradient_thread=false")
    hold_up(monkeypatch, lambda: time.sleep(0.002))
    assert learned("learning.gradient_thread=true")[0] == expected


def test_what_goes_wrong_beside_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise MemoryError("beside")

    hold_up(monkeypatch, fail)
    with pytest.raises(MemoryError, match="beside"):
        learned("learning.gradient_thread=true")


def hold_up(monkeypatch: pytest.MonkeyPatch, first: Callable[[], object]) -> None:
    """Let something happen before each layer's gradients are computed."""

    def late(gradient_BO: Tensor, input_BI: Tensor) -> tuple[Tensor, Tensor]:
        first()
        return gradients_of_layer(gradient_BO, input_BI)

    monkeypatch.setattr(weight_gradients, "gradients_of_layer", late)


def test_where_torch_has_several_threads_they_compute_them(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)
    beside = WeightGradients()
    monkeypatch.setattr(beside, "_thread", None)
    ours, theirs = gradients(beside, torch.float32, 1), gradients(None, torch.float32, 1)
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one, other)
