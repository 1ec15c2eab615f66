"""Differentiable functions whose loops are compiled: what autograd would do in many walks through memory.

Pure. Each has the formula of its gradient; those are checked against torch's. Legend: n rows, D width, V
values, K embedding width, C places, F features, B queries, T items, X candidates of each query
and M of all, J = X + M.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream_trainer.models.compiled import compiled

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


def pool_values(embedding_VK: Tensor, values_BC: Tensor, counts: Sequence[int]) -> Tensor:
    """Average the embeddings of each feature's values: (B, F × K), zeros where a feature is missing.

    `values_BC` holds rows of `embedding_VK`, -1 where there is none; `counts` says how many of the C columns
    belong to each feature.
    """
    _check_places(values_BC, len(embedding_VK))
    pooled: Tensor = _PoolValues.apply(embedding_VK, values_BC.numpy(), np.array(counts, np.int64))
    return pooled


def inner_products(users_BD: Tensor, items_TD: Tensor, own_BX: Tensor, shared_M: Tensor) -> Tensor:
    """Return each query's inner products with items of its own, 0 where a place is -1, and with those that
    all queries share: (B, X + M).

    >>> users, items = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]])
    >>> inner_products(users, items, torch.tensor([[1, -1]]), torch.tensor([0])).tolist()
    [[17.0, 0.0, 11.0]]
    """
    _check_places(own_BX, len(items_TD))
    products: Tensor = _InnerProducts.apply(users_BD, items_TD, own_BX.numpy(), shared_M)
    return products


def are_negatives(positive_B: Tensor, own_BX: Tensor, shared_M: Tensor) -> Tensor:
    """Return which of those candidates there are and are not the query's positive itself: (B, X + M).

    >>> are_negatives(torch.tensor([4, 5]), torch.tensor([[4, 6], [-1, 6]]), torch.tensor([5])).tolist()
    [[False, True, True], [False, True, False]]
    """
    valid = np.empty((len(own_BX), own_BX.shape[1] + len(shared_M)), np.bool_)
    _differ(positive_B.numpy(), own_BX.numpy(), shared_M.numpy(), valid)
    return torch.from_numpy(valid)


class _UnitLength(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_nD: Tensor) -> Tensor:
        x = _array(x_nD)
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
        gradient = _array(gradient_nD)
        moved = np.empty_like(gradient)
        _divide_back(unit_nD.numpy(), length_n.numpy(), gradient, moved)
        return torch.from_numpy(moved)


class _PoolValues(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embedding_VK: Tensor, values_BC: I64, counts_F: I64) -> Tensor:
        embedding = _array(embedding_VK)
        pooled = np.zeros((len(values_BC), len(counts_F) * embedding.shape[1]), np.float32)
        _pool(embedding, values_BC, counts_F, pooled)
        ctx.values_BC, ctx.counts_F, ctx.shape = values_BC, counts_F, embedding.shape
        return torch.from_numpy(pooled)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """Each value gets its share of the mean's gradient."""
        moved = np.zeros(ctx.shape, np.float32)
        _pool_back(_array(gradient), ctx.values_BC, ctx.counts_F, moved)
        return torch.from_numpy(moved), None, None


class _InnerProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, users_BD: Tensor, items_TD: Tensor, own_BX: I64, shared_M: Tensor) -> Tensor:
        num_own = own_BX.shape[1]
        products_BJ = users_BD.new_empty(len(own_BX), num_own + len(shared_M))
        _multiply(_array(users_BD), _array(items_TD), own_BX, products_BJ.numpy())
        shared_MD = items_TD.index_select(0, shared_M)
        torch.mm(users_BD, shared_MD.T, out=products_BJ[:, num_own:])
        ctx.own_BX = own_BX
        ctx.save_for_backward(users_BD, items_TD, shared_M, shared_MD)
        return products_BJ

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient_BJ: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """∂⟨u, v⟩/∂u is v, and u the other way."""
        users_BD, items_TD, shared_M, shared_MD = ctx.saved_tensors
        gradient_BM = gradient_BJ[:, ctx.own_BX.shape[1] :]
        moved_BD, moved_TD = gradient_BM @ shared_MD, torch.zeros_like(items_TD)
        moved_TD.index_add_(0, shared_M, gradient_BM.T @ users_BD)
        arrays = (_array(users_BD), _array(items_TD), ctx.own_BX, _array(gradient_BJ))
        _multiply_back(*arrays, moved_BD.numpy(), moved_TD.numpy())
        return moved_BD, moved_TD, None, None


def _check_places(places: Tensor, size: int) -> None:
    """Compiled loops look where they are told to: beyond the end, too."""
    assert not places.numel() or int(places.max()) < size, f"place {int(places.max())} of {size}"


def _array(x: Tensor) -> F32:
    """Return a tensor's memory, copied only if its rows do not stand one behind the other."""
    array: F32 = x.detach().contiguous().numpy()
    assert array.dtype == np.float32, "loops are compiled for float32"
    return array


@compiled
def _divide(x_nD: F32, unit_nD: F32, length_n: F32) -> None:
    for row in range(len(x_nD)):
        square = np.float32(0)
        for d in range(x_nD.shape[1]):
            square += x_nD[row, d] * x_nD[row, d]
        length = max(np.sqrt(square), _SHORTEST)
        length_n[row] = length
        for d in range(x_nD.shape[1]):
            unit_nD[row, d] = x_nD[row, d] / length


@compiled
def _divide_back(unit_nD: F32, length_n: F32, gradient_nD: F32, moved_nD: F32) -> None:
    for row in range(len(unit_nD)):
        along = np.float32(0)
        if length_n[row] > _SHORTEST:
            for d in range(unit_nD.shape[1]):
                along += unit_nD[row, d] * gradient_nD[row, d]
        for d in range(unit_nD.shape[1]):
            moved_nD[row, d] = (gradient_nD[row, d] - along * unit_nD[row, d]) / length_n[row]


@compiled
def _pool(embedding_VK: F32, values_BC: I64, counts_F: I64, pooled: F32) -> None:
    width = embedding_VK.shape[1]
    for row in range(len(values_BC)):
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


@compiled
def _multiply(users_BD: F32, items_TD: F32, places_BX: I64, products_BJ: F32) -> None:
    for b in range(len(places_BX)):
        for x in range(places_BX.shape[1]):
            place, product = places_BX[b, x], np.float32(0)
            if place >= 0:
                for d in range(users_BD.shape[1]):
                    product += users_BD[b, d] * items_TD[place, d]
            products_BJ[b, x] = product


@compiled
def _multiply_back(
    users_BD: F32, items_TD: F32, places_BX: I64, gradient_BJ: F32, moved_BD: F32, moved_TD: F32
) -> None:
    for b in range(len(places_BX)):
        for x in range(places_BX.shape[1]):
            place, gradient = places_BX[b, x], gradient_BJ[b, x]
            if place >= 0:
                for d in range(users_BD.shape[1]):
                    moved_BD[b, d] += gradient * items_TD[place, d]
                    moved_TD[place, d] += gradient * users_BD[b, d]


@compiled
def _differ(positive_B: I64, own_BX: I64, shared_M: I64, valid_BJ: npt.NDArray[np.bool_]) -> None:
    num_own = own_BX.shape[1]
    for b in range(len(positive_B)):
        positive = positive_B[b]
        for x in range(num_own):
            valid_BJ[b, x] = own_BX[b, x] >= 0 and own_BX[b, x] != positive
        for m in range(len(shared_M)):
            valid_BJ[b, num_own + m] = shared_M[m] != positive
