"""Adam for the towers' weights, which move with every batch. (Rows of IDs have `row_optimiser`.)

Owns the moments. Torch's own fused step, but not its `torch.optim`: the first optimiser of it loads torch's
compiler, which took 1.6 s of every start and is never used, and counting steps takes it as long as moving
the weights.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


class DenseAdam:
    """Kingma & Ba 2015, algorithm 1, with the bits of `torch.optim.Adam(parameters, lr, fused=True)`."""

    def __init__(self, parameters: Iterable[Tensor], learning_rate: float) -> None:
        self._parameters = list(parameters)
        self._learning_rate = learning_rate
        self.state: dict[int, dict[str, Tensor]] = {}
        """By place among the parameters: the number of steps and both moments, once there was a gradient."""

    def zero_grad(self) -> None:
        """Forget the gradients of the batch before."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters that have a gradient against it."""
        moved = {place: p for place, p in enumerate(self._parameters) if p.grad is not None}
        if not moved:
            return
        for place, parameter in moved.items():
            if place not in self.state:
                first, second = (torch.zeros_like(parameter) for _ in range(2))
                self.state[place] = {"step": torch.zeros(()), "exp_avg": first, "exp_avg_sq": second}
        states = [self.state[place] for place in moved]
        for state in states:
            count = state["step"].numpy()
            count += 1
        torch._fused_adam_(
            list(moved.values()),
            [parameter.grad for parameter in moved.values() if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=self._learning_rate,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )
