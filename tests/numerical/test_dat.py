"""The whole model's loss on a small batch equals the paper's, written out in plain numpy and loops."""

import math

import numpy as np
import pytest
import torch
from by_hand import ITEMS, TINY, ByHand, Vector, learned
from learning import World, configuration

from stream_trainer.examples import Examples
from stream_trainer.models.alignment import category_alignment_loss
from stream_trainer.models.dat import Dat
from stream_trainer.models.dropout import Draws
from stream_trainer.models.retrieval import ItemInputs

PAPER = (*TINY, "model.preset=paper", "learning.negatives_per_positive=2")
STRONG = (
    *TINY,
    "model.dropout=0",
    "model.augmented_dropout=0",
    "model.history_length=3",
    "learning.shared_negatives=6",
    "learning.rehearsal_ratio=2",
)


class Reference(ByHand):
    """DAT, or two towers."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.has_augmented = self.model.name == "dat"

    def item(self, number: int) -> Vector:
        table = self.world.tables.item
        embedding = self.field(table, number, "embedding")
        parts, residual = [embedding], embedding
        if self.has_augmented:
            parts.append(self.field(table, number, "augmented"))
            residual = embedding + self.weights.get("augmented_weight", 0) * parts[1]
        return self.tower("item", np.concatenate(parts + self.item_features(number)), residual)

    def query(self, user: str, record: np.void, positive: Vector) -> Vector:
        table, parts, pooled = self.world.tables.user, [], None
        if self.model.use_user_id:
            parts.append(self.field(table, user, "embedding"))
        if self.model.history_length:
            rows = self.history(record)
            weights = np.exp(self.weights["history_weights.log_weight_L"])[-len(rows) :]
            total = sum(weight * row for weight, row in zip(weights, rows, strict=False))
            pooled = total / math.sqrt(weights.sum()) if rows else np.zeros(4)
            parts.append(pooled)
        if self.has_augmented:
            learned = self.model.user_augmented == "learned"
            parts.append(self.field(table, user, "augmented") if learned else record["augmented"])
        return self.tower("user", np.concatenate(parts + self.user_features(record)), pooled)

    def losses(self, examples: Examples) -> dict[str, float]:
        model, parts = self.model, {"main": self.main_loss(examples)}
        num_pairs = len(self.rows) * (1 + self.world.config.learning.negatives_per_positive)
        mimic_user = mimic_item = 0.0
        for user, p_u, row in zip(examples.users, self.p_u, self.rows, strict=True):
            if self.has_augmented:
                p_v = self.p_v[row[0]]
                target_u, target_v = (p_u, p_v) if model.own_tower_mimic else (p_v, p_u)
                if model.user_augmented == "learned":
                    a_u = self.field(self.world.tables.user, user, "augmented")
                    mimic_user += ((a_u - target_u) ** 2).sum()
                a_v = self.field(self.world.tables.item, row[0], "augmented")
                mimic_item += ((a_v - target_v) ** 2).sum()
        if self.has_augmented and model.user_augmented == "learned":
            parts["mimic_user"] = model.lambda_user * mimic_user / num_pairs
        if self.has_augmented:
            parts["mimic_item"] = model.lambda_item * mimic_item / num_pairs
        if model.lambda_cal:
            parts["category_alignment"] = model.lambda_cal * self.alignment(self.p_v)
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
        (*STRONG, "model.augmented_dropout=1"),
        (*STRONG, "model.name=two_tower"),
        (*STRONG, "model.normalise=false", "model.temperature=1"),
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
    """The batch that is compared above has no draw that hits its positive: T = D (S + 1) as in the paper."""
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


def test_without_a_residual_the_augmented_vectors_have_the_width_of_the_output() -> None:
    world = World(configuration(*PAPER, "model.output_dim=2", "model.augmented_dim=2"))
    world.add_items(ITEMS)
    assert world.config.model.embedding_dim != 2
    losses = world.learn([world.click("u", "a", 0)])
    assert math.isfinite(sum(losses.values()))


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


def test_augmented_vectors_are_left_out_whole_in_training_and_never_when_served() -> None:
    world, _, _ = learned((*STRONG, "model.augmented_dropout=0.25"))
    model = world.learner.model
    assert isinstance(model, Dat)
    assert model.augmented_weight is not None
    model.augmented_weight.data.fill_(2.0)
    augmented_TA = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1))
    inputs = ItemInputs(torch.zeros(4000, 4), augmented_TA, torch.zeros(4000, 8), torch.zeros(4000, 2))
    with torch.no_grad():
        served_TD = model.embed_items(inputs)
        training_TD = model.embed_items(inputs, Draws(0))
        model.augmented_weight.data.fill_(0.0)
        without_TD = model.embed_items(inputs)
    as_served_T = torch.isclose(training_TD, served_TD, atol=1e-6).all(1)
    left_out_T = torch.isclose(training_TD, without_TD, atol=1e-6).all(1)
    assert bool((as_served_T ^ left_out_T).all())
    assert 0.22 < float(left_out_T.float().mean()) < 0.28
