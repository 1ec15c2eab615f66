"""Which items a batch scores, and where each stands: positives, negatives of several kinds, histories.

Pure. Each distinct item is gathered once, and embedded once if any candidate is it. Legend: B positives, S
own, H shown, M shared negatives, L history, T items for the tower, I all items.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

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
    """Find the distinct items and the place of every reference. Negative numbers stay -1."""
    tower_refs = np.concatenate([items_B, own_BX.reshape(-1), shared_M])
    refs = np.concatenate([tower_refs, history_BL.reshape(-1)]) if history_BL.size else tower_refs
    unique, inverse = np.unique(refs, return_inverse=True)
    missing = int(unique[0] < 0)
    numbers_I, places = unique[missing:], inverse - missing
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


def score(
    candidates: Candidates, users_BD: Tensor, items_TD: Tensor, in_batch: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return inner products (B, J) with the positive first, which of them count (B, J), and whose they are
    (B, J) in T.

    A negative that is the positive itself does not count, nor does a place that is empty.
    """
    positive_B1 = candidates.positive_B.unsqueeze(1)
    num = len(users_BD)
    places = [positive_B1]
    positive_BD = items_TD.index_select(0, candidates.positive_B)
    scores = [(users_BD * positive_BD).sum(1, keepdim=True)]
    if candidates.own_BX.shape[1]:
        own_BX = candidates.own_BX
        own_BXD = items_TD.index_select(0, own_BX.clamp(min=0).reshape(-1)).view(num, own_BX.shape[1], -1)
        places.append(own_BX)
        scores.append(torch.bmm(own_BXD, users_BD.unsqueeze(2)).squeeze(2))
    if len(candidates.shared_M):
        places.append(candidates.shared_M.expand(num, -1))
        scores.append(users_BD @ items_TD.index_select(0, candidates.shared_M).T)
    if in_batch:
        places.append(candidates.positive_B.expand(num, -1))
        scores.append(users_BD @ positive_BD.T)
    places_BJ = torch.cat(places, dim=1)
    valid_BJ = (places_BJ != positive_B1) & (places_BJ >= 0)
    valid_BJ[:, 0] = True
    return torch.cat(scores, dim=1), valid_BJ, places_BJ
