"""How alike people's lists are: how much of the catalogue they show, and how much two of them share.

Pure. Hit rates rise when everybody is shown what is popular; these figures say at what price. Legend: U
users, N items, K places of a list.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
PLACES = 50
LISTS = 5_000
"""Of so many users at most: enough to say how alike lists are; of more, coverage would be more."""


class Variety(NamedTuple):
    """What is told of the lists of some users.

    `coverage` is the share of the catalogue that stands in at least one of them; `overlap` the mean share of
    a list that stands in another one too, over all pairs: 1 if all lists are the same.
    """

    coverage: float
    overlap: float


def top_items(scores_UN: npt.NDArray[np.floating], excluded: Sequence[npt.ArrayLike], num_places: int) -> I64:
    """Return the columns (U, K) of each user's highest scores, in no order, without the excluded ones. As
    many must be left for everybody.

    >>> sorted(top_items(np.array([[0.1, 0.9, 0.5, 0.7]]), [[1]], 2)[0].tolist())
    [2, 3]
    """
    first_UK = np.zeros((len(scores_UN), num_places), np.int64)
    for user, items in enumerate(excluded):
        # By user: of all at once, the places would take eight bytes a score.
        scores_N = scores_UN[user].copy()
        scores_N[np.asarray(items, np.int64)] = -np.inf
        first_UK[user] = np.argpartition(-scores_N, num_places - 1)[:num_places]
    return first_UK


def variety(shown_UK: I64, num_items: int) -> Variety:
    """Return how alike lists are that show `shown_UK`; `overlap` is NaN of fewer than two lists.

    Two users share an item in as many ordered pairs as its lists make, c(c − 1) for an item in c lists.

    >>> variety(np.array([[0, 1], [1, 2]]), 4)
    Variety(coverage=0.75, overlap=0.5)
    """
    num_lists, num_places = shown_UK.shape
    lists_N = np.bincount(shown_UK.reshape(-1), minlength=num_items).astype(np.float64)
    pairs = float(num_lists * (num_lists - 1) * num_places)
    shared = float((lists_N * (lists_N - 1)).sum())
    return Variety(float((lists_N > 0).mean()), shared / pairs if pairs else float("nan"))
