"""Adam and row-wise Adagrad on rows: against torch's own Adam, and by hand."""

import numpy as np
import pytest
import torch

from feature_store.row_layout import Field, RowLayout
from stream_trainer.models.row_optimiser import update_rows

FIELDS = (Field("a", 3, "learned"), Field("count", 1, "float", 7.0), Field("b", 1, "learned"))
ADAM, ADAGRAD = RowLayout(FIELDS, "adam"), RowLayout(FIELDS, "adagrad")
ROWWISE = RowLayout(FIELDS, "rowwise_adam")


def move(layout: RowLayout, rows: torch.Tensor, gradient: torch.Tensor, rate: float) -> None:
    """Move all rows, from the last to the first."""
    slots = np.arange(len(rows))[::-1].copy()
    fields = [gradient[slots, :3].numpy(), gradient[slots, 3:].numpy()]
    update_rows(layout, rows.numpy(), slots, fields, rate)


def start(layout: RowLayout, num: int) -> torch.Tensor:
    rows = torch.from_numpy(layout.new_rows(0, [b"%d" % n for n in range(num)]))
    rows[:, :4] = torch.randn(num, 4, generator=torch.Generator().manual_seed(1))
    return rows


def gradients(num: int, steps: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(num, 4, generator=generator) * 10.0 ** (k % 5 - 3) for k in range(steps)]


def torch_adam(values: torch.Tensor, steps: list[torch.Tensor], rate: float) -> torch.Tensor:
    parameter = torch.nn.Parameter(values.clone())
    optimiser = torch.optim.Adam([parameter], lr=rate)
    for gradient in steps:
        parameter.grad = gradient.clone()
        optimiser.step()
    return parameter.detach()


def test_adam_is_torchs_adam_for_rows_updated_each_step() -> None:
    rows, steps = start(ADAM, 5), gradients(5, 40)
    expected = torch_adam(rows[:, :4], steps, 0.01)
    for gradient in steps:
        move(ADAM, rows, gradient, 0.01)
    np.testing.assert_allclose(rows[:, :4].numpy(), expected.numpy(), rtol=1e-6, atol=1e-6)
    assert (rows[:, 4] == 7).all()
    assert (rows[:, -1] == 40).all()


def test_a_row_met_late_learns_as_one_met_early() -> None:
    """Each row counts its own steps. Torch's dense Adam would correct the late row by the global count."""
    rows, steps = start(ADAM, 2), gradients(2, 30)
    late = torch_adam(rows[1:, :4], [gradient[1:] for gradient in steps[20:]], 0.01)
    shared_count = torch_adam(
        rows[:, :4], [g * torch.tensor([[1.0], [k >= 20]]) for k, g in enumerate(steps)], 0.01
    )
    for k, gradient in enumerate(steps):
        chosen = rows[: 1 + (k >= 20)].clone()
        move(ADAM, chosen, gradient[: len(chosen)], 0.01)
        rows[: len(chosen)] = chosen
    np.testing.assert_allclose(rows[1:, :4].numpy(), late.numpy(), rtol=1e-6, atol=1e-6)
    assert (rows[1, :4] - shared_count[1]).abs().max() > 1e-3
    assert rows[:, -1].tolist() == [30, 10]


def test_adams_first_step_is_the_learning_rate_against_the_gradients_sign() -> None:
    rows = start(ADAM, 1)
    before = rows[:, :4].clone()
    move(ADAM, rows, torch.tensor([[5.0, -0.01, 1e-3, 100.0]]), 0.1)
    step = (rows[:, :4] - before).tolist()[0]
    assert step == pytest.approx([-0.1, 0.1, -0.1, -0.1], rel=1e-4)


def test_adagrad_by_hand() -> None:
    """Gradient (1, 2, 3, 4): mean square 7.5; then (2, 0, 0, 0): 7.5 + 1 = 8.5."""
    rows = start(ADAGRAD, 1)
    before = rows[0, :4].tolist()
    move(ADAGRAD, rows, torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 0.5)
    once = [b - 0.5 * g / 7.5**0.5 for b, g in zip(before, [1, 2, 3, 4], strict=True)]
    assert rows[0, :4].tolist() == pytest.approx(once, rel=1e-6)
    move(ADAGRAD, rows, torch.tensor([[2.0, 0.0, 0.0, 0.0]]), 0.5)
    assert rows[0, :4].tolist() == pytest.approx([once[0] - 0.5 * 2 / 8.5**0.5, *once[1:]], rel=1e-6)
    assert rows[0, 4:].tolist() == [7.0, 8.5]


@pytest.mark.parametrize("layout", [ADAM, ADAGRAD])
def test_no_gradient_ever_is_no_step(layout: RowLayout) -> None:
    rows = start(layout, 2)
    before = rows[:, :5].clone()
    move(layout, rows, torch.zeros(2, 4), 0.5)
    assert torch.equal(rows[:, :5], before)


def test_rowwise_adam_shares_the_second_moment_within_a_field_and_no_further() -> None:
    """Against a loop over rows and fields in float64."""
    num, rate = 3, 0.01
    rows, steps = start(ROWWISE, num), gradients(num, 25)
    assert rows.shape[1] == 5 + 4 + 2 + 1
    values = rows[:, :4].double().numpy().copy()
    first, second = np.zeros((num, 4)), np.zeros((num, 2))
    for count, gradient in enumerate(steps, start=1):
        g = gradient.double().numpy()
        for row in range(num):
            for field, span in enumerate((slice(0, 3), slice(3, 4))):
                first[row, span] = 0.9 * first[row, span] + 0.1 * g[row, span]
                second[row, field] = 0.999 * second[row, field] + 0.001 * (g[row, span] ** 2).mean()
                length = np.sqrt(second[row, field] / (1 - 0.999**count)) + 1e-8
                values[row, span] -= rate * first[row, span] / (1 - 0.9**count) / length
        move(ROWWISE, rows, gradient, rate)
    np.testing.assert_allclose(rows[:, :4].numpy(), values, rtol=1e-4, atol=1e-5)
    assert (rows[:, 4] == 7).all()
    assert (rows[:, -1] == len(steps)).all()
