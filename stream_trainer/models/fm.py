"""The factorization machine (Rendle, ICDM 2010, equation 1) as a retrieval model.

Owns the split of its score into a user and an item vector. Of all pairwise products those between a feature
of the query and one of the item are one inner product of sums; those among the item's own features, with its
linear weight and the constant w_0, are one more column of the item that meets a 1; those of the query alone
rank nothing and are left out. Legend: B queries, T items, P features of one side, K width of a factor.
"""

import torch
from torch import Tensor, nn

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.row_layout import Field
from stream_trainer.models.dropout import Draws
from stream_trainer.models.history_pool import pool_history
from stream_trainer.models.retrieval import ItemInputs, RetrievalModel, RowFields, UserInputs
from stream_trainer.models.tower import NumericLayers, feature_parts, unit_length


class FactorizationMachine(RetrievalModel):
    """Factors of IDs, values and numbers; no tower and no dropout.

    A feature of several values counts as one whose factor is their mean, as does the history (the paper's
    figure 1), whose items have the factors that they have as targets. Linear weights of an item's features
    are left to its ID's. With `normalise` the two sums are divided by their lengths before the product.
    """

    def __init__(self, model: ModelSettings, features: FeatureSettings) -> None:
        super().__init__(model, features)
        num_item, num_user = len(features.item_numeric), len(features.user_numeric)
        self.w0 = nn.Parameter(torch.zeros(()))
        self.item_numeric = NumericLayers(num_item, model.embedding_dim) if num_item else None
        self.user_numeric = NumericLayers(num_user, model.embedding_dim) if num_user else None

    @staticmethod
    def row_fields(model: ModelSettings) -> RowFields:
        """Return the fields of every model, and the item's linear weight."""
        fields = RetrievalModel.row_fields(model)
        fields.item.append(Field("weight", 1, "learned"))
        return fields

    def embed_items(self, inputs: ItemInputs, draws: Draws | None = None) -> Tensor:
        """Return the sum of the item's factors, and what the item scores by itself (T, K + 1)."""
        assert inputs.weight_T1 is not None
        side = feature_parts(inputs.values_TFK, inputs.numbers_TN, self.item_numeric)
        factor_TPK = self._factors([inputs.embedding_TK, *side])
        sum_TK = factor_TPK.sum(1)
        # Equation 1's pairs by lemma 3.1: half of (square of the sum - sum of the squares).
        pairs_T = (sum_TK.square().sum(1) - factor_TPK.square().sum((1, 2))) / 2
        own_T1 = self.w0 + inputs.weight_T1 + pairs_T.unsqueeze(1)
        return torch.cat([unit_length(sum_TK, self.settings.normalise), own_T1], dim=1)

    def embed_users(self, inputs: UserInputs, draws: Draws | None = None) -> Tensor:
        """Return the sum of the query's factors, and a 1 (B, K + 1)."""
        pooled_BK = None if inputs.history is None else pool_history(*inputs.history, mean=True)
        parts = [part for part in (inputs.embedding_BK, pooled_BK) if part is not None]
        parts += feature_parts(inputs.values_BFK, inputs.numbers_BN, self.user_numeric)
        sum_BK = unit_length(self._factors(parts).sum(1), self.settings.normalise)
        return torch.cat([sum_BK, torch.ones_like(sum_BK[:, :1])], dim=1)

    def _factors(self, parts: list[Tensor]) -> Tensor:
        """Return parts of one or several factors each as (n, P, K)."""
        side = torch.cat(parts, dim=1)
        return side.view(len(side), -1, self.settings.embedding_dim)
