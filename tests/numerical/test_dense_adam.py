"""Adam of the towers against torch's own, bit by bit."""

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

from stream_trainer.models.dense_adam import DenseAdam

_START = """
import sys
from learning import World, blocks, configuration
items, clicks = blocks(0, num_blocks=1, num_items=5, num_users=4, clicks=2)
world = World(configuration("learning.batch_size=4"))
world.add_items(items)
world.learn_all([world.click(user, item, n) for n, (user, item) in enumerate(clicks)])
assert world.learner.optimiser.state
sys.exit("torch._dynamo" in sys.modules)
"""


def test_it_moves_weights_as_torch_does_bit_by_bit() -> None:
    """One parameter gets no gradient at first: it takes its first step later."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in [(4, 3), (3,), ()]]
    ours, theirs = ([tensor.clone().requires_grad_() for tensor in start] for _ in range(2))
    adam = DenseAdam(ours, 0.01)
    torchs = torch.optim.Adam(theirs, lr=0.01, fused=True)
    for step in range(20):
        gradients: list[Tensor | None] = [torch.randn(t.shape, generator=generator) for t in start]
        if step < 5:
            gradients[1] = None
        adam.zero_grad()
        assert all(parameter.grad is None for parameter in ours)
        for parameters in (ours, theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()
        adam.step()
        torchs.step()
        assert all(map(torch.equal, ours, theirs))
    expected = torchs.state_dict()["state"]
    assert adam.state.keys() == expected.keys()
    for place, state in adam.state.items():
        assert state.keys() == expected[place].keys()
        assert all(torch.equal(state[name], expected[place][name]) for name in state)


def test_learning_does_not_load_the_compiler() -> None:
    """It takes 1.6 s of every start."""
    subprocess.run([sys.executable, "-c", _START], check=True, cwd=Path(__file__).parents[1])
