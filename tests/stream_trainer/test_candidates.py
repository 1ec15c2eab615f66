"""Which items a batch scores: against plain loops over any references."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_trainer.candidates import lay_out, score

BATCHES = st.tuples(st.integers(1, 4), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3)).flatmap(
    lambda shape: st.tuples(
        st.lists(st.integers(0, 6), min_size=shape[0], max_size=shape[0]),
        st.lists(st.integers(-1, 6), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]),
        st.lists(st.integers(0, 6), min_size=shape[2], max_size=shape[2]),
        st.lists(st.integers(-1, 9), min_size=shape[0] * shape[3], max_size=shape[0] * shape[3]),
    )
)
Batch = tuple[list[int], list[int], list[int], list[int]]


def arrays(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    items, own, shared, history = batch
    return (
        np.array(items, np.int64),
        np.array(own, np.int64).reshape(len(items), -1),
        np.array(shared, np.int64),
        np.array(history, np.int32).reshape(len(items), -1),
    )


@settings(deadline=None)
@given(BATCHES)
def test_every_reference_finds_its_item(batch: Batch) -> None:
    items, own, shared, history = arrays(batch)
    laid = lay_out(items, own, shared, history)
    everything = {n for refs in batch for n in refs if n >= 0}
    scored = {n for refs in batch[:3] for n in refs if n >= 0}
    tower_T = laid.numbers_I[: laid.num_tower]
    assert tower_T.tolist() == sorted(scored)
    assert laid.numbers_I[laid.num_tower :].tolist() == sorted(everything - scored)

    def named(places: torch.Tensor, numbers: np.ndarray) -> list[int]:
        return [int(numbers[p]) if p >= 0 else -1 for p in places.reshape(-1).tolist()]

    assert named(laid.positive_B, tower_T) == batch[0]
    assert named(laid.own_BX, tower_T) == batch[1]
    assert named(laid.shared_M, tower_T) == batch[2]
    assert named(laid.history_BL, laid.numbers_I) == batch[3]
    assert laid.own_BX.shape == own.shape
    assert laid.history_BL.shape == history.shape


@pytest.mark.parametrize("in_batch", [False, True])
@settings(deadline=None)
@given(batch=BATCHES)
def test_scores_are_inner_products_and_only_real_negatives_count(in_batch: bool, batch: Batch) -> None:
    items, own, shared, history = arrays(batch)
    laid = lay_out(items, own, shared, history)
    tower_T = laid.numbers_I[: laid.num_tower]
    generator = torch.Generator().manual_seed(1)
    users = torch.randn(len(items), 3, generator=generator)
    by_number = torch.randn(10, 3, generator=generator)
    items_TD, log_expected_T = by_number[torch.from_numpy(tower_T)], torch.from_numpy(tower_T) / 10
    scores = score(laid, users, items_TD, in_batch)
    corrected = score(laid, users, items_TD, in_batch, log_expected_T)
    for b, item in enumerate(items.tolist()):
        row, of_all = [item, *own[b].tolist()], [*shared.tolist(), *(items.tolist() if in_batch else [])]
        if of_all:  # no more than three are its own
            row += [-1] * (16 - len(row)) + of_all
        assert scores.shape[1] == len(row)
        for j, number in enumerate(row):
            if j > 0 and number in (-1, item):
                assert float(scores[b, j]) == float(corrected[b, j]) == -torch.inf
                continue
            expected = float(users[b] @ by_number[number])
            assert float(scores[b, j]) == pytest.approx(expected, abs=1e-5)
            assert float(corrected[b, j]) == pytest.approx(expected - number / 10, abs=1e-5)


@pytest.mark.parametrize(("num_own", "num_scores"), [(0, 21), (14, 21), (15, 21), (16, 37)])
def test_what_is_shared_starts_at_a_multiple_of_64_bytes(num_own: int, num_scores: int) -> None:
    own, shared = np.arange(1, 1 + num_own)[None], np.arange(5) + 50
    laid = lay_out(np.array([0]), own, shared, np.zeros((1, 0), np.int32))
    scores = score(laid, torch.ones(1, 2), torch.ones(laid.num_tower, 2), False)
    assert scores.shape == (1, num_scores)
    assert int(scores.isfinite().sum()) == 1 + num_own + 5
