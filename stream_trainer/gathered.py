"""Rows of a batch, gathered once, as the tensors that the towers take; and moved once after learning.

Owns the way from slots to `ItemInputs`. Legend: n rows gathered, T items in the tower.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_store.rows import RowTable
from stream_trainer.candidates import distinct
from stream_trainer.models.loops import leading_columns, pool_values
from stream_trainer.models.retrieval import ItemInputs
from stream_trainer.models.row_optimiser import update_rows

I64 = npt.NDArray[np.int64]


class GatheredRows:
    """Rows of one table, distinct ones if they are to learn. Each learned field is a leaf of its own,
    contiguous, where its gradient arrives.
    """

    def __init__(self, table: RowTable, slots: I64, learn: bool) -> None:
        self._table = table
        self._slots = slots
        fields = table.layout.learned
        columns = leading_columns(table.rows_RW, slots, [field.width for field in fields])
        self._leaves = {
            field.name: torch.from_numpy(column).requires_grad_(learn)
            for field, column in zip(fields, columns, strict=True)
        }

    def learned(self, name: str) -> Tensor:
        """Return a learned field (n, width), where the gradient goes."""
        return self._leaves[name]

    def learned_or_none(self, name: str) -> Tensor | None:
        """Return a learned field, None if the model's rows have no such field."""
        return self._leaves.get(name)

    def floats(self, name: str) -> Tensor:
        """Return a field as it stands in the table (n, width)."""
        return torch.from_numpy(self._table.floats(self._slots, name))

    def ints(self, name: str) -> Tensor:
        """Return an integer field as it stands in the table (n, width)."""
        return torch.from_numpy(self._table.ints(self._slots, name))

    def learn(self, learning_rate: float) -> None:
        """Move the rows in their table against the gradients that arrived at the learned fields."""
        leaves, layout = self._leaves.values(), self._table.layout
        if all(leaf.grad is None for leaf in leaves):
            return
        gradients = [(torch.zeros_like(leaf) if leaf.grad is None else leaf.grad).numpy() for leaf in leaves]
        self._table.update(
            self._slots, lambda rows_RW, slots: update_rows(layout, rows_RW, slots, gradients, learning_rate)
        )


class GatheredValues:
    """The embeddings of the categorical values of a batch, each value gathered once for items and users
    together.
    """

    def __init__(self, table: RowTable, item_values_TC: Tensor, user_values_BC: Tensor, learn: bool) -> None:
        flat = [values.numpy().reshape(-1) for values in (item_values_TC, user_values_BC)]
        numbers, inverse = distinct(np.concatenate(flat, dtype=np.int64))
        self.rows = GatheredRows(table, table.slots(numbers), learn)
        places = torch.from_numpy(inverse)
        split = item_values_TC.numel()
        self._items_TC = places[:split].view(item_values_TC.shape)
        self._users_BC = places[split:].view(user_values_BC.shape)

    def items(self, counts: list[int]) -> Tensor | None:
        """Return the pooled values of each item (T, F × K), None if there are no such features."""
        return pool_values(self.rows.learned("embedding"), self._items_TC, counts) if counts else None

    def users(self, counts: list[int]) -> Tensor | None:
        """Return the pooled values of each query (B, F × K), None if there are no such features."""
        return pool_values(self.rows.learned("embedding"), self._users_BC, counts) if counts else None


def item_inputs(rows: GatheredRows, num_tower: int, values_TFK: Tensor | None) -> ItemInputs:
    """Return what the model sees of the first `num_tower` rows."""
    return ItemInputs(
        _leading(rows.learned("embedding"), num_tower),
        _leading_or_none(rows.learned_or_none("augmented"), num_tower),
        values_TFK,
        _leading(rows.floats("numbers"), num_tower),
        _leading_or_none(rows.learned_or_none("weight"), num_tower),
    )


def _leading(field_nX: Tensor, num: int) -> Tensor:
    """Return the first rows; all of them as they are, of which autograd makes no copies."""
    return field_nX if len(field_nX) == num else field_nX[:num]


def _leading_or_none(field_nX: Tensor | None, num: int) -> Tensor | None:
    return None if field_nX is None else _leading(field_nX, num)
