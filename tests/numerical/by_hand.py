"""What numerical tests of the models share: a small world worth comparing, and plain loops over its rows.

Owns no test and no model: those are written out where they are tested.
"""

import math

import numpy as np
from learning import World, configuration

from feature_store.rows import RowTable
from stream_trainer.examples import Examples
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
ITEMS = {
    f"i{n}": {"category": f"c{n % 3}", "tags": ["x", f"t{n % 2}"][: n % 3], "price": float(n)}
    for n in range(12)
}


class ByHand:
    """A model in float64 from the rows and weights as they stand now: one item, query and pair at a time.

    A subclass says what an item and a query are; `query` returns what the loss takes for it.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = world.config.model
        weights = world.learner.model.state_dict()
        self.weights = {name: tensor.numpy().astype(np.float64) for name, tensor in weights.items()}

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
        return self.unit(h)

    def unit(self, h: Vector) -> Vector:
        length = math.sqrt(sum(x * x for x in h))
        return h / length if length and self.model.normalise else h

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

    def history(self, record: np.void) -> list[Vector]:
        past = [i for i in record["history"].tolist() if i >= 0]
        return [self.field(self.world.tables.item, i, "embedding") for i in past]

    def item_features(self, number: int) -> list[Vector]:
        table = self.world.tables.item
        codes = table.ints(table.slots(np.array([number])), "values")[0].tolist()
        return self.values(codes, [1, 2]) + self.numeric("item", self.field(table, number, "numbers"))

    def user_features(self, record: np.void) -> list[Vector]:
        return self.values(record["values"].tolist(), [1]) + self.numeric("user", record["numbers"])

    def item(self, number: int) -> Vector:
        raise NotImplementedError

    def query(self, user: str, record: np.void, positive: Vector) -> Vector:
        raise NotImplementedError

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

    def main_loss(self, examples: Examples) -> float:
        """Return the BCE or the softmax over all candidates, and keep what it is made of for other losses."""
        model, self.rows = self.model, self.candidates(examples)
        self.p_v = {number: self.item(number) for row in self.rows for number in row}
        self.p_u = [
            self.query(user, record, self.p_v[row[0]])
            for user, record, row in zip(examples.users, examples.records, self.rows, strict=True)
        ]
        pairs, softmax = [], []
        for p_u, row in zip(self.p_u, self.rows, strict=True):
            expected = [self.log_expected(number, len(self.rows)) for number in row]
            logits = [
                p_u @ self.p_v[number] / model.temperature - log_q
                for number, log_q in zip(row, expected, strict=True)
            ]
            for j, logit in enumerate(logits):
                y = float(j == 0)
                chance = 1 / (1 + math.exp(-logit))
                pairs.append(-(y * math.log(chance) + (1 - y) * math.log(1 - chance)))
            softmax.append(-math.log(math.exp(logits[0]) / sum(math.exp(x) for x in logits)))
        return float(np.mean(pairs if model.loss == "bce" else softmax))


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
