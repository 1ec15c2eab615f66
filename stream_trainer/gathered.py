"""Rows of a batch, gathered once, as the tensors that the towers take; and moved once after learning.

Owns the way from slots to `ItemInputs`. Legend: n rows gathered, T items in the tower.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_store.rows import RowTable
from stream_trainer.models.loops import leading_columns, pool_values
from stream_trainer.models.retrieval import ItemInputs
from stream_trainer.models.row_optimiser import update_rows

I64 = npt.NDArray[np.int64]


class GatheredRows:
    """Distinct rows of one table. Each learned field is a leaf of its own, contiguous, where its gradient
    arrives.
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
        flat = torch.cat([item_values_TC.reshape(-1), user_values_BC.reshape(-1)]).long().numpy()
        unique, inverse = np.unique(flat, return_inverse=True)
        missing = int(len(unique) > 0 and unique[0] < 0)  # -1 sorts first and stays -1
        self.rows = GatheredRows(table, table.slots(unique[missing:]), learn)
        places = torch.from_numpy(inverse - missing)
        split = item_values_TC.numel()
        self._items_TC = places[:split].view(item_values_TC.shape)
        self._users_BC = places[split:].view(user_values_BC.shape)

    def items(self, counts: list[int]) -> Tensor | None:
        """Return the pooled values of each item (T, F × K), None if there are no such features."""
        return pool_values(self.rows.learned("embedding"), self._items_TC, counts) if counts else None

    def users(self, counts: list[int]) -> Tensor | None:
        """Return the pooled values of each query (B, F × K), None if there are no such features."""
        return pool_values(self.rows.learned("embedding"), self._users_BC, counts) if counts else None


def item_inputs(rows: GatheredRows, tower_T: Tensor | None, values_TFK: Tensor | None) -> ItemInputs:
    """Return what the model sees of the rows `tower_T` (None: of all)."""

    def pick(field_nX: Tensor | None) -> Tensor | None:
        return field_nX if field_nX is None or tower_T is None else field_nX.index_select(0, tower_T)

    embedding_nK = rows.learned("embedding")
    return ItemInputs(
        embedding_nK if tower_T is None else embedding_nK.index_select(0, tower_T),
        pick(rows.learned_or_none("augmented")),
        values_TFK,
        pick(rows.floats("numbers")),
        pick(rows.learned_or_none("weight")),
    )
