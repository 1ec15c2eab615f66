"""YouTubeDNN's candidate generation (Covington, Adams, Sargin: RecSys 2016, section 3) on the rows we have.

Owns the user tower over the mean of what was watched before; what is watched next is a class of the softmax,
and its weights are the item's ID embedding. The paper's inputs that our events lack (search tokens, example
age) are left out, its item side knows no features, and input and output share one embedding. Legend: B
queries, T items, K embedding width, D output width (the same), Z input width.
"""

from torch import Tensor

from feature_store.configuration import FeatureSettings, ModelSettings
from stream_trainer.models.dropout import Draws
from stream_trainer.models.history_pool import pool_history
from stream_trainer.models.retrieval import ItemInputs, RetrievalModel, UserInputs
from stream_trainer.models.tower import NumericLayers, Tower, feature_parts, unit_length


class YouTubeDnn(RetrievalModel):
    """One tower, for queries. The user's ID is an input only if `use_user_id` asks: the paper has none."""

    def __init__(self, model: ModelSettings, features: FeatureSettings) -> None:
        super().__init__(model, features)
        num_numbers = len(features.user_numeric)
        user_dim = model.embedding_dim * (1 + model.use_user_id + len(features.user_categorical))
        self.user_tower = Tower(user_dim + model.numeric_dim * num_numbers, model)
        self.user_numeric = NumericLayers(num_numbers, model.numeric_dim) if num_numbers else None

    def embed_items(self, inputs: ItemInputs, draws: Draws | None = None) -> Tensor:
        """Return p_v (T, D): the ID's embedding."""
        return unit_length(inputs.embedding_TK, self.settings.normalise)

    def embed_users(self, inputs: UserInputs, draws: Draws | None = None) -> Tensor:
        """Return p_u (B, D)."""
        assert inputs.history is not None  # the configuration refuses a history of length 0
        mean_BK = pool_history(*inputs.history, mean=True)
        parts = [mean_BK] if inputs.embedding_BK is None else [inputs.embedding_BK, mean_BK]
        parts += feature_parts(inputs.values_BFK, inputs.numbers_BN, self.user_numeric)
        residual_BK = mean_BK if self.settings.residual else None
        return self.user_tower(parts, residual_BK, draws)  # type: ignore[no-any-return]
