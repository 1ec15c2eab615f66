"""What a per-ID row is made of, where each part of it stands, and what rows of new IDs hold.

Pure. Legend of shapes: n rows of one call, W width of a row in floats.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from feature_store.hashing import Purpose, draw_uniform, event_keys, hash_ids, mix

RowsOptimiser: TypeAlias = Literal["adam", "rowwise_adam", "adagrad"]


class Field(NamedTuple):
    """A part of a row. Learned fields get gradients and optimiser state; others stay as written."""

    name: str
    width: int
    kind: Literal["learned", "float", "int"] = "learned"
    init_scale: float = 0.0
    """Learned: uniform in ±init_scale by the hash of the ID. Float: the constant itself. Int: the constant as
    integer.
    """


@dataclass(frozen=True)
class RowLayout:
    """Where each field stands in a row: learned fields first, then plain ones, then the optimiser's state."""

    fields: tuple[Field, ...]
    optimiser: RowsOptimiser

    @property
    def learned(self) -> tuple[Field, ...]:
        """Return the fields that get gradients."""
        return tuple(field for field in self.fields if field.kind == "learned")

    @property
    def num_learned(self) -> int:
        """Floats that get gradients: the first of the row."""
        return sum(field.width for field in self.learned)

    @property
    def num_values(self) -> int:
        """Floats before the optimiser's state."""
        return sum(f.width for f in self.fields)

    @property
    def width(self) -> int:
        """Floats in a row. Adam keeps two moments a float and a step count; row-wise Adam one moment a float,
        one a field, and the count; Adagrad one number.
        """
        if not self.num_learned:
            return self.num_values
        state = {
            "adam": 2 * self.num_learned + 1,
            "rowwise_adam": self.num_learned + len(self.learned) + 1,
            "adagrad": 1,
        }
        return self.num_values + state[self.optimiser]

    def span(self, name: str) -> slice:
        """Return the columns of a field. Raises KeyError if the layout has no such field."""
        start = 0
        for field in sorted(self.fields, key=lambda f: f.kind != "learned"):
            if field.name == name:
                return slice(start, start + field.width)
            start += field.width
        raise KeyError(name)

    def new_rows(self, seed: int, keys: Sequence[bytes]) -> npt.NDArray[np.float32]:
        """Return the rows (n, W) that IDs never seen start from: a hash of the ID, so that arrival order does
        not matter.
        """
        rows = np.zeros((len(keys), self.width), np.float32)
        with np.errstate(over="ignore"):
            roots = mix(hash_ids(keys) + event_keys(seed, Purpose.ROW, [0], [0]))
        noise = draw_uniform(roots, self.num_learned) * 2 - 1 if self.num_learned else None
        for field in self.fields:
            span = self.span(field.name)
            if field.kind == "learned":
                assert noise is not None
                rows[:, span] = noise[:, span] * np.float32(field.init_scale)
            elif field.kind == "float":
                rows[:, span] = field.init_scale
            else:
                rows[:, span].view(np.int32)[:] = int(field.init_scale)
        return rows
