"""Adam, row-wise Adam and row-wise Adagrad on rows where they stand: only the rows of a batch move, as with
torch's SparseAdam.

Pure. Each row counts its own steps, so that a row met late is corrected like one met early and nothing
depends on when others were learned. Legend: R rows of the table, W width of a row, n rows that move, F
learned fields, X width of one of them.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from feature_store.row_layout import RowLayout
from stream_trainer.models.parallel import compiled_parallel, prange

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_BETA1, _BETA2 = 0.9, 0.999
_NEW1, _NEW2, _EPSILON = np.float32(1 - _BETA1), np.float32(1 - _BETA2), np.float32(1e-8)
_ALL_STEPS = 32_768  # by then neither correction differs from 1 in float32


def update_rows(
    layout: RowLayout, rows_RW: F32, slots_n: I64, gradients: Sequence[F32], learning_rate: float
) -> None:
    """Move the learned fields of distinct rows (threads share them) against their gradients (n, X), one for
    each field in the layout's order, optimiser state included.
    """
    assert [gradient.shape for gradient in gradients] == [(len(slots_n), f.width) for f in layout.learned]
    if not gradients or not len(slots_n):
        return
    assert 0 <= slots_n.min() <= slots_n.max() < len(rows_RW), "a slot outside of the table"
    start, given = layout.num_values, tuple(np.ascontiguousarray(gradient) for gradient in gradients)
    if layout.optimiser == "adagrad":
        _adagrad(rows_RW, slots_n, given, np.float32(learning_rate))
        return
    update = _adam if layout.optimiser == "adam" else _rowwise_adam
    update(rows_RW, slots_n, given, start, *_corrections(), np.float32(learning_rate))


@cache
def _corrections() -> tuple[F32, F32]:
    """Return 1 - β^t of both moments for each count t of steps."""
    steps, one = np.arange(_ALL_STEPS, dtype=np.float32), np.float32(1)
    return one - np.float32(_BETA1) ** steps, one - np.float32(_BETA2) ** steps


@compiled_parallel
def _adam(
    rows_RW: F32, slots_n: I64, gradients: tuple[F32, ...], start: int, one: F32, two: F32, rate: np.float32
) -> None:
    """Kingma & Ba 2015, algorithm 1."""
    learned = (rows_RW.shape[1] - 1 - start) // 2
    for n in prange(len(slots_n)):
        row = rows_RW[slots_n[n]]
        row[-1] += np.float32(1)
        step = min(int(row[-1]), len(one) - 1)
        step_rate = rate / one[step]
        at = 0
        for field in range(len(gradients)):
            for x in range(gradients[field].shape[1]):
                gradient = gradients[field][n, x]
                first, second = row[start + at], row[start + learned + at]
                first += (gradient - first) * _NEW1
                second += (gradient * gradient - second) * _NEW2
                row[start + at], row[start + learned + at] = first, second
                row[at] -= step_rate * first / (np.sqrt(second / two[step]) + _EPSILON)
                at += 1


@compiled_parallel
def _rowwise_adam(
    rows_RW: F32, slots_n: I64, gradients: tuple[F32, ...], start: int, one: F32, two: F32, rate: np.float32
) -> None:
    """Adam with one second moment for each field of a row, the mean over its floats (FBGEMM's "partial
    row-wise Adam"): two thirds of the bytes.
    """
    seconds = rows_RW.shape[1] - 1 - len(gradients)
    for n in prange(len(slots_n)):
        row = rows_RW[slots_n[n]]
        row[-1] += np.float32(1)
        step = min(int(row[-1]), len(one) - 1)
        at = 0
        for field in range(len(gradients)):
            gradient_X = gradients[field][n]
            width = len(gradient_X)
            square = np.float32(0)
            for x in range(width):
                square += gradient_X[x] * gradient_X[x]
            second = row[seconds + field]
            second += (square / np.float32(width) - second) * _NEW2
            row[seconds + field] = second
            scale = rate / one[step] / (np.sqrt(second / two[step]) + _EPSILON)
            values_X, first_X = row[at : at + width], row[start + at : start + at + width]
            for x in range(width):
                first = first_X[x] + (gradient_X[x] - first_X[x]) * _NEW1
                first_X[x] = first
                values_X[x] -= scale * first
            at += width


@compiled_parallel
def _adagrad(rows_RW: F32, slots_n: I64, gradients: tuple[F32, ...], rate: np.float32) -> None:
    """Duchi et al. 2011 with one accumulator a row: the mean square of its gradients."""
    for n in prange(len(slots_n)):
        row = rows_RW[slots_n[n]]
        square, learned = np.float32(0), 0
        for field in range(len(gradients)):
            for x in range(gradients[field].shape[1]):
                square += gradients[field][n, x] * gradients[field][n, x]
            learned += gradients[field].shape[1]
        row[-1] += square / np.float32(learned)
        scale = rate / (np.sqrt(row[-1]) + _EPSILON)
        at = 0
        for field in range(len(gradients)):
            for x in range(gradients[field].shape[1]):
                row[at] -= scale * gradients[field][n, x]
                at += 1
