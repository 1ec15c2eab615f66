"""What every retrieval model is: embeddings of items and queries whose inner product ranks.

Owns the contract between a model and those who use it (learner, refresher, evaluation), and the best score of
a query that has several interests. Never knows one model from another. Legend: B (or Q) queries, T (or N)
items, I interests, K embedding width, A augmented width, D output width, L history, F categorical features, N
numbers, J candidates.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.row_layout import Field
from stream_trainer.models import losses
from stream_trainer.models.dropout import Draws

F32 = npt.NDArray[np.float32]


class History(NamedTuple):
    """Past positives: rows of `embedding_IK` by place, the newest last, -1 where there is none."""

    embedding_IK: Tensor
    places_BL: Tensor


class ItemInputs(NamedTuple):
    """What a model sees of items. None: the model's rows, or the settings, have no such field."""

    embedding_TK: Tensor
    augmented_TA: Tensor | None
    values_TFK: Tensor | None
    """The features' pooled values side by side, (T, F × K)."""
    numbers_TN: Tensor | None
    weight_T1: Tensor | None = None


class UserInputs(NamedTuple):
    """What a model sees of queries. None: the model's rows, or the settings, have no such field."""

    embedding_BK: Tensor | None
    history: History | None
    augmented_BA: Tensor | None
    values_BFK: Tensor | None
    """The features' pooled values side by side, (B, F × K)."""
    numbers_BN: Tensor | None


class Scored(NamedTuple):
    """What the losses see. `positive_B` and `category_T` index and describe the rows of `items_TD`."""

    logits_BJ: Tensor
    """The positive first; minus infinity where a candidate does not count."""
    users_BD: Tensor
    items_TD: Tensor
    positive_B: Tensor
    user_augmented_BA: Tensor | None
    item_augmented_BA: Tensor | None
    category_T: Tensor | None
    num_pairs: int


class RowFields(NamedTuple):
    """The fields that are a model's own, for each kind of row; `factory.row_layouts` adds those of all."""

    item: list[Field]
    user: list[Field]
    value: list[Field]


class RetrievalModel(nn.Module):
    """The contract. Initial weights come from torch's global generator: seed it before.

    Draws make `embed_items` and `embed_users` drop inputs at random, as in training; without them they
    are as served.
    """

    def __init__(self, model: ModelSettings, features: FeatureSettings) -> None:
        super().__init__()
        self.settings = model
        self.features = features

    @staticmethod
    def row_fields(model: ModelSettings) -> RowFields:
        """Return this model's own fields: here an embedding of each ID, of users if they are to have one."""
        embedding = Field("embedding", model.embedding_dim, "learned", model.init_scale)
        return RowFields([embedding], [embedding] if model.use_user_id else [], [embedding])

    def embed_items(self, inputs: ItemInputs, draws: Draws | None = None) -> Tensor:
        """Return p_v (T, D)."""
        raise NotImplementedError

    def embed_users(self, inputs: UserInputs, draws: Draws | None = None) -> Tensor:
        """Return p_u (B, D), or one for each interest (B, I, D); retrieval goes by the best interest."""
        raise NotImplementedError

    def loss_queries(self, users: Tensor, items_TD: Tensor, positive_B: Tensor) -> Tensor:
        """Return what the loss takes for the queries (B, D), given `embed_users` and where the positives
        stand.
        """
        return users

    def losses(self, scored: Scored) -> dict[str, Tensor]:
        """Return the weighted parts of the loss, each with a gradient; their sum is what is minimised."""
        main = losses.bce_loss if self.settings.loss == "bce" else losses.sampled_softmax_loss
        return {"main": main(scored.logits_BJ)}


def each_interest(queries: F32) -> F32:
    """Return queries (Q, D) or (Q, I, D) as (Q, I, D)."""
    return queries if queries.ndim == 3 else queries[:, None]


def best_scores(queries: F32, items_ND: F32) -> F32:
    """Return each item's score for each query (Q, N): its inner product with the query's best interest.

    One interest at a time, so that no more than two such matrices are in memory.

    >>> best_scores(np.array([[[1, 0], [0, 1]]], np.float32), np.array([[2, 3], [5, 4]], np.float32)).tolist()
    [[3.0, 5.0]]
    """
    if queries.ndim == 2:
        return queries @ items_ND.T
    best_QN: F32 = queries[:, 0] @ items_ND.T
    for interest in range(1, queries.shape[1]):
        np.maximum(best_QN, queries[:, interest] @ items_ND.T, out=best_QN)
    return best_QN
