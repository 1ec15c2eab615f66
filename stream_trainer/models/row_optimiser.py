"""Adam, row-wise Adam and row-wise Adagrad on gathered rows: only the rows of a batch move, as with torch's
SparseAdam.

Pure. Each row counts its own steps, so that a row met late is corrected like one met early and nothing
depends on when others were learned. Legend: n rows, W width of a row, E learned floats.
"""

from torch import Tensor

from feature_store.rows import RowLayout

_BETA1, _BETA2, _EPSILON = 0.9, 0.999, 1e-8


def update_rows(layout: RowLayout, rows_nW: Tensor, gradient_nE: Tensor, learning_rate: float) -> None:
    """Move the learned part of distinct rows against their gradient, in place, optimiser state included."""
    if layout.optimiser == "adam":
        _adam(layout, rows_nW, gradient_nE, learning_rate)
    elif layout.optimiser == "rowwise_adam":
        _rowwise_adam(layout, rows_nW, gradient_nE, learning_rate)
    else:
        _adagrad(layout, rows_nW, gradient_nE, learning_rate)


def _adam(layout: RowLayout, rows_nW: Tensor, gradient_nE: Tensor, learning_rate: float) -> None:
    """Kingma & Ba 2015, algorithm 1."""
    learned, start = layout.num_learned, layout.num_values
    step_n1 = rows_nW[:, -1:]
    step_n1 += 1
    first_nE = rows_nW[:, start : start + learned]
    second_nE = rows_nW[:, start + learned : start + 2 * learned]
    first_nE.lerp_(gradient_nE, 1 - _BETA1)
    second_nE.mul_(_BETA2).addcmul_(gradient_nE, gradient_nE, value=1 - _BETA2)
    denominator_nE = (second_nE / (1 - _BETA2**step_n1)).sqrt_().add_(_EPSILON)
    rate_n1 = -learning_rate / (1 - _BETA1**step_n1)
    rows_nW[:, :learned].addcdiv_(first_nE * rate_n1, denominator_nE)


def _rowwise_adam(layout: RowLayout, rows_nW: Tensor, gradient_nE: Tensor, learning_rate: float) -> None:
    """Adam with one second moment for each field of a row, the mean over its floats (FBGEMM's "partial
    row-wise Adam"): two thirds of the bytes.
    """
    learned, start = layout.num_learned, layout.num_values
    step_n1 = rows_nW[:, -1:]
    step_n1 += 1
    first_nE = rows_nW[:, start : start + learned]
    first_nE.lerp_(gradient_nE, 1 - _BETA1)
    rate_n1 = -learning_rate / (1 - _BETA1**step_n1)
    correction_n1 = 1 / (1 - _BETA2**step_n1)
    for place, field in enumerate(layout.learned, start=start + learned):
        span = layout.span(field.name)
        second_n1 = rows_nW[:, place : place + 1]
        second_n1.lerp_(gradient_nE[:, span].square().mean(1, keepdim=True), 1 - _BETA2)
        denominator_n1 = (second_n1 * correction_n1).sqrt_().add_(_EPSILON)
        rows_nW[:, span].addcmul_(first_nE[:, span], rate_n1 / denominator_n1)


def _adagrad(layout: RowLayout, rows_nW: Tensor, gradient_nE: Tensor, learning_rate: float) -> None:
    """Duchi et al. 2011 with one accumulator a row: the mean square of its gradients."""
    sums_n1 = rows_nW[:, -1:]
    sums_n1 += gradient_nE.square().mean(1, keepdim=True)
    rows_nW[:, : layout.num_learned].addcdiv_(gradient_nE, sums_n1.sqrt() + _EPSILON, value=-learning_rate)
