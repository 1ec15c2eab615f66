"""MIND, the multi-interest network with dynamic routing (Li et al., CIKM 2019).

Owns the routing of a history to interest capsules, and the attention that lets the loss see the interest the
positive belongs to. Items are their ID's embedding: rows of a history bring no features along.
Legend: B queries, L history, I interests, T items, K embedding width, D output width (the same).
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.hashing import Purpose, draw_uniform, event_keys
from stream_trainer.models.dropout import Draws
from stream_trainer.models.retrieval import History, ItemInputs, RetrievalModel, UserInputs
from stream_trainer.models.tower import NumericLayers, Tower, feature_parts, unit_length


class Mind(RetrievalModel):
    """One bilinear map for all pairs of behaviour and interest, and one tower for all interests."""

    routing_LI: Tensor

    def __init__(self, model: ModelSettings, features: FeatureSettings) -> None:
        super().__init__(model, features)
        num_numbers = len(features.user_numeric)
        user_dim = model.embedding_dim * (1 + model.use_user_id + len(features.user_categorical))
        self.bilinear = nn.Linear(model.embedding_dim, model.embedding_dim, bias=False)
        # The paper leaves its start open: behaviours that start as themselves learn faster than mixed ones.
        nn.init.eye_(self.bilinear.weight)
        self.user_tower = Tower(user_dim + model.numeric_dim * num_numbers, model)
        self.user_numeric = NumericLayers(num_numbers, model.numeric_dim) if num_numbers else None
        logits_LI = initial_logits(model.history_length, model.num_interests)
        self.register_buffer("routing_LI", logits_LI, persistent=False)

    def embed_items(self, inputs: ItemInputs, draws: Draws | None = None) -> Tensor:
        """Return p_v (T, D): the ID's embedding."""
        return unit_length(inputs.embedding_TK, self.settings.normalise)

    def embed_users(self, inputs: UserInputs, draws: Draws | None = None) -> Tensor:
        """Return one embedding for each interest (B, I, D)."""
        assert inputs.history is not None  # the configuration refuses a history of length 0
        interests_BIK = self._interests(inputs.history)
        parts = [] if inputs.embedding_BK is None else [inputs.embedding_BK]
        parts += feature_parts(inputs.values_BFK, inputs.numbers_BN, self.user_numeric)
        spread = [part.unsqueeze(1).expand(-1, interests_BIK.shape[1], -1) for part in parts]
        residual_BIK = interests_BIK if self.settings.residual else None
        return self.user_tower([interests_BIK, *spread], residual_BIK, draws)  # type: ignore[no-any-return]

    def loss_queries(self, users: Tensor, items_TD: Tensor, positive_B: Tensor) -> Tensor:
        """Return each query's interests, weighted by how well they fit its positive (equation 8): (B, D)."""
        positive_BD = items_TD.index_select(0, positive_B)
        return label_aware(users, positive_BD, self.settings.temperature, self.settings.label_attention_power)

    def _interests(self, history: History) -> Tensor:
        num, length = history.places_BL.shape
        if not len(history.embedding_IK):  # nobody in the batch has a history
            return self.bilinear.weight.new_zeros(num, self.settings.num_interests, self.bilinear.in_features)
        # As they are scored: capsules of the tiny vectors that rows start from would be squashed to nothing.
        behaviour_IK = self.bilinear(unit_length(history.embedding_IK, self.settings.normalise))
        chosen = history.places_BL.clamp(min=0).reshape(-1)
        behaviour_BLK = behaviour_IK.index_select(0, chosen).view(num, length, -1)
        valid_BL = history.places_BL >= 0
        return route(behaviour_BLK, valid_BL, self.routing_LI, self.settings.routing_iterations)


def initial_logits(length: int, num_interests: int) -> Tensor:
    """Return the routing logits that every history starts from (L, I): standard normal, the newest place
    last.

    The paper draws them anew for each user. Here they are a hash of place and interest, so that learning,
    serving and every later process route alike: a query's embedding must not change by itself.
    """
    places = np.arange(length, 0, -1)
    keys = event_keys(0, Purpose.WEIGHTS, np.zeros(length, np.int64), places)
    uniform_L2I = 1 - draw_uniform(keys, 2 * num_interests)  # (0, 1]: its logarithm is finite
    radius_LI = np.sqrt(-2 * np.log(uniform_L2I[:, :num_interests]))
    normal_LI = radius_LI * np.cos(2 * np.pi * uniform_L2I[:, num_interests:])  # Box and Muller 1958
    return torch.from_numpy(normal_LI.astype(np.float32))


def squash(x: Tensor) -> Tensor:
    """Shorten vectors to a length below one: |x|² / (1 + |x|²) · x / |x| (equation 7).

    >>> [round(x, 2) for x in squash(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).flatten().tolist()]
    [0.58, 0.77, 0.0, 0.0]
    """
    square = x.square().sum(-1, keepdim=True)
    return x * (square / (1 + square) * torch.rsqrt(square + 1e-9))


def route(behaviour_BLK: Tensor, valid_BL: Tensor, logits_LI: Tensor, num_iterations: int) -> Tensor:
    """Return interest capsules (B, I, K) of mapped behaviours S e (algorithm 1); zeros for an empty history.

    A short history has fewer interests than I (`num_interests`); the places left over repeat the first ones.
    Without that rule interests of one or two behaviours each are noise, and the best of them recommends it:
    one pass over Toys found half as many of the held-out items.

    The agreement that moves the logits gets no gradient, as is usual since Sabour et al. 2017 left it open:
    the last iteration's weighted sum does.
    """
    fixed_BLK = behaviour_BLK.detach()
    valid_BL1 = valid_BL.unsqueeze(2).to(behaviour_BLK.dtype)
    interest_I = torch.arange(logits_LI.shape[1])
    num_B1 = num_interests(valid_BL.sum(1), len(interest_I)).unsqueeze(1)
    logits_BLI = logits_LI.masked_fill((interest_I >= num_B1).unsqueeze(1), float("-inf"))
    for _ in range(num_iterations - 1):
        weight_BLI = F.softmax(logits_BLI, dim=2) * valid_BL1
        capsule_BIK = squash(torch.bmm(weight_BLI.transpose(1, 2), fixed_BLK))
        logits_BLI = logits_BLI + torch.bmm(fixed_BLK, capsule_BIK.transpose(1, 2))
    weight_BLI = F.softmax(logits_BLI, dim=2) * valid_BL1
    capsule_BIK = squash(torch.bmm(weight_BLI.transpose(1, 2), behaviour_BLK))
    return capsule_BIK.gather(1, (interest_I % num_B1).unsqueeze(2).expand_as(capsule_BIK))


def num_interests(counts_B: Tensor, most: int) -> Tensor:
    """Return max(1, min(most, ⌊log₂ count⌋)) for each length of a history (equation 9).

    >>> num_interests(torch.tensor([0, 3, 4, 7, 8, 1000]), 5).tolist()
    [1, 1, 2, 2, 3, 5]
    """
    return 1 + (counts_B.unsqueeze(1) >= 2 ** torch.arange(2, most + 1)).sum(1)


def label_aware(interests_BID: Tensor, positive_BD: Tensor, temperature: float, power: float) -> Tensor:
    """Return Σ_i softmax_i(score_i ^ power) p_i, the score being ⟨p_i, p_v⟩ / temperature: (B, D).

    The power keeps the score's sign; the larger it is, the closer to the best interest alone, which is what
    retrieval goes by.
    """
    score_BI = torch.bmm(interests_BID, positive_BD.unsqueeze(2)).squeeze(2) / temperature
    weight_BI = F.softmax(score_BI.sign() * score_BI.abs() ** power, dim=1)
    return torch.bmm(weight_BI.unsqueeze(1), interests_BID).squeeze(1)
