"""The Dual Augmented Two-tower model (Yu et al., DLP-KDD 2021), with the choices of later practice; see
dat.md and findings.

Owns which fields a row has for this model, the two towers, and the losses' sum. Never reads a table or a
store: rows come in as tensors. With augmented_dim = 0 (or name = "two_tower") it is the plain two-tower
model. Legend: B queries, T items, K embedding width, A augmented width, D output width, N numbers, F
categorical features.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.rows import Field, RowLayout
from stream_trainer.models import losses
from stream_trainer.models.tower import NumericLayers, Tower, drop


class ItemInputs(NamedTuple):
    """What the item tower sees."""

    embedding_TK: Tensor
    augmented_TA: Tensor | None
    values_TFK: Tensor | None
    numbers_TN: Tensor | None


class UserInputs(NamedTuple):
    """What the user tower sees."""

    embedding_BK: Tensor | None
    pooled_BK: Tensor | None
    augmented_BA: Tensor | None
    values_BFK: Tensor | None
    numbers_BN: Tensor | None


class Scored(NamedTuple):
    """What the losses see. `positive_B` and `category_T` index and describe the rows of `items_TD`."""

    logits_BJ: Tensor
    valid_BJ: Tensor
    users_BD: Tensor
    items_TD: Tensor
    positive_B: Tensor
    user_augmented_BA: Tensor | None
    item_augmented_BA: Tensor | None
    category_T: Tensor | None
    num_pairs: int


def augmented_width(model: ModelSettings) -> int:
    """Return d; the plain two-tower model has none."""
    return 0 if model.name == "two_tower" else model.augmented_dim


def row_layouts(
    model: ModelSettings, features: FeatureSettings, optimiser: Literal["adam", "adagrad"]
) -> dict[str, RowLayout]:
    """Return the fields that this model keeps for each item, user and feature value."""
    width, aug = model.embedding_dim, augmented_width(model)
    item = [Field("embedding", width, "learned", model.init_scale)]
    user = [Field("embedding", width, "learned", model.init_scale)] if model.use_user_id else []
    if aug:
        item.append(Field("augmented", aug, "learned"))
        if model.user_augmented == "learned":
            user.append(Field("augmented", aug, "learned"))
        else:
            user += [Field("mean", aug, "float"), Field("mean_count", 1, "float")]
    item += [Field("frequency", 1, "float"), Field("frequency_at", 1, "int")]
    item += [Field("values", sum(features.item_categorical.values()), "int", -1)]
    item += [Field("numbers", len(features.item_numeric), "float", float("nan"))]
    user += [Field("history", model.history_length, "int", -1)]
    user += [Field("values", sum(features.user_categorical.values()), "int", -1)]
    user += [Field("numbers", len(features.user_numeric), "float", float("nan"))]
    value = [Field("embedding", width, "learned", model.init_scale)]
    return {
        "item": RowLayout(tuple(item), optimiser),
        "user": RowLayout(tuple(user), optimiser),
        "value": RowLayout(tuple(value), optimiser),
    }


class Dat(nn.Module):
    """The two towers. Initial weights come from torch's global generator: seed it before."""

    def __init__(self, model: ModelSettings, features: FeatureSettings) -> None:
        super().__init__()
        self.settings = model
        width, aug, numeric = model.embedding_dim, augmented_width(model), model.numeric_dim
        num_item, num_user = len(features.item_numeric), len(features.user_numeric)
        item_dim = width + aug + width * len(features.item_categorical) + numeric * num_item
        user_dim = width * (model.use_user_id + (model.history_length > 0) + len(features.user_categorical))
        user_dim += aug + numeric * num_user
        self.item_tower = Tower(item_dim, model.hidden, model.output_dim, model.last_relu)
        self.user_tower = Tower(user_dim, model.hidden, model.output_dim, model.last_relu)
        self.item_numeric = NumericLayers(num_item, numeric) if num_item else None
        self.user_numeric = NumericLayers(num_user, numeric) if num_user else None

    def embed_items(self, inputs: ItemInputs, generator: torch.Generator | None = None) -> Tensor:
        """Return p_v (T, D). With a generator, inputs are dropped at random as in training."""
        parts = [inputs.embedding_TK]
        if inputs.augmented_TA is not None:
            mimic_only = self.settings.item_augmented == "mimic_only"
            parts.append(inputs.augmented_TA.detach() if mimic_only else inputs.augmented_TA)
        if inputs.values_TFK is not None:
            parts.append(inputs.values_TFK)
        if self.item_numeric is not None and inputs.numbers_TN is not None:
            parts.append(self.item_numeric(inputs.numbers_TN))
        z_TZ = drop(torch.cat(parts, dim=1), self.settings.dropout, generator)
        return self.item_tower(z_TZ, inputs.embedding_TK if self.settings.residual else None)  # type: ignore[no-any-return]

    def embed_users(self, inputs: UserInputs, generator: torch.Generator | None = None) -> Tensor:
        """Return p_u (B, D). With a generator, inputs are dropped at random as in training."""
        given = (inputs.embedding_BK, inputs.pooled_BK, inputs.augmented_BA, inputs.values_BFK)
        parts = [part for part in given if part is not None]
        if self.user_numeric is not None and inputs.numbers_BN is not None:
            parts.append(self.user_numeric(inputs.numbers_BN))
        z_BZ = drop(torch.cat(parts, dim=1), self.settings.dropout, generator)
        return self.user_tower(z_BZ, inputs.pooled_BK if self.settings.residual else None)  # type: ignore[no-any-return]

    def losses(self, scored: Scored) -> dict[str, Tensor]:
        """Return the weighted parts of the loss; their sum is what is minimised.

        loss = loss_p + λ1 loss_u + λ2 loss_v + λ3 loss_CA (dat.md). A running mean needs no loss_u: it is its
        minimiser.
        """
        settings = self.settings
        main = losses.bce_loss if settings.loss == "bce" else losses.sampled_softmax_loss
        parts = {"main": main(scored.logits_BJ, scored.valid_BJ)}
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
            parts["category_alignment"] = settings.lambda_cal * losses.category_alignment_loss(
                scored.items_TD, scored.category_T
            )
        return parts
