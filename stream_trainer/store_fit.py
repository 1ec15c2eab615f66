"""Which settings a store keeps for life.

Pure. Owns what of the settings stands in a store, and the check that it fits those of today.
"""

import json

from feature_store.configuration import Configuration
from feature_store.errors import StoreMismatchError

# Settings that a store cannot change once it is made: they decide what its bytes mean.
_FIXED = {
    "model": [
        "name",
        "embedding_dim",
        "augmented_dim",
        "numeric_dim",
        "hidden",
        "output_dim",
        "use_user_id",
        "history_length",
        "user_augmented",
    ],
    "features": ["item_categorical", "item_numeric", "user_categorical", "user_numeric"],
    "learning": ["seed", "rows_optimiser", "rehearsal_capacity", "shown_negatives"],
}
_COMMIT_PACE = {"commit_interval_seconds", "commit_every_batches"}


def config_json(config: Configuration) -> bytes:
    """What rebuilds the model from the store alone, for the refresher and for the check at start.

    How often it is committed is left out: bytes do not depend on that.
    """
    kept = config.model_dump(
        mode="json", include={"model", "features", "learning"}, exclude={"learning": _COMMIT_PACE}
    )
    return json.dumps(kept, sort_keys=True).encode()


def check_fits(config: Configuration, stored_json: bytes | None) -> None:
    """Compare settings with those that a store was made with, None of a new one.

    Raises:
        StoreMismatchError: the store was made with settings that these cannot continue.
    """
    if stored_json is None:
        return
    stored = json.loads(stored_json)
    current = json.loads(config_json(config))
    for section, keys in _FIXED.items():
        for key in keys:
            if stored[section].get(key) != current[section][key]:
                raise StoreMismatchError(
                    f"{config.store.path} was made with {section}.{key} = {stored[section].get(key)!r}, not "
                    f"{current[section][key]!r}; keep the setting, or start with a new store.path"
                )
