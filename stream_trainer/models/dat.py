"""The Dual Augmented Two-tower model (Yu et al., DLP-KDD 2021), with the choices of later practice.

Owns which fields a row has for this model, the two towers, and the losses' sum. Never reads a table or a
store: rows come in as tensors. With augmented_dim = 0 (or name = "two_tower") it is the plain two-tower
model. Legend: B queries, T items, K embedding width, A augmented width, D output width, Z input width.
"""

import torch
from torch import Tensor, nn

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.row_layout import Field
from stream_trainer.models import losses
from stream_trainer.models.alignment import category_alignment_loss
from stream_trainer.models.dropout import Draws
from stream_trainer.models.history_pool import pool_history
from stream_trainer.models.retrieval import ItemInputs, RetrievalModel, RowFields, Scored, UserInputs
from stream_trainer.models.tower import (
    HistoryWeights,
    NumericLayers,
    Tower,
    feature_parts,
)


def _augmented_width(model: ModelSettings) -> int:
    """Return d; the plain two-tower model has none."""
    return 0 if model.name == "two_tower" else model.augmented_dim


class Dat(RetrievalModel):
    """The two towers."""

    def __init__(self, model: ModelSettings, features: FeatureSettings) -> None:
        super().__init__(model, features)
        width, aug, numeric = model.embedding_dim, _augmented_width(model), model.numeric_dim
        num_item, num_user = len(features.item_numeric), len(features.user_numeric)
        item_dim = width + aug + width * len(features.item_categorical) + numeric * num_item
        user_dim = width * (model.use_user_id + (model.history_length > 0) + len(features.user_categorical))
        user_dim += aug + numeric * num_user
        self.item_tower = Tower(item_dim, model)
        self.user_tower = Tower(user_dim, model)
        self.item_numeric = NumericLayers(num_item, numeric) if num_item else None
        self.user_numeric = NumericLayers(num_user, numeric) if num_user else None
        length = model.history_length
        self.history_weights = HistoryWeights(length, model.history_decay) if length else None
        # There also where settings that may change leave it unused: a store must load under all of them.
        self.augmented_weight = nn.Parameter(torch.zeros(())) if aug else None

    @staticmethod
    def row_fields(model: ModelSettings) -> RowFields:
        """Return the fields of every model, and the augmented vectors."""
        fields, aug = RetrievalModel.row_fields(model), _augmented_width(model)
        if aug:
            fields.item.append(Field("augmented", aug, "learned"))
            learned = [Field("augmented", aug, "learned")]
            mean = [Field("mean", aug, "float"), Field("mean_count", 1, "float")]
            fields.user.extend(learned if model.user_augmented == "learned" else mean)
        return fields

    def embed_items(self, inputs: ItemInputs, draws: Draws | None = None) -> Tensor:
        """Return p_v (T, D)."""
        settings, parts = self.settings, [inputs.embedding_TK]
        residual_TD = inputs.embedding_TK if settings.residual else None
        if inputs.augmented_TA is not None:
            mimic_only = settings.item_augmented == "mimic_only"
            augmented_TA = inputs.augmented_TA.detach() if mimic_only else inputs.augmented_TA
            parts.append(augmented_TA)
            weight = self.augmented_weight if settings.augmented_dropout < 1 else None
            if residual_TD is not None and weight is not None:
                residual_TD = residual_TD + weight * self._some(augmented_TA, draws)
        parts += feature_parts(inputs.values_TFK, inputs.numbers_TN, self.item_numeric)
        return self.item_tower(parts, residual_TD, draws)  # type: ignore[no-any-return]

    def _some(self, augmented_TA: Tensor, draws: Draws | None) -> Tensor:
        """Leave out whole vectors while training: a_v remembers positives, also those that are rehearsed, so
        that a model that may lean on it always learns answers by heart. Served as they are, unscaled.
        """
        if draws is None or not self.settings.augmented_dropout:
            return augmented_TA
        return augmented_TA * draws.kept((len(augmented_TA), 1), self.settings.augmented_dropout)

    def embed_users(self, inputs: UserInputs, draws: Draws | None = None) -> Tensor:
        """Return p_u (B, D)."""
        pooled_BK = None
        if inputs.history is not None and self.history_weights is not None:
            pooled_BK = pool_history(*inputs.history, self.history_weights())
        given = (inputs.embedding_BK, pooled_BK, inputs.augmented_BA)
        parts = [part for part in given if part is not None]
        parts += feature_parts(inputs.values_BFK, inputs.numbers_BN, self.user_numeric)
        residual_BK = pooled_BK if self.settings.residual else None
        return self.user_tower(parts, residual_BK, draws)  # type: ignore[no-any-return]

    def losses(self, scored: Scored) -> dict[str, Tensor]:
        """Return the weighted parts of the loss; their sum is what is minimised.

        loss = loss_p + λ1 loss_u + λ2 loss_v + λ3 loss_CA. A running mean needs no loss_u, whose minimiser it
        is.
        """
        settings = self.settings
        parts = super().losses(scored)
        item_BD = scored.items_TD[scored.positive_B]
        own = settings.own_tower_mimic
        if scored.user_augmented_BA is not None and settings.lambda_user:
            target_BD = scored.users_BD if own else item_BD
            parts["mimic_user"] = settings.lambda_user * losses.mimic_loss(
                scored.user_augmented_BA, target_BD, scored.num_pairs
            )
        if scored.item_augmented_BA is not None and settings.lambda_item:
            target_BD = item_BD if own else scored.users_BD
            parts["mimic_item"] = settings.lambda_item * losses.mimic_loss(
                scored.item_augmented_BA, target_BD, scored.num_pairs
            )
        if scored.category_T is not None and settings.lambda_cal:
            parts["category_alignment"] = settings.lambda_cal * category_alignment_loss(
                scored.items_TD, scored.category_T
            )
        return parts
