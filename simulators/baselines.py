"""What a model must beat: popularity, chance, and implicit alternating least squares.

Owns scores made of the training reviews alone. Never sees what is held out, and ranks nothing. Items stand in
the data set's own order. Legend: Q queries, U users, N items, F factors.
"""

from collections.abc import Callable, Sequence

import implicit.als
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from simulators.dataset import Dataset

F32 = npt.NDArray[np.float32]
Scorer = Callable[[Sequence[int]], F32]
"""Scores (Q, N) of users, which are given by their numbers in the data set."""


class AlsSettings(BaseModel):
    """What can be tuned of the factorisation. With the library's own alpha of 1 it finds a third less."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    factors: int = Field(64, ge=1, le=1024)
    regularization: float = Field(10.0, gt=0)
    alpha: float = Field(40.0, gt=0, description="confidence of a positive, over 1 of what was not seen")
    iterations: int = Field(15, ge=1)


def popularity_scorer(train: Dataset) -> Scorer:
    """Score each item by its number of reviews, the same for every user."""
    counts_N = np.bincount(train.reviews.items, minlength=len(train.reviews.item_ids)).astype(np.float32)
    return lambda users: np.tile(counts_N, (len(users), 1))


def random_scorer(train: Dataset, seed: int) -> Scorer:
    """Score items by chance: what the figures are where nothing is known."""
    rng = np.random.default_rng(seed)
    num_items = len(train.reviews.item_ids)
    return lambda users: rng.random((len(users), num_items), np.float32)


def als_scorer(train: Dataset, settings: AlsSettings, seed: int) -> Scorer:
    """Factorise users × items, every reviewed pair 1, and score by the product of the factors.

    Hu, Koren and Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008, as weighted
    alternating least squares (WALS) in `implicit`, on one thread: the same seed gives the same factors. Users
    without reviews, whose factors are 0, get what is popular, as any shop would have it.
    """
    reviews = train.reviews
    shape = (len(reviews.user_ids), len(reviews.item_ids))
    ones = np.ones(len(reviews), np.float32)
    pairs_UN = csr_matrix((ones, (reviews.users, reviews.items)), shape=shape)
    with threadpool_limits(1, "blas"):  # implicit asks for it: its own thread calls BLAS
        model = implicit.als.AlternatingLeastSquares(
            **settings.model_dump(), use_gpu=False, num_threads=1, random_state=seed
        )
        model.fit(pairs_UN, show_progress=False)
    users_UF, items_NF = model.user_factors, model.item_factors
    is_known_U, popular = np.bincount(reviews.users, minlength=shape[0]) > 0, popularity_scorer(train)

    def scores(users: Sequence[int]) -> F32:
        scores_QN: F32 = users_UF[list(users)] @ items_NF.T
        return np.where(is_known_U[list(users), None], scores_QN, popular(users))

    return scores
