"""Rows (a) of the bench: the models as a practitioner would write them in plain PyTorch, all in memory; and
rows (e), their matrix products alone.

`nn.Embedding(sparse=True)` with `SparseAdam`, `torch.optim.Adam` on the towers; no log, no store. DAT as the
paper has it: uniform negatives, BCE, mimic losses, Category Alignment Loss. The default preset: pooled
history, residual towers, dropout, one softmax over shared negatives, running-mean a_u, rehearsal. Legend: B
positives, S negatives each, M shared ones, L history, X rehearsal ratio, D widths.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CATEGORIES = 11
HISTORY, SHARED, KEPT = 20, 2048, 200_000


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
        loss: Tensor = F.binary_cross_entropy_with_logits(logits, labels)
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
        self.model.loss(users_B, items_BJ, self.category_of[items_BJ]).backward()  # type: ignore[no-untyped-call]
        self.sparse.step()  # type: ignore[no-untyped-call]
        self.dense.step()

    def step_bfloat16(self, users_B: Tensor, positive_B: Tensor) -> None:
        """Do the same with the layers in bfloat16, as torch's own autocast does it."""
        with torch.autocast("cpu", torch.bfloat16):
            self.step(users_B, positive_B)


class PlainDefault(nn.Module):
    """The default preset's parameters, all in memory."""

    def __init__(self, num_items: int, hidden: list[int]) -> None:
        super().__init__()
        self.item, self.item_augmented = (nn.Embedding(num_items, 32, sparse=True) for _ in range(2))
        self.category = nn.Embedding(CATEGORIES, 32, sparse=True)
        for table in self.tables():
            nn.init.uniform_(table.weight, -0.02, 0.02)
        self.user_tower, self.item_tower = tower(64, hidden), tower(96, hidden)
        self.log_decay = nn.Parameter(math.log(0.6) * torch.arange(HISTORY - 1.0, -1.0, -1.0))
        self.augmented_weight = nn.Parameter(torch.zeros(()))

    def tables(self) -> list[nn.Embedding]:
        """Return the sparse parts."""
        return [self.item, self.item_augmented, self.category]

    def items(self, items_T: Tensor, category_T: Tensor) -> tuple[Tensor, Tensor]:
        """Return p_v and a_v."""
        embedding, a_v = self.item(items_T), self.item_augmented(items_T)
        z_v = torch.cat([embedding, a_v.detach(), self.category(category_T)], 1)
        kept = a_v.detach() * torch.empty(len(a_v), 1).bernoulli_(0.5)
        out = self.item_tower(F.dropout(z_v, 0.3)) + embedding + self.augmented_weight * kept
        return F.normalize(out, dim=1), a_v

    def users(self, history_BL: Tensor, mean_BD: Tensor) -> Tensor:
        """Return p_u."""
        known_BL = history_BL >= 0
        weight_BL = self.log_decay.exp() * known_BL
        ends_B = known_BL.sum(1).cumsum(0)
        pooled = F.embedding_bag(
            history_BL[known_BL],
            self.item.weight,
            ends_B - known_BL.sum(1),
            mode="sum",
            sparse=True,
            per_sample_weights=weight_BL[known_BL],
        )
        pooled = pooled / weight_BL.sum(1, keepdim=True).clamp(min=1e-6).sqrt()
        z_u = torch.cat([pooled, mean_BD], 1)
        return F.normalize(self.user_tower(F.dropout(z_u, 0.3)) + pooled, dim=1)

    def loss(
        self, history_BL: Tensor, mean_BD: Tensor, items_T: Tensor, category_T: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the loss, and p_v; the first B of `items_T` are the positives, the others the negatives."""
        num = len(history_BL)
        p_u = self.users(history_BL, mean_BD)
        p_v, a_v = self.items(items_T, category_T)
        positive_B1 = (p_u * p_v[:num]).sum(1, keepdim=True)
        negative_BM = p_u @ p_v[num:].T
        negative_BM = negative_BM.masked_fill(items_T[:num, None] == items_T[None, num:], float("-inf"))
        logits = torch.cat([positive_B1, negative_BM], 1) / 0.1
        main = F.cross_entropy(logits, torch.zeros(num, dtype=torch.long))
        return main + 0.5 * (a_v[:num] - p_u.detach()).square().sum() / num, p_v.detach()


class PlainDefaultLoop:
    """The default preset's training loop over random pairs: histories, means and rehearsal in tensors."""

    def __init__(self, num_users: int, num_items: int, hidden: list[int], batch: int, ratio: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.model = PlainDefault(num_items, hidden)
        self.sparse = torch.optim.SparseAdam([t.weight for t in self.model.tables()], lr=3e-3)
        tables = {id(table.weight) for table in self.model.tables()}
        dense = [parameter for parameter in self.model.parameters() if id(parameter) not in tables]
        self.dense = torch.optim.Adam(dense, lr=1e-3, fused=True)
        self.category_of = torch.randint(CATEGORIES, (num_items,), generator=self.generator)
        self.sizes = (num_items, batch, ratio)
        self.history = torch.full((num_users, HISTORY), -1)
        half = HISTORY // 2
        self.history[:, half:] = torch.randint(num_items, (num_users, half), generator=self.generator)
        self.mean, self.count = torch.zeros(num_users, 32), torch.zeros(num_users, 1)
        self.kept: list[Tensor] = [
            torch.zeros(KEPT, dtype=torch.long),
            torch.zeros(KEPT, HISTORY, dtype=torch.long),
            torch.zeros(KEPT, 32),
        ]
        self.num_kept = 0

    def step(self, users_B: Tensor, positive_B: Tensor) -> None:
        """Learn some positives, in batches of the preset's size."""
        batch = self.sizes[1]
        for users, positives in zip(torch.split(users_B, batch), torch.split(positive_B, batch), strict=True):
            self.learn(users, positives)

    def step_bfloat16(self, users_B: Tensor, positive_B: Tensor) -> None:
        """Do the same with the layers in bfloat16, as torch's own autocast does it."""
        batch = self.sizes[1]
        for users, positives in zip(torch.split(users_B, batch), torch.split(positive_B, batch), strict=True):
            # Around one batch: the weights in bfloat16 are kept until it ends.
            with torch.autocast("cpu", torch.bfloat16):
                self.learn(users, positives)

    def learn(self, users_B: Tensor, positive_B: Tensor) -> None:
        """Learn one batch, with what is rehearsed beside it, and keep it."""
        num_items, _, ratio = self.sizes
        new = [positive_B, self.history[users_B], self.mean[users_B]]
        num_drawn = ratio * len(users_B) if self.num_kept else 0
        places = torch.randint(max(1, min(self.num_kept, KEPT)), (num_drawn,), generator=self.generator)
        item_B, history_BL, mean_BD = (
            torch.cat([one, kept[places]]) for one, kept in zip(new, self.kept, strict=True)
        )
        drawn_M = torch.randint(num_items, (SHARED,), generator=self.generator)
        items_T = torch.cat([item_B, drawn_M])
        self.sparse.zero_grad()
        self.dense.zero_grad()
        loss, p_v = self.model.loss(history_BL, mean_BD, items_T, self.category_of[items_T])
        loss.backward()  # type: ignore[no-untyped-call]
        self.sparse.step()  # type: ignore[no-untyped-call]
        self.dense.step()
        self.history[users_B] = torch.cat([self.history[users_B, 1:], positive_B[:, None]], 1)
        past = self.count[users_B].clamp(max=3)
        self.mean[users_B] += (p_v[: len(users_B)] - self.mean[users_B]) / (past + 1)
        self.count[users_B] += 1
        if not ratio:
            return
        at = torch.arange(self.num_kept, self.num_kept + len(users_B)) % KEPT
        for kept, one in zip(self.kept, new, strict=True):
            kept[at] = one
        self.num_kept += len(users_B)


class Floor:
    """The towers' matrix products alone (not the scores'), forward and backward, on inputs that are there."""

    def __init__(self, hidden: list[int], num_users: int, num_items: int) -> None:
        self.towers = [tower(64, hidden), tower(96, hidden)]
        self.inputs = [torch.randn(num_users, 64), torch.randn(num_items, 96)]
        for x in self.inputs:
            x.requires_grad_(True)

    def step(self, *_: Tensor) -> None:
        """Do one batch's products, whatever its pairs."""
        for one, x in zip(self.towers, self.inputs, strict=True):
            one.zero_grad()
            x.grad = None
            y = x
            for layer in one:
                y = layer(y) if isinstance(layer, nn.Linear) else y
            y.backward(torch.ones_like(y))  # type: ignore[no-untyped-call]
