"""YouTubeDNN, FM and MIND against their papers' equations, written out in plain numpy and loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from by_hand import TINY, ByHand, Vector, learned
from learning import World

from stream_trainer.examples import Examples
from stream_trainer.models.mind import initial_logits, label_aware, route
from stream_trainer.models.retrieval import best_scores

MODELS = (
    *TINY,
    "model.dropout=0",
    "model.residual=false",
    "model.history_length=3",
    "learning.shared_negatives=6",
    "learning.rehearsal_ratio=2",
)


class YouTubeByHand(ByHand):
    """Covington et al. 2016: the mean of the watched, through a tower; an item is its class's weights."""

    def item(self, number: int) -> Vector:
        return self.unit(self.field(self.world.tables.item, number, "embedding"))

    def query(self, user: str, record: np.void, positive: Vector) -> Vector:
        rows = self.history(record)
        mean = sum(rows) / len(rows) if rows else np.zeros(4)  # type: ignore[arg-type]
        known = [self.field(self.world.tables.user, user, "embedding")] if self.model.use_user_id else []
        return self.tower("user", np.concatenate([*known, mean, *self.user_features(record)]), mean)


class FmByHand(ByHand):
    """Rendle 2010, equation 1: every pair of features of the example, less those within the query."""

    def factors(self, user: str, record: np.void) -> list[Vector]:
        rows, parts = self.history(record), []
        if self.model.use_user_id:
            parts.append(self.field(self.world.tables.user, user, "embedding"))
        if self.model.history_length:
            parts.append(sum(rows) / len(rows) if rows else np.zeros(4))  # type: ignore[arg-type]
        return parts + self.split(self.user_features(record))

    def item_factors(self, number: int) -> list[Vector]:
        embedding = self.field(self.world.tables.item, number, "embedding")
        return [embedding, *self.split(self.item_features(number))]

    def split(self, parts: list[Vector]) -> list[Vector]:
        return [part for part in parts if len(part)]

    def score(self, user: str, record: np.void, number: int) -> float:
        mine, its = self.factors(user, record), self.item_factors(number)
        linear = float(self.field(self.world.tables.item, number, "weight")[0])
        total = float(self.weights["w0"]) + linear
        total += sum(a @ b for a, b in itertools.combinations(mine + its, 2))
        total -= sum(a @ b for a, b in itertools.combinations(mine, 2))
        if self.model.normalise:  # cosines between the two sides; the item's own part stays
            across = sum(a @ b for a, b in itertools.product(mine, its))
            lengths = [math.sqrt(sum(sum(x) ** 2 for x in zip(*side, strict=True))) for side in (mine, its)]
            total += across / (lengths[0] * lengths[1]) - across if all(lengths) else 0
        return total

    def losses_of(self, examples: Examples) -> float:
        """Return the BCE or the softmax of the scores: there is no vector for an item here."""
        pairs, softmax = [], []
        rows = self.candidates(examples)
        for user, record, row in zip(examples.users, examples.records, rows, strict=True):
            logits = [self.score(user, record, number) / self.model.temperature for number in row]
            pairs += [math.log1p(math.exp(-x if j == 0 else x)) for j, x in enumerate(logits)]
            softmax.append(math.log(sum(map(math.exp, logits))) - logits[0])
        return float(np.mean(pairs if self.model.loss == "bce" else softmax))


class MindByHand(YouTubeByHand):
    """Li et al. 2019, algorithm 1 and equations 6 to 9."""

    def squash(self, z: Vector) -> Vector:
        square = sum(x * x for x in z)
        return square / (1 + square) * z / math.sqrt(square) if square else z

    def route(self, mapped: list[Vector]) -> list[Vector]:
        start = self.world.learner.model.routing_LI.numpy().astype(np.float64)
        num = max(1, min(self.model.num_interests, int(math.log2(max(len(mapped), 1)))))
        logits = start[len(start) - len(mapped) :, :num].tolist()
        for _ in range(self.model.routing_iterations):
            capsules = []
            for j in range(num):
                z = np.zeros(4)
                for e, b in zip(mapped, logits, strict=True):
                    z = z + math.exp(b[j]) / sum(map(math.exp, b)) * e
                capsules.append(self.squash(z))
            logits = [
                [b[j] + capsule @ e for j, capsule in enumerate(capsules)]
                for e, b in zip(mapped, logits, strict=True)
            ]
        return [capsules[j % num] for j in range(self.model.num_interests)]

    def interests(self, user: str, record: np.void) -> list[Vector]:
        mapped = [self.weights["bilinear.weight"] @ self.unit(e) for e in self.history(record)]
        side = self.user_features(record)
        known = [self.field(self.world.tables.user, user, "embedding")] if self.model.use_user_id else []
        return [self.tower("user", np.concatenate([c, *known, *side]), c) for c in self.route(mapped)]

    def query(self, user: str, record: np.void, positive: Vector) -> Vector:
        interests = self.interests(user, record)
        scores = [p @ positive / self.model.temperature for p in interests]
        powers = [math.exp(math.copysign(abs(s) ** self.model.label_attention_power, s)) for s in scores]
        return sum(power / sum(powers) * p for power, p in zip(powers, interests, strict=True))  # type: ignore[return-value]


RAW = ("model.normalise=false", "model.temperature=1")
YOUTUBE = (*MODELS, "model.name=youtube_dnn")
FM = (*MODELS, "model.name=fm", "model.use_user_id=true")
MIND = (*MODELS, "model.name=mind", "model.num_interests=3", "model.history_length=9")
CASES = [
    YOUTUBE,
    (*YOUTUBE, *RAW),
    (*YOUTUBE, "model.use_user_id=true", "model.residual=true", "model.loss=bce"),
    (*YOUTUBE, "model.logq=true", "learning.in_batch_negatives=true"),
    FM,
    (*FM, *RAW),
    (*FM, *RAW, "model.loss=bce", "model.history_length=0"),
    (*FM, "model.use_user_id=false"),
    MIND,
    (*MIND, *RAW),
    (*MIND, "model.label_attention_power=2.5", "model.routing_iterations=1", "model.loss=bce"),
    (*MIND, "model.use_user_id=true", "model.residual=true", "model.routing_iterations=5"),
]
BY_HAND = {"youtube_dnn": YouTubeByHand, "fm": FmByHand, "mind": MindByHand}


def by_hand(world: World) -> ByHand:
    return BY_HAND[world.config.model.name](world)


@pytest.mark.parametrize("overrides", CASES)
def test_the_loss_is_that_of_the_equations(overrides: tuple[str, ...]) -> None:
    world, examples, num_new = learned(overrides)
    reference = by_hand(world)
    is_fm = isinstance(reference, FmByHand)
    expected = reference.losses_of(examples) if is_fm else reference.main_loss(examples)
    parts = world.learner.step(examples, num_new, world.num_positives)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx({"main": expected}, rel=2e-5)
    if isinstance(reference, MindByHand):  # the batch has users of one interest and of several
        lengths = (examples.records["history"] >= 0).sum(1)
        assert lengths.min() < 4 <= lengths.max()


@pytest.mark.parametrize("overrides", CASES)
def test_scores_for_retrieval_are_those_of_the_equations(overrides: tuple[str, ...]) -> None:
    """An item's is that of the query's best interest, where it has several."""
    world, examples, _ = learned(overrides)
    reference, numbers = by_hand(world), np.arange(12)
    scores = best_scores(
        world.learner.embed_examples(examples).numpy(), world.learner.embed_items(numbers).numpy()
    )
    expected = np.zeros_like(scores)
    for row, (user, record) in enumerate(zip(examples.users, examples.records, strict=True)):
        for number in numbers:
            if isinstance(reference, FmByHand):
                expected[row, number] = reference.score(user, record, number)
            elif isinstance(reference, MindByHand):
                p_v = reference.item(number)
                expected[row, number] = max(p_u @ p_v for p_u in reference.interests(user, record))
            else:
                p_v = reference.item(number)
                expected[row, number] = reference.query(user, record, p_v) @ p_v
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(scores, expected, rtol=2e-5, atol=2e-6)


def test_label_aware_attention_by_hand() -> None:
    interests = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    for positive, temperature, power, scores in [
        ([1.0, 0.0], 1.0, 1.0, (1, 0)),
        ([1.0, 0.0], 0.5, 2.0, (4, 0)),
        ([-1.0, 0.0], 0.5, 2.0, (-4, 0)),  # an even power makes no interest of its opposite
        ([0.3, 0.3], 0.1, 3.0, (0, 0)),
    ]:
        share = 1 / (1 + math.exp(scores[1] - scores[0]))
        found = label_aware(interests, torch.tensor([positive]), temperature, power)
        assert found[0].tolist() == pytest.approx([share, 1 - share], rel=1e-6)


def test_a_large_power_takes_the_best_interest() -> None:
    rng = torch.Generator().manual_seed(1)
    interests, positive = torch.randn(7, 5, 4, generator=rng), torch.randn(7, 4, generator=rng)
    best = (interests @ positive.unsqueeze(2)).squeeze(2).argmax(1)
    found = label_aware(interests, positive, 0.1, 4.0)
    torch.testing.assert_close(found, interests[torch.arange(7), best])


def test_routing_by_hand() -> None:
    """Four times one behaviour, together of length 5: two interests share it 3 : 1, and are squashed. The
    third place repeats the first interest. A history that is empty has no direction.
    """
    behaviours = torch.tensor([[[9.0, 9.0], *[[0.75, 1.0]] * 4], [[1.0, 0.0]] * 5])
    valid = torch.tensor([[False, True, True, True, True], [False] * 5])
    logits = torch.tensor([[5.0, 1.0, 2.0], *[[math.log(3.0), 0.0, 7.0]] * 4])
    once = route(behaviours, valid, logits, 1)
    assert torch.equal(once[:, 2], once[:, 0])
    once = once[:, :2]
    shares = [0.75 * 5, 0.25 * 5]
    lengths = [s * s / (1 + s * s) for s in shares]
    np.testing.assert_allclose(once[0], [[0.6 * n, 0.8 * n] for n in lengths], rtol=1e-6)
    assert not once[1].any()
    twice = route(behaviours, valid, logits, 2)
    moved = [
        math.log(3.0) + 1.25 * lengths[0],
        1.25 * lengths[1],
    ]  # both capsules point where the behaviour does
    share = 5 / (1 + math.exp(moved[1] - moved[0]))
    assert float(twice[0, 0].norm()) == pytest.approx(share**2 / (1 + share**2), rel=1e-6)


def test_agreement_moves_the_routing_but_gets_no_gradient() -> None:
    rng = torch.Generator().manual_seed(2)
    behaviours = torch.randn(2, 4, 3, generator=rng).requires_grad_()
    valid, logits = torch.ones(2, 4, dtype=torch.bool), torch.randn(4, 2, generator=rng)
    (found,) = torch.autograd.grad(route(behaviours, valid, logits, 3).sum(), behaviours)
    last = logits.expand(2, -1, -1)
    for iterations in (1, 2):
        capsules = route(behaviours.detach(), valid, logits, iterations)
        last = last + behaviours.detach() @ capsules.transpose(1, 2)
    z = torch.softmax(last, 2).transpose(1, 2) @ behaviours
    square = z.square().sum(2, keepdim=True)
    (expected,) = torch.autograd.grad((z * square.sqrt() / (1 + square)).sum(), behaviours)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.equal(last, logits.expand(2, -1, -1))


def test_initial_logits_are_normal_and_belong_to_the_place_counted_from_the_newest() -> None:
    logits = initial_logits(200, 30)
    assert float(logits.mean()) == pytest.approx(0, abs=0.05)
    assert float(logits.std()) == pytest.approx(1, abs=0.05)
    assert float((logits.abs() < 1.96).float().mean()) == pytest.approx(0.95, abs=0.01)
    assert len(logits.unique()) > 0.99 * logits.numel()
    assert torch.equal(initial_logits(50, 30), logits[-50:])
    assert torch.equal(initial_logits(200, 30), logits)
