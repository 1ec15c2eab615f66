"""Features of events as arrays: which ones count is configuration, and unknown or missing values are
ordinary.

Pure. Owns the order of features in a row and the treatment of numbers. Legend: C kept categorical values, N
numeric features.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from feature_store.numbering import Numbering
from feature_store.schema import FeatureValue

log = logging.getLogger(__name__)

MISSING = -1
_SEPARATOR = "\x00"


class FeatureEncoder:
    """Turns one side's features (an item's, a user's) into the integers and floats that its row keeps."""

    def __init__(self, categorical: Mapping[str, int], numeric: Sequence[str], values: Numbering) -> None:
        self._categorical = dict(categorical)
        self._numeric = list(numeric)
        self._told: set[str] = set()
        self._number_of = cache(values.number)  # values are few, and come one by one

    @property
    def num_values(self) -> int:
        """C, how many integers `encode` gives."""
        return sum(self._categorical.values())

    @property
    def num_numbers(self) -> int:
        """N, how many floats `encode` gives."""
        return len(self._numeric)

    def encode(
        self, features: Mapping[str, FeatureValue]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        """Return value numbers (C,), MISSING where there is none, and numbers (N,), NaN where there is none.

        A value of the wrong kind (a text where a number is configured) counts as missing, for the model must
        go on; the first of each feature is logged.

        >>> encoder = FeatureEncoder({"category": 2}, ["price"], Numbering())
        >>> codes, numbers = encoder.encode({"category": ["toys"], "price": 3})
        >>> codes.tolist(), round(float(numbers[0]), 4)
        ([0, -1], 1.3863)
        """
        codes: list[int] = []
        for name, count in self._categorical.items():
            value = features.get(name)
            texts = value if isinstance(value, list) else [] if value is None else [str(value)]
            kept = [self._number_of(f"{name}{_SEPARATOR}{text}") for text in texts[:count] if text]
            codes += kept + [MISSING] * (count - len(kept))
        numbers = [self._number(name, features.get(name)) for name in self._numeric]
        return np.array(codes, np.int32), np.array(numbers, np.float32)

    def _number(self, name: str, value: FeatureValue | None) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            if value is not None and name not in self._told:
                self._told.add(name)
                log.warning("feature '%s' is no number but %.100r: it counts as missing", name, value)
            return math.nan
        return _squash(value)


def _squash(value: float) -> float:
    """Tame prices and counts: sign(x) log(1 + |x|), so that one large number does not drown a layer."""
    return math.copysign(math.log1p(abs(value)), value)
