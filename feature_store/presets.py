"""Named starting values of `[model]` and `[learning]`: what `model.preset` may say.

Owns the names and their values. Explicit keys override a preset, wherever they come from (`settings.py`).
Never checks the values: the configuration does that once they are merged.
"""

from typing import Any

# The paper's letter: it collapses (every output becomes 0), which is why it is not the default.
_PAPER_MODEL: dict[str, Any] = {
    "hidden": [256, 128],
    "output_dim": 32,
    "last_relu": True,
    "residual": False,
    "dropout": 0.0,
    "use_user_id": True,
    "history_length": 0,
    "user_augmented": "learned",
    "item_augmented": "learned",
    "lambda_cal": 1.0,
    "loss": "bce",
    "temperature": 1.0,
    "logq": False,
    "popularity_weight": 0.0,
}
_PAPER_LEARNING: dict[str, Any] = {
    "batch_size": 256,
    "negatives_per_positive": 5,
    "shared_negatives": 0,
    "rehearsal_ratio": 0,
}

PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "paper": {"model": _PAPER_MODEL, "learning": _PAPER_LEARNING},
    "reproduction": {
        "model": {**_PAPER_MODEL, "hidden": [128, 64], "own_tower_mimic": True},
        "learning": {
            **_PAPER_LEARNING,
            "batch_size": 1536,
            "rows_learning_rate": 0.05,
            "dense_learning_rate": 0.05,
        },
    },
}
