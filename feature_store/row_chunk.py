"""Rows on their way from a table to the store.

Owns their shape only; needs no torch, so that who only stores them starts quickly. Legend: n rows, W floats.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class RowChunk(NamedTuple):
    """Some rows and their keys."""

    keys: list[bytes]
    rows_nW: npt.NDArray[np.float32]

    def pairs(self) -> Iterator[tuple[bytes, bytes]]:
        """Return each key with its row's bytes."""
        values: list[bytes] = self.rows_nW.view(f"V{self.rows_nW.shape[1] * 4}").ravel().tolist()
        return zip(self.keys, values, strict=True)
