"""What dropout leaves, against the same hash by NumPy."""

import numpy as np
import pytest

from feature_store.hashing import GOLDEN, mix
from stream_trainer.models.dropout import Draws


@pytest.mark.parametrize("shape", [(0, 3), (1, 1), (5, 7), (16, 16)])
def test_each_draw_is_sixteen_bits_of_a_hash(shape: tuple[int, int]) -> None:
    """Four of a word, and each such lane a quarter of all, one behind the other."""
    num = shape[0] * shape[1]
    with np.errstate(over="ignore"):
        words = mix(np.uint64(3) + np.arange(-(-num // 4), dtype=np.uint64) * GOLDEN)
    lanes = np.concatenate([words >> np.uint64(16 * lane) & np.uint64(0xFFFF) for lane in range(4)])
    kept = Draws(3).kept(shape, 0.3)
    assert kept.numpy().tolist() == (lanes[:num] >= round(0.3 * 2**16)).reshape(shape).tolist()


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 1.0])
def test_as_much_is_left_out_as_is_to_be(rate: float) -> None:
    """In every row and column, too: within five standard errors of the rate."""
    kept = Draws(5).kept((2000, 96), rate).double()
    error = np.sqrt(rate * (1 - rate))
    assert float((kept.mean() - (1 - rate)).abs()) <= 5 * error / np.sqrt(kept.numel())
    assert float((kept.mean(0) - (1 - rate)).abs().max()) <= 5 * error / np.sqrt(2000)
    assert float((kept.mean(1) - (1 - rate)).abs().max()) <= 5 * error / np.sqrt(96)


def test_neighbours_lanes_and_draws_in_turn_are_independent() -> None:
    """No two columns, no two lanes of a word and no two draws go together more than by chance."""
    draws = Draws(5)
    first, second = (draws.kept((4000, 16), 0.5).double().numpy() for _ in range(2))
    lanes = first.reshape(4, 1000, 16)
    for columns, num in (
        (np.concatenate([first, second], axis=1), 4000),
        (lanes.transpose(1, 0, 2).reshape(1000, 64), 1000),
    ):
        together = np.corrcoef(columns.T) - np.eye(columns.shape[1])
        assert np.abs(together).max() < 5 / np.sqrt(num)
