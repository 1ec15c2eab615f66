"""Which items a batch scores, and where each stands: positives, negatives of several kinds, histories.

Pure. Each distinct item is gathered once, and embedded once if any candidate is it. Legend: B positives, S
own, H shown, M shared negatives, L history, T items for the tower, I all items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from stream_trainer.models.candidate_scores import candidate_scores

I64 = npt.NDArray[np.int64]
_ALIGNED = 16  # float32 in 64 bytes


@dataclass(frozen=True)
class Candidates:
    """Item numbers of one batch and their places among the distinct ones."""

    numbers_I: I64
    """First those of the items that go through the tower."""
    num_tower: int
    positive_B: Tensor
    own_BX: Tensor
    """Own and shown negatives, -1 where there is none."""
    shared_M: Tensor
    history_BL: Tensor
    """-1 where there is none."""


def lay_out(items_B: I64, own_BX: I64, shared_M: I64, history_BL: npt.NDArray[np.int32]) -> Candidates:
    """Find the distinct items and the place of every reference; -1 stays -1."""
    tower_refs = np.concatenate([items_B, own_BX.reshape(-1), shared_M])
    refs = np.concatenate([tower_refs, history_BL.reshape(-1)]) if history_BL.size else tower_refs
    numbers_I, places = distinct(refs)
    num_tower = len(numbers_I)
    if history_BL.size:
        numbers_I, places, num_tower = _first(numbers_I, places, len(tower_refs))
    sizes = [len(items_B), own_BX.size, len(shared_M), history_BL.size]
    positive_B, own_R, shared, history_R = torch.split(torch.from_numpy(places), sizes)
    own, history = own_R.view(own_BX.shape), history_R.view(history_BL.shape)
    return Candidates(numbers_I, num_tower, positive_B, own, shared, history)


def _first(numbers_I: I64, places_R: I64, num: int) -> tuple[I64, I64, int]:
    """Put first the items to which the first `num` references refer; return how many there are, too."""
    is_first_I = np.zeros(len(numbers_I) + 1, bool)  # the last place is that of -1
    is_first_I[places_R[:num]] = True
    order_I = np.argsort(~is_first_I[:-1], kind="stable")
    place_of_I = np.empty(len(numbers_I) + 1, np.int64)
    place_of_I[order_I], place_of_I[-1] = np.arange(len(numbers_I)), -1
    return numbers_I[order_I], place_of_I[places_R], int(np.count_nonzero(is_first_I[:-1]))


def distinct(refs: I64) -> tuple[I64, I64]:
    """Return the distinct numbers of 0 or more in ascending order, and where each reference stands among
    them, -1 for -1. As `np.unique`, but by a table over all numbers: sorting tens of thousands of references
    takes three times as long, unless there are millions of numbers.

    >>> [array.tolist() for array in distinct(np.array([7, -1, 3, 7]))]
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

    Minus infinity where a negative is the positive itself, or a place is empty: they do not count. Empty
    places may be added so that the scores of what is shared start at a multiple of 64 bytes (in every row, if
    so many are shared): products of matrices that do not take up to half as long again.
    """
    positive_B, own_BX = candidates.positive_B, candidates.own_BX
    shared_M = torch.cat([candidates.shared_M, positive_B]) if in_batch else candidates.shared_M
    if len(shared_M):
        own_BX = F.pad(own_BX, (0, -(1 + own_BX.shape[1]) % _ALIGNED), value=-1)
    scores_BJ = candidate_scores(users_BD, items_TD, positive_B, own_BX, shared_M)
    if log_expected_T is not None:
        of_positive_B1, of_own_BX = (
            log_expected_T[positive_B].unsqueeze(1),
            log_expected_T[own_BX.clamp(min=0)],
        )
        of_shared_BM = log_expected_T[shared_M].expand(len(positive_B), -1)
        scores_BJ = scores_BJ - torch.cat([of_positive_B1, of_own_BX, of_shared_BM], dim=1)
    return scores_BJ
