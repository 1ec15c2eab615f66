"""From settings to a model and its rows: the one place that knows all models by name.

Owns the names, and the fields that every model's rows have. Never reads a table or a store.
"""

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.row_layout import Field, RowLayout, RowsOptimiser
from stream_trainer.models.dat import Dat
from stream_trainer.models.fm import FactorizationMachine
from stream_trainer.models.mind import Mind
from stream_trainer.models.retrieval import RetrievalModel
from stream_trainer.models.youtube_dnn import YouTubeDnn

_MODELS: dict[str, type[RetrievalModel]] = {
    "dat": Dat,
    "two_tower": Dat,
    "youtube_dnn": YouTubeDnn,
    "fm": FactorizationMachine,
    "mind": Mind,
}


def make_model(model: ModelSettings, features: FeatureSettings) -> RetrievalModel:
    """Return the model that `model.name` names. Initial weights come from torch's global generator."""
    return _MODELS[model.name](model, features)


def row_layouts(
    model: ModelSettings, features: FeatureSettings, optimiser: RowsOptimiser
) -> dict[str, RowLayout]:
    """Return the fields that are kept for each item, user and feature value: the model's own, then what
    every model has.
    """
    own = _MODELS[model.name].row_fields(model)
    item = [
        *own.item,
        Field("frequency", 1, "float"),
        Field("frequency_at", 1, "int"),
        Field("values", sum(features.item_categorical.values()), "int", -1),
        Field("numbers", len(features.item_numeric), "float", float("nan")),
    ]
    user = [
        *own.user,
        Field("history", model.history_length, "int", -1),
        Field("values", sum(features.user_categorical.values()), "int", -1),
        Field("numbers", len(features.user_numeric), "float", float("nan")),
    ]
    return {
        "item": RowLayout(tuple(item), optimiser),
        "user": RowLayout(tuple(user), optimiser),
        "value": RowLayout(tuple(own.value), optimiser),
    }


def running_mean_width(model: ModelSettings) -> int:
    """Return how wide the running mean of a user is that examples keep; 0 if the model's rows have none."""
    fields = _MODELS[model.name].row_fields(model).user
    return sum(field.width for field in fields if field.name == "mean")
