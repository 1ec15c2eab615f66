"""The whole model's loss on a small batch equals dat.md, written out in plain numpy and loops."""

import math

import numpy as np
import pytest
from learning import World, configuration

from feature_store.rows import RowTable
from stream_trainer.examples import Examples
from stream_trainer.models.losses import category_alignment_loss
from stream_trainer.negatives import own_negatives, shared_negatives

Vector = np.ndarray
TINY = (
    "model.embedding_dim=4",
    "model.output_dim=4",
    "model.augmented_dim=4",
    "model.hidden=[6,5]",
    "model.numeric_dim=2",
    "model.init_scale=0.5",
    "learning.frequency_half_life=1e15",
    "features.item_categorical={category=1, tags=2}",
    'features.item_numeric=["price", "rating"]',
    "features.user_categorical={country=1}",
    'features.user_numeric=["age"]',
)
PAPER = (*TINY, "model.preset=paper", "learning.negatives_per_positive=2")
STRONG = (
    *TINY,
    "model.dropout=0",
    "model.history_length=3",
    "learning.shared_negatives=6",
    "learning.rehearsal_ratio=2",
)
ITEMS = {
    f"i{n}": {"category": f"c{n % 3}", "tags": ["x", f"t{n % 2}"][: n % 3], "price": float(n)}
    for n in range(12)
}


class Reference:
    """DAT in float64 from the rows and weights as they stand now: one item, one query, one pair at a time."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = world.config.model
        weights = world.learner.model.state_dict()
        self.weights = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}
        self.has_augmented = self.model.name == "dat"

    def tower(self, side: str, z: Vector, residual: Vector | None) -> Vector:
        h = z
        last = len(self.model.hidden)
        for layer in range(last + 1):
            weight = self.weights[f"{side}_tower.layers.{layer}.weight"]
            h = weight @ h + self.weights[f"{side}_tower.layers.{layer}.bias"]
            if layer < last or self.model.last_relu:
                h = np.maximum(h, 0)
        if self.model.residual and residual is not None:
            h = h + residual
        length = math.sqrt(sum(x * x for x in h))
        return h / length if length else h

    def numeric(self, side: str, numbers: Vector) -> list[Vector]:
        weight, bias = self.weights[f"{side}_numeric.weight"], self.weights[f"{side}_numeric.bias"]
        return [
            bias[n] + (weight[n, 1] if math.isnan(x) else weight[n, 0] * x) for n, x in enumerate(numbers)
        ]

    def field(self, table: RowTable, key: object, name: str) -> Vector:
        slots = table.slots([key])  # type: ignore[list-item]
        return table.floats(slots, name)[0].astype(np.float64)

    def values(self, codes: list[int], counts: list[int]) -> list[Vector]:
        pooled = []
        for count in counts:
            mine, codes = [c for c in codes[:count] if c >= 0], codes[count:]
            rows = [self.field(self.world.tables.value, c, "embedding") for c in mine]
            pooled.append(sum(rows) / len(rows) if rows else np.zeros(4))  # type: ignore[arg-type]
        return pooled

    def item(self, number: int) -> Vector:
        table = self.world.tables.item
        embedding = self.field(table, number, "embedding")
        codes = table.ints(table.slots(np.array([number])), "values")[0].tolist()
        parts = [embedding, *([self.field(table, number, "augmented")] if self.has_augmented else [])]
        parts += self.values(codes, [1, 2]) + self.numeric("item", self.field(table, number, "numbers"))
        return self.tower("item", np.concatenate(parts), embedding)

    def query(self, user: str, record: np.void) -> Vector:
        table, parts, pooled = self.world.tables.user, [], None
        if self.model.use_user_id:
            parts.append(self.field(table, user, "embedding"))
        if self.model.history_length:
            rows = [
                self.field(self.world.tables.item, i, "embedding")
                for i in record["history"].tolist()
                if i >= 0
            ]
            pooled = sum(rows) / math.sqrt(len(rows)) if rows else np.zeros(4)  # type: ignore[arg-type]
            parts.append(pooled)
        if self.has_augmented:
            learned = self.model.user_augmented == "learned"
            parts.append(self.field(table, user, "augmented") if learned else record["augmented"])
        parts += self.values(record["values"].tolist(), [1]) + self.numeric("user", record["numbers"])
        return self.tower("user", np.concatenate(parts), pooled)

    def candidates(self, examples: Examples) -> list[list[int]]:
        """Return the item numbers that each query is scored with: its positive first, none of them twice its
        positive.
        """
        world, records = self.world, examples.records
        learning = world.config.learning
        own = own_negatives(
            learning.seed,
            world.corpus,
            records["partition"],
            records["offset"],
            learning.negatives_per_positive,
        )
        first = records[0]
        shared = shared_negatives(
            learning.seed,
            world.corpus,
            int(first["partition"]),
            int(first["offset"]),
            learning.shared_negatives,
        )
        batch = records["item"].tolist() if learning.in_batch_negatives else []
        rows = []
        for b, item in enumerate(records["item"].tolist()):
            drawn = [*own[b].tolist(), *shared.tolist(), *batch]
            rows.append([item, *(n for n in drawn if n != item)])
        return rows

    def log_expected(self, number: int, num_queries: int) -> float:
        """Return logQ from the plain count of positives learned so far: nothing decays here."""
        if not self.model.logq:
            return 0.0
        learning, size = self.world.config.learning, len(self.world.corpus)
        learned = [n for ex, new in self.world.steps for n in ex.records["item"][:new].tolist()]
        share = (learned.count(number) + 1) / (len(learned) + size)
        uniform = (learning.negatives_per_positive + learning.shared_negatives) / size
        return math.log(uniform + learning.in_batch_negatives * num_queries * share)

    def losses(self, examples: Examples) -> dict[str, float]:
        model, rows = self.model, self.candidates(examples)
        num_pairs = len(rows) * (1 + self.world.config.learning.negatives_per_positive)
        p_v = {number: self.item(number) for row in rows for number in row}
        p_u = [self.query(u, r) for u, r in zip(examples.users, examples.records, strict=True)]
        pairs, softmax, mimic_user, mimic_item = [], [], 0.0, 0.0
        for b, row in enumerate(rows):
            logits = [p_u[b] @ p_v[n] / model.temperature - self.log_expected(n, len(rows)) for n in row]
            for j, logit in enumerate(logits):
                y = float(j == 0)
                chance = 1 / (1 + math.exp(-logit))
                pairs.append(-(y * math.log(chance) + (1 - y) * math.log(1 - chance)))
            softmax.append(-math.log(math.exp(logits[0]) / sum(math.exp(x) for x in logits)))
            if self.has_augmented:
                target_u, target_v = (p_u[b], p_v[row[0]]) if model.own_tower_mimic else (p_v[row[0]], p_u[b])
                if model.user_augmented == "learned":
                    a_u = self.field(self.world.tables.user, examples.users[b], "augmented")
                    mimic_user += ((a_u - target_u) ** 2).sum()
                a_v = self.field(self.world.tables.item, row[0], "augmented")
                mimic_item += ((a_v - target_v) ** 2).sum()
        parts = {"main": float(np.mean(pairs if model.loss == "bce" else softmax))}
        if self.has_augmented and model.user_augmented == "learned":
            parts["mimic_user"] = model.lambda_user * mimic_user / num_pairs
        if self.has_augmented:
            parts["mimic_item"] = model.lambda_item * mimic_item / num_pairs
        if model.lambda_cal:
            parts["category_alignment"] = model.lambda_cal * self.alignment(p_v)
        return parts

    def alignment(self, p_v: dict[int, Vector]) -> float:
        """Return loss_CA over the batch's distinct items, negatives too."""
        by_category: dict[int, list[Vector]] = {}
        for number in sorted(p_v):
            by_category.setdefault(number % 3, []).append(p_v[number])
        covariances = [
            (len(rows), -category, np.cov(np.stack(rows).T))
            for category, rows in by_category.items()
            if len(rows) > 1
        ]
        major = max(covariances, key=lambda entry: entry[:2])[2]
        return sum(float(((major - c) ** 2).sum()) for _, _, c in covariances)


def learned(config_overrides: tuple[str, ...], num_steps: int = 4) -> tuple[World, Examples, int]:
    """Learn a few steps, so that nothing is at its start any more; return the world and the next batch."""
    world = World(configuration("learning.rows_learning_rate=0.05", *config_overrides))
    world.add_items(ITEMS)
    rng = np.random.default_rng(4)
    offset = 100
    for step in range(num_steps + 1):
        ops = []
        for _ in range(5):
            user = f"u{rng.integers(4)}"
            if rng.random() < 0.4:
                ops.append(
                    world.upsert(user, {"country": f"n{rng.integers(3)}", "age": float(rng.integers(60))})
                )
            ops.append(world.click(user, f"i{rng.integers(12)}", offset))
            offset += 1
        if step < num_steps:
            world.learn(ops)
    return world, *world.examples(ops)


@pytest.mark.parametrize(
    "overrides",
    [
        PAPER,
        (*PAPER, "model.last_relu=false", "model.temperature=0.1"),
        (*PAPER, "model.last_relu=false", "model.own_tower_mimic=true"),
        (*PAPER, "model.last_relu=false", "model.loss=sampled_softmax", "learning.negatives_per_positive=5"),
        (*PAPER, "model.last_relu=false", "model.name=two_tower", "model.lambda_cal=0"),
        (
            *PAPER,
            "model.last_relu=false",
            "model.lambda_user=0.25",
            "model.lambda_item=2",
            "model.lambda_cal=3",
        ),
        STRONG,
        (*STRONG, "model.lambda_cal=1"),
        (*STRONG, "model.logq=true", "learning.in_batch_negatives=true", "learning.negatives_per_positive=1"),
        (*STRONG, "model.name=two_tower"),
        (*STRONG, "model.residual=false", "model.use_user_id=true", "model.user_augmented=learned"),
    ],
)
def test_the_loss_is_that_of_the_equations(overrides: tuple[str, ...]) -> None:
    world, examples, num_new = learned(overrides)
    expected = Reference(world).losses(examples)
    parts = world.learner.step(examples, num_new, world.num_positives)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, rel=2e-5, abs=1e-7)
    assert sum(map(float, parts.values())) == pytest.approx(sum(expected.values()), rel=2e-5)


def test_the_papers_batch_has_exactly_t_pairs() -> None:
    """The batch that is compared above has no draw that hits its positive, so T = D (S + 1) as in dat.md."""
    world, examples, _ = learned(PAPER)
    assert sum(map(len, Reference(world).candidates(examples))) == 5 * (2 + 1)


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_a_batch_without_any_feature_value_is_learned(preset: str) -> None:
    """Missing values are ordinary, also when nothing in the batch has one."""
    world = World(configuration(f"model.preset={preset}", "features.user_categorical={country=2}"))
    world.add_items({f"i{n}": {} for n in range(5)})
    parts = world.learn([world.click("u", "i0", 1), world.click("v", "i1", 2)])
    assert all(math.isfinite(value) for value in parts.values())
    assert bool(world.item_embeddings().isfinite().all())


def test_alignment_sees_each_item_of_the_batch_once_and_no_history() -> None:
    """A category of items that are only in histories has no part in the loss."""
    world = World(configuration(*STRONG, "model.lambda_cal=1", "learning.rehearsal_ratio=0"))
    world.add_items(ITEMS)
    world.learn([world.click("u", f"i{n}", n) for n in (0, 3, 6)])
    for n in range(12):
        if n % 3 == 0:
            world.corpus.remove(n)
    examples, num_new = world.examples([world.click("u", f"i{n}", n) for n in (1, 2, 1, 2)])
    assert set(examples.records["history"][0].tolist()) == {0, 3, 6}
    used = sorted({n for row in Reference(world).candidates(examples) for n in row})
    p_v = world.learner.embed_items(np.array(used))
    expected = category_alignment_loss(p_v, p_v.new_tensor(used).long() % 3)
    parts = world.learner.step(examples, num_new, world.num_positives)
    assert float(parts["category_alignment"]) == pytest.approx(float(expected), rel=1e-5)
