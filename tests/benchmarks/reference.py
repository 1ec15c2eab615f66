"""Row (a) of the bench: DAT as a practitioner would write it in plain PyTorch, all in memory; and row (e),
its matrix products alone.

`nn.Embedding(sparse=True)` with `SparseAdam`, `torch.optim.Adam` on the towers, uniform negatives, BCE, mimic
losses, Category Alignment Loss. No log, no store. Legend: B positives, S negatives each, D widths.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CATEGORIES = 11


def tower(input_dim: int, hidden: list[int]) -> nn.Sequential:
    """Return the paper's tower with a linear last layer of 32 (the paper's ReLU collapses)."""
    first, second = hidden
    return nn.Sequential(
        nn.Linear(input_dim, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 32)
    )


class PlainDat(nn.Module):
    """All parameters in memory."""

    def __init__(self, num_users: int, num_items: int, hidden: list[int]) -> None:
        super().__init__()
        self.user, self.user_augmented = (nn.Embedding(num_users, 32, sparse=True) for _ in range(2))
        self.item, self.item_augmented = (nn.Embedding(num_items, 32, sparse=True) for _ in range(2))
        self.category = nn.Embedding(CATEGORIES, 32, sparse=True)
        for table in self.tables():
            nn.init.uniform_(table.weight, -0.005, 0.005)
        self.user_tower, self.item_tower = tower(64, hidden), tower(96, hidden)

    def tables(self) -> list[nn.Embedding]:
        """Return the sparse parts."""
        return [self.user, self.user_augmented, self.item, self.item_augmented, self.category]

    def loss(self, users_B: Tensor, items_BJ: Tensor, category_BJ: Tensor) -> Tensor:
        """Return the paper's loss of a batch whose first item of each row is the positive."""
        num, width = items_BJ.shape
        a_u = self.user_augmented(users_B)
        p_u = F.normalize(self.user_tower(torch.cat([self.user(users_B), a_u], 1)), dim=1)
        a_v = self.item_augmented(items_BJ)
        z_v = torch.cat([self.item(items_BJ), a_v, self.category(category_BJ)], 2)
        p_v = F.normalize(self.item_tower(z_v), dim=2)
        logits = torch.einsum("bd,bjd->bj", p_u, p_v) / 0.1
        labels = torch.zeros_like(logits)
        labels[:, 0] = 1
        loss = F.binary_cross_entropy_with_logits(logits, labels)
        pairs = num * width
        loss = loss + 0.5 * (a_u - p_v[:, 0].detach()).square().sum() / pairs
        loss = loss + 0.5 * (a_v[:, 0] - p_u.detach()).square().sum() / pairs
        return loss + alignment(p_v.reshape(pairs, -1), category_BJ.reshape(-1))


def alignment(p: Tensor, category: Tensor) -> Tensor:
    """Return the Category Alignment Loss."""
    counts = torch.bincount(category, minlength=CATEGORIES)
    covariances = {c: torch.cov(p[category == c].T) for c in range(CATEGORIES) if counts[c] > 1}
    major = covariances[int(torch.argmax(counts))]
    return torch.stack([(major - c).square().sum() for c in covariances.values()]).sum()


class PlainLoop:
    """The training loop over random pairs of Amazon Books' size."""

    def __init__(self, num_users: int, num_items: int, hidden: list[int], batch: int, negatives: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model = PlainDat(num_users, num_items, hidden)
        self.sparse = torch.optim.SparseAdam([t.weight for t in self.model.tables()], lr=1e-3)
        dense = [*self.model.user_tower.parameters(), *self.model.item_tower.parameters()]
        self.dense = torch.optim.Adam(dense, lr=1e-3, fused=True)
        self.category_of = torch.randint(CATEGORIES, (num_items,), generator=self.generator)
        self.sizes = (num_users, num_items, batch, negatives)

    def step(self, users_B: Tensor, positive_B: Tensor) -> None:
        """Learn one batch of positives."""
        _, num_items, batch, negatives = self.sizes
        drawn = torch.randint(num_items, (batch, negatives), generator=self.generator)
        items_BJ = torch.cat([positive_B[:, None], drawn], 1)
        self.sparse.zero_grad()
        self.dense.zero_grad()
        self.model.loss(users_B, items_BJ, self.category_of[items_BJ]).backward()
        self.sparse.step()
        self.dense.step()


class Floor:
    """Only the towers' matrix products, forward and backward, on inputs that are there already."""

    def __init__(self, hidden: list[int], batch: int, negatives: int) -> None:
        self.towers = [tower(64, hidden), tower(96, hidden)]
        self.inputs = [torch.randn(batch, 64), torch.randn(batch * (negatives + 1), 96)]
        for x in self.inputs:
            x.requires_grad_(True)

    def step(self) -> None:
        """Do one batch's products."""
        for one, x in zip(self.towers, self.inputs, strict=True):
            y = x
            for layer in one:
                y = layer(y) if isinstance(layer, nn.Linear) else y
            y.backward(torch.ones_like(y))
