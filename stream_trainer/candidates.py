"""Which items a batch scores, and where each stands: positives, negatives of several kinds, histories.

Pure. Each distinct item is gathered once, and embedded once if any candidate is it. Legend: B positives, S
own, H shown, M shared negatives, L history, T items for the tower, I all items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stream_trainer.models.candidate_scores import candidate_scores

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Candidates:
    """Item numbers of one batch and their places among the distinct ones."""

    numbers_I: I64
    tower_T: Tensor | None
    """Places in `numbers_I` of the items that go through the tower; None: all of them."""
    positive_B: Tensor
    own_BX: Tensor
    """Own and shown negatives, -1 where there is none. As `positive_B` and `shared_M`: places among the T."""
    shared_M: Tensor
    history_BL: Tensor
    """Places among the I, -1 where there is none."""


def lay_out(items_B: I64, own_BX: I64, shared_M: I64, history_BL: npt.NDArray[np.int32]) -> Candidates:
    """Find the distinct items and the place of every reference; -1 stays -1."""
    tower_refs = np.concatenate([items_B, own_BX.reshape(-1), shared_M])
    refs = np.concatenate([tower_refs, history_BL.reshape(-1)]) if history_BL.size else tower_refs
    numbers_I, places = _distinct(refs)
    used_I = np.zeros(len(numbers_I), bool)
    in_tower = places[: len(tower_refs)]
    used_I[in_tower[in_tower >= 0]] = True
    tower_T = np.flatnonzero(used_I)
    if len(tower_T) < len(numbers_I):
        place_of_I = np.cumsum(used_I) - 1
        in_tower = np.where(in_tower >= 0, place_of_I[in_tower], -1)
    b, x, m = len(items_B), own_BX.size, len(shared_M)
    return Candidates(
        numbers_I,
        torch.from_numpy(tower_T) if len(tower_T) < len(numbers_I) else None,
        torch.from_numpy(in_tower[:b]),
        torch.from_numpy(in_tower[b : b + x].reshape(own_BX.shape)),
        torch.from_numpy(in_tower[b + x : b + x + m]),
        torch.from_numpy(places[len(tower_refs) :].reshape(history_BL.shape)),
    )


def _distinct(refs: I64) -> tuple[I64, I64]:
    """Return the distinct numbers of 0 or more in ascending order, and where each reference stands among
    them, -1 for -1. As `np.unique`, but by a table over all numbers: sorting tens of thousands of references
    takes three times as long, unless there are millions of numbers.

    >>> [array.tolist() for array in _distinct(np.array([7, -1, 3, 7]))]
    [[3, 7], [1, -1, 0, 1]]
    """
    assert refs.min(initial=-1) == -1, "what is no number is -1"
    table = np.empty(int(refs.max(initial=-1)) + 2, np.int64)  # the last place is that of -1
    table[refs] = np.arange(len(refs))
    one_of_each = refs[table[refs] == np.arange(len(refs))]
    numbers_I = np.sort(one_of_each[one_of_each >= 0])
    table[numbers_I] = np.arange(len(numbers_I))
    table[-1] = -1
    return numbers_I, table[refs]


def score(
    candidates: Candidates,
    users_BD: Tensor,
    items_TD: Tensor,
    in_batch: bool,
    log_expected_T: Tensor | None = None,
) -> Tensor:
    """Return inner products (B, J) with the positive first, less the logarithm of how often each item was to
    be expected, if given.

    Minus infinity where a negative is the positive itself, or a place is empty: they do not count.
    """
    positive_B, own_BX = candidates.positive_B, candidates.own_BX
    shared_M = torch.cat([candidates.shared_M, positive_B]) if in_batch else candidates.shared_M
    scores_BJ = candidate_scores(users_BD, items_TD, positive_B, own_BX, shared_M)
    if log_expected_T is not None:
        of_positive_B1, of_own_BX = (
            log_expected_T[positive_B].unsqueeze(1),
            log_expected_T[own_BX.clamp(min=0)],
        )
        of_shared_BM = log_expected_T[shared_M].expand(len(positive_B), -1)
        scores_BJ = scores_BJ - torch.cat([of_positive_B1, of_own_BX, of_shared_BM], dim=1)
    return scores_BJ
