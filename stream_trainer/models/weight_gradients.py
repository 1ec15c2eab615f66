"""Gradients of layers' weights, in a thread beside the one that learns: they are a third of a step's
products, and nothing waits for them before the optimiser moves the weights.

Owns that thread. Torch lets go of Python's lock during a product, so the two compute at once; what they
compute, and in which order, is the same as in one. Legend: B rows, O and I widths of one layer.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from stream_trainer.models.relu_layers import gradients_of_layer


class WeightGradients:
    """What back-propagation owes to weights. The thread starts with the first gradient, and ends when this
    object does.
    """

    def __init__(self) -> None:
        # Torch's number of threads is each thread's own, and all cores unless told.
        self._thread = ThreadPoolExecutor(1, "weight-gradients", torch.set_num_threads, (1,))
        self._begun: list[Future[None]] = []

    def add(self, parameters: Sequence[Tensor], gradient_BO: Tensor, input_BI: Tensor) -> None:
        """Begin to add to the gradients of a layer's W and b; nobody may change the two tensors any more.
        Where torch has several threads, they have the cores: it is done here.
        """
        if torch.get_num_threads() > 1:
            _add(parameters, gradient_BO, input_BI)
            return
        self._begun.append(self._thread.submit(_add, parameters, gradient_BO, input_BI))

    def wait(self) -> None:
        """Return once all that was begun stands in the parameters; raises what went wrong with it."""
        begun, self._begun = self._begun, []
        for future in begun:
            future.result()


@torch.no_grad()
def _add(parameters: Sequence[Tensor], gradient_BO: Tensor, input_BI: Tensor) -> None:
    gradients = gradients_of_layer(gradient_BO, input_BI)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        whole = gradient.to(parameter.dtype)
        parameter.grad = whole if parameter.grad is None else parameter.grad + whole
