"""Functions whose loops are compiled: what torch or autograd would do in many walks through memory.

Pure. Those that are differentiable have the formula of their gradient, which is checked against torch's.
Legend: n rows, R of a table, W their width, D width, V values, K embedding width, C places, F features, B
items or queries.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_store.compiled import compiled
from stream_trainer.models.parallel import compiled_parallel, prange

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_SHORTEST = np.float32(1e-12)


def unit_length(x: Tensor) -> Tensor:
    """Divide vectors (…, D) by their length. Zero stays zero.

    >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    unit_nD: Tensor = _UnitLength.apply(x.reshape(-1, x.shape[-1]))
    return unit_nD.view(x.shape)


def pick_rows(x_nD: Tensor, places_T: Tensor) -> Tensor:
    """Return the rows at some places (T, D), as `index_select` does. What arrives at one row is added up in
    the order of the places, by torch too, which takes ten times as long for it.

    >>> pick_rows(torch.tensor([[1.0], [2.0]]), torch.tensor([1, 0, 1])).tolist()
    [[2.0], [1.0], [2.0]]
    """
    picked_TD: Tensor = _PickRows.apply(x_nD, places_T)
    return picked_TD


def pool_values(embedding_VK: Tensor, values_BC: Tensor, counts: Sequence[int]) -> Tensor:
    """Average the embeddings of each feature's values: (B, F × K), zeros where a feature is missing.

    `values_BC` holds rows of `embedding_VK`, -1 where there is none; `counts` says how many of the C columns
    belong to each feature.
    """
    check_places(values_BC, len(embedding_VK))
    pooled: Tensor = _PoolValues.apply(embedding_VK, values_BC.numpy(), np.array(counts, np.int64))
    return pooled


def leading_columns(rows_RW: F32, places_n: I64, widths: Sequence[int]) -> list[F32]:
    """Return copies of the first columns of some rows, (n, width) for each width.

    >>> [part.tolist() for part in leading_columns(np.eye(3, dtype=np.float32), np.array([2, 0]), [1, 2])]
    [[[0.0], [1.0]], [[0.0, 1.0], [0.0, 0.0]]]
    """
    assert not len(places_n) or 0 <= places_n.min() <= places_n.max() < len(rows_RW), "a place outside"
    assert sum(widths) <= rows_RW.shape[1], "wider than a row"
    parts = [np.empty((len(places_n), width), np.float32) for width in widths]
    if parts:
        _copy_columns(rows_RW, places_n, tuple(parts))
    return parts


class _UnitLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nD: Tensor) -> Tensor:
        x = array(x_nD)
        unit, length = np.empty_like(x), np.empty(len(x), np.float32)
        _divide(x, unit, length)
        unit_nD = torch.from_numpy(unit)
        ctx.save_for_backward(unit_nD, torch.from_numpy(length))
        return unit_nD

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_nD: Tensor) -> Tensor:
        """∂/∂x of p = x / |x| is (g − p ⟨p, g⟩) / |x|."""
        unit_nD, length_n = ctx.saved_tensors
        gradient = array(gradient_nD)
        moved = np.empty_like(gradient)
        _divide_back(unit_nD.numpy(), length_n.numpy(), gradient, moved)
        return torch.from_numpy(moved)


class _PickRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nD: Tensor, places_T: Tensor) -> Tensor:
        ctx.places_T, ctx.shape = places_T.numpy(), x_nD.shape
        return x_nD.index_select(0, places_T)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_TD: Tensor) -> tuple[Tensor, None]:
        moved_nD = np.zeros(ctx.shape, np.float32)
        add_rows(moved_nD, ctx.places_T, array(gradient_TD))
        return torch.from_numpy(moved_nD), None


class _PoolValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_VK: Tensor, values_BC: I64, counts_F: I64) -> Tensor:
        embedding = array(embedding_VK)
        pooled = np.zeros((len(values_BC), len(counts_F) * embedding.shape[1]), np.float32)
        _pool(embedding, values_BC, counts_F, pooled)
        ctx.values_BC, ctx.counts_F, ctx.shape = values_BC, counts_F, embedding.shape
        return torch.from_numpy(pooled)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Each value gets its share of the mean's gradient."""
        moved = np.zeros(ctx.shape, np.float32)
        _pool_back(array(gradient), ctx.values_BC, ctx.counts_F, moved)
        return torch.from_numpy(moved), None, None


def check_places(places: Tensor, size: int) -> None:
    """Raise AssertionError where a place is beyond the end: compiled loops would look there, too."""
    assert not places.numel() or int(places.max()) < size, f"place {int(places.max())} of {size}"


def array(x: Tensor) -> F32:
    """Return the memory of a tensor of float32, copied only if its rows do not stand one behind the other."""
    memory: F32 = x.detach().contiguous().numpy()
    assert memory.dtype == np.float32, "loops are compiled for float32"
    return memory


@compiled
def add_rows(moved_nD: F32, places_T: I64, added_TD: F32) -> None:
    """Add each row to the one at its place, in this order. Nobody looks whether the places are there."""
    for t in range(len(places_T)):
        for d in range(moved_nD.shape[1]):
            moved_nD[places_T[t], d] += added_TD[t, d]


@compiled_parallel
def _copy_columns(rows_RW: F32, places_n: I64, parts: tuple[F32, ...]) -> None:
    for n in prange(len(places_n)):
        row_W, start = rows_RW[places_n[n]], 0
        for part in range(len(parts)):
            width = parts[part].shape[1]
            for k in range(width):
                parts[part][n, k] = row_W[start + k]
            start += width


@compiled_parallel
def _divide(x_nD: F32, unit_nD: F32, length_n: F32) -> None:
    for row in prange(len(x_nD)):
        square = np.float32(0)
        for d in range(x_nD.shape[1]):
            square += x_nD[row, d] * x_nD[row, d]
        length = max(np.sqrt(square), _SHORTEST)
        length_n[row] = length
        for d in range(x_nD.shape[1]):
            unit_nD[row, d] = x_nD[row, d] / length


@compiled_parallel
def _divide_back(unit_nD: F32, length_n: F32, gradient_nD: F32, moved_nD: F32) -> None:
    for row in prange(len(unit_nD)):
        along = np.float32(0)
        if length_n[row] > _SHORTEST:
            for d in range(unit_nD.shape[1]):
                along += unit_nD[row, d] * gradient_nD[row, d]
        for d in range(unit_nD.shape[1]):
            moved_nD[row, d] = (gradient_nD[row, d] - along * unit_nD[row, d]) / length_n[row]


@compiled_parallel
def _pool(embedding_VK: F32, values_BC: I64, counts_F: I64, pooled: F32) -> None:
    width = embedding_VK.shape[1]
    for row in prange(len(values_BC)):
        start = 0
        for feature in range(len(counts_F)):
            num = 0
            for column in range(start, start + counts_F[feature]):
                value = values_BC[row, column]
                if value >= 0:
                    num += 1
                    for k in range(width):
                        pooled[row, feature * width + k] += embedding_VK[value, k]
            if num > 1:
                for k in range(feature * width, (feature + 1) * width):
                    pooled[row, k] /= np.float32(num)
            start += counts_F[feature]


@compiled
def _pool_back(gradient: F32, values_BC: I64, counts_F: I64, moved_VK: F32) -> None:
    width = moved_VK.shape[1]
    for row in range(len(values_BC)):
        start = 0
        for feature in range(len(counts_F)):
            stop = start + counts_F[feature]
            num = 0
            for column in range(start, stop):
                num += values_BC[row, column] >= 0
            for column in range(start, stop):
                value = values_BC[row, column]
                if value >= 0:
                    for k in range(width):
                        moved_VK[value, k] += gradient[row, feature * width + k] / np.float32(num)
            start = stop
