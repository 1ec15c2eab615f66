"""Loops that torch's threads share, against the same loops on one thread: to the last bit."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import FunctionType

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from feature_store.row_layout import Field, RowLayout
from stream_trainer.models import alignment, dropout, history_pool, loops, row_optimiser
from stream_trainer.models import candidate_scores as scores
from stream_trainer.models import relu_layers as layers
from stream_trainer.models.alignment import category_alignment_loss
from stream_trainer.models.candidate_scores import candidate_scores
from stream_trainer.models.dropout import Draws, Dropout
from stream_trainer.models.history_pool import pool_history
from stream_trainer.models.loops import leading_columns, pool_values, unit_length
from stream_trainer.models.losses import bce_loss, sampled_softmax_loss
from stream_trainer.models.relu_layers import relu_layers
from stream_trainer.models.row_optimiser import update_rows

Arrays = list[npt.NDArray[np.float32]]
NUM, WIDTH = 403, 8
LOOPS = [alignment, scores, dropout, history_pool, layers, loops, row_optimiser]


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def with_gradient(function: Callable[[Tensor], Tensor]) -> Arrays:
    """Return what a function makes of some rows, and the gradient of a sum of it."""
    x = torch.randn(NUM, WIDTH, generator=torch.Generator().manual_seed(1)).requires_grad_(True)
    y = function(x)
    (y * torch.arange(1.0, y.numel() + 1).view(y.shape) / y.numel()).sum().backward()
    assert x.grad is not None
    return [y.detach().numpy(), x.grad.numpy()]


def drawn(high: int, *shape: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(2).integers(-1, high, size=shape))


def layers_in_bfloat16() -> Arrays:
    torch.manual_seed(3)
    layers = nn.ModuleList([nn.Linear(WIDTH, 9), nn.Linear(9, 7)])
    with torch.autocast("cpu", torch.bfloat16):
        return with_gradient(lambda x: relu_layers([x], layers, True).float())


def moved(optimiser: str) -> Arrays:
    layout = RowLayout((Field("a", 5, "learned"), Field("b", 3, "learned")), optimiser)
    rows = layout.new_rows(0, [b"%d" % n for n in range(2 * NUM)])
    rng = np.random.default_rng(4)
    for _ in range(3):
        slots = rng.permutation(2 * NUM)[:NUM]
        gradients = [rng.normal(size=(NUM, width)).astype(np.float32) for width in (5, 3)]
        update_rows(layout, rows, slots, gradients, 0.01)
    return [rows]


def copied() -> Arrays:
    rows = np.random.default_rng(5).normal(size=(NUM, WIDTH)).astype(np.float32)
    return leading_columns(rows, np.random.default_rng(6).integers(NUM, size=3 * NUM), [2, 5])


def with_dropout() -> Arrays:
    kept = Draws(7).kept((NUM, WIDTH), 0.3)
    return with_gradient(lambda x: relu_layers([x[:, :3], x[:, 3:]], [], False, Dropout(kept, 2.0)))


CASES: dict[str, Callable[[], Arrays]] = {
    "unit length": lambda: with_gradient(unit_length),
    "values": lambda: with_gradient(lambda x: pool_values(x, drawn(NUM, NUM, 5), [2, 3])),
    "history": lambda: with_gradient(lambda x: pool_history(x, drawn(NUM, NUM, 6))),
    "scores": lambda: with_gradient(
        lambda x: candidate_scores(x, x, torch.arange(NUM), drawn(NUM, NUM, 3), torch.arange(5)).clamp(min=0)
    ),
    "alignment": lambda: with_gradient(lambda x: category_alignment_loss(x, drawn(7, NUM))),
    "layers in bfloat16": layers_in_bfloat16,
    "dropout": with_dropout,
    "bce": lambda: with_gradient(lambda x: bce_loss(x @ x.T)),
    "softmax": lambda: with_gradient(lambda x: sampled_softmax_loss(x @ x.T)),
    "adam": lambda: moved("adam"),
    "rowwise adam": lambda: moved("rowwise_adam"),
    "adagrad": lambda: moved("adagrad"),
    "columns": copied,
}


@pytest.mark.parametrize("case", CASES)
def test_threads_change_nothing(case: str) -> None:
    torch.set_num_threads(1)
    alone = CASES[case]()
    torch.set_num_threads(2)
    for _ in range(3):
        for one, shared in zip(alone, CASES[case](), strict=True):
            np.testing.assert_array_equal(one, shared)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("case", sorted(CASES.keys() - {"bce", "softmax"}))  # those threads do not share
def test_a_loop_computes_what_python_would(
    case: str, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the last bit: so it does not matter which process has compiled it, when, and for which processor."""
    torch.set_num_threads(num_threads)
    by_loops = CASES[case]()
    for module in LOOPS:
        for name, function in list(vars(module).items()):
            if isinstance(function, FunctionType) and hasattr(function, "__wrapped__"):
                monkeypatch.setattr(module, name, function.__wrapped__)
    for compiled, interpreted in zip(by_loops, CASES[case](), strict=True):
        np.testing.assert_array_equal(compiled, interpreted)


def test_torch_keeps_its_number_of_threads() -> None:
    """Numba, when its threads start, sets its own number for all of OpenMP: that of the cores."""
    code = """
import numba, numpy, torch
from stream_trainer.models.loops import leading_columns
torch.set_num_threads(2)
leading_columns(numpy.ones((9, 4), numpy.float32), numpy.arange(9), [4])
print(numba.threading_layer(), torch.get_num_threads(), numba.get_num_threads())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NUMBA_NUM_THREADS": "4"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["omp", "2", "2"]
