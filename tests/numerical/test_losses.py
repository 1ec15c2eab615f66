"""The losses against values worked out by hand and plain numpy loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_trainer.models.alignment import category_alignment_loss
from stream_trainer.models.losses import (
    bce_loss,
    mimic_loss,
    sampled_softmax_loss,
)

LOGITS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
COUNTS = torch.tensor([[True, True, False], [True, False, False]])
SOME = LOGITS.masked_fill(~COUNTS, -torch.inf)


def softplus(x: float) -> float:
    """Return -log σ(-x)."""
    return math.log1p(math.exp(x))


def test_bce_is_the_mean_over_all_pairs() -> None:
    """T = 6 pairs: -log σ(s) for the two positives, -log(1 - σ(s)) for the four negatives."""
    positives = softplus(-2.0) + softplus(0.0)
    negatives = softplus(-1.0) + softplus(0.5) + softplus(3.0) + softplus(-2.0)
    assert float(bce_loss(LOGITS)) == pytest.approx((positives + negatives) / 6, rel=1e-6)


def test_bce_leaves_out_what_does_not_count() -> None:
    expected = (softplus(-2.0) + softplus(0.0) + softplus(-1.0)) / 3
    assert float(bce_loss(SOME)) == pytest.approx(expected, rel=1e-6)


def test_softmax_is_the_mean_over_positives() -> None:
    first = math.log(math.exp(2.0) + math.exp(-1.0) + math.exp(0.5)) - 2.0
    second = math.log(1 + math.exp(3.0) + math.exp(-2.0))
    assert float(sampled_softmax_loss(LOGITS)) == pytest.approx((first + second) / 2, rel=1e-6)


def test_softmax_leaves_out_what_does_not_count() -> None:
    """A positive without any negative costs nothing."""
    expected = (math.log(math.exp(2.0) + math.exp(-1.0)) - 2.0 + 0.0) / 2
    assert float(sampled_softmax_loss(SOME)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("loss", [bce_loss, sampled_softmax_loss])
def test_what_does_not_count_gets_no_gradient(loss: object) -> None:
    logits = SOME.clone().requires_grad_()
    loss(logits).backward()  # type: ignore[operator]
    assert logits.grad is not None
    assert (logits.grad[~COUNTS] == 0).all()
    assert (logits.grad[0, :2] != 0).all()


@pytest.mark.parametrize("loss", [bce_loss, sampled_softmax_loss])
def test_huge_logits_stay_finite(loss: object) -> None:
    value = loss(torch.tensor([[-1000.0, 1000.0]]))  # type: ignore[operator]
    assert float(value) == pytest.approx(2000.0 if loss is sampled_softmax_loss else 1000.0)


def test_bce_of_a_negative_is_softplus_to_the_last_digits() -> None:
    """A sure positive costs nothing, so that twice the mean over both pairs is the negative's loss alone."""
    for x in np.linspace(-40.0, 40.0, 321, dtype=np.float32).tolist():
        assert 2 * float(bce_loss(torch.tensor([[1000.0, x]]))) == pytest.approx(
            softplus(x), rel=2e-7, abs=1e-7
        )


@pytest.mark.parametrize("num_negatives", [0, 7, 8, 21, 1000])
def test_bce_of_many_pairs_is_that_of_double_precision(num_negatives: int) -> None:
    """Most near 0, where what is multiplied is smallest, some far away, some that do not count."""
    rng = np.random.default_rng(num_negatives)
    logits = rng.normal(0, 0.1, (300, 1 + num_negatives)).astype(np.float32)
    logits[::3] *= 300
    logits[:, 1:][rng.random((300, num_negatives)) < 0.1] = -np.inf
    signs = np.r_[-1.0, np.ones(num_negatives)]
    expected = np.logaddexp(0, signs * logits)[np.isfinite(logits)].mean()
    assert float(bce_loss(torch.from_numpy(logits))) == pytest.approx(expected, rel=1e-6)


def test_bce_of_no_pair_at_all_is_no_number() -> None:
    assert not math.isfinite(float(bce_loss(torch.full((2, 3), -torch.inf))))


@pytest.mark.parametrize("loss", [bce_loss, sampled_softmax_loss])
@pytest.mark.parametrize("num_more", [0, 9])
def test_what_is_no_number_is_seen(loss: object, num_more: int) -> None:
    logits = torch.tensor([[0.0, torch.nan, -torch.inf, *[1.0] * num_more]])
    assert math.isnan(float(loss(logits)))  # type: ignore[operator]


def test_mimic_divides_the_sum_over_positives_by_all_pairs() -> None:
    """Two positives, T = 2 (S + 1) = 12 pairs with S = 5: ((1-3)² + 2² + 0² + (4-1)²) / 12."""
    augmented, target = torch.tensor([[1.0, 2.0], [0.0, 4.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    assert float(mimic_loss(augmented, target, 12)) == pytest.approx(17 / 12)


def test_mimic_moves_the_augmented_vector_alone() -> None:
    """d/da Σ‖a − p‖² / T = 2 (a − p) / T."""
    augmented = torch.tensor([[1.0, 2.0]], requires_grad=True)
    target = torch.tensor([[3.0, 0.0]], requires_grad=True)
    mimic_loss(augmented, target, 4).backward()
    assert augmented.grad is not None
    assert augmented.grad.tolist() == [[-1.0, 1.0]]
    assert target.grad is None


def alignment_by_loops(embedding: np.ndarray, category: np.ndarray) -> float:
    """The same as plain loops over categories, means and products."""
    sets = {
        c: [i for i, x in enumerate(category) if x == c] for c in sorted(set(category.tolist())) if c >= 0
    }
    sets = {c: members for c, members in sets.items() if len(members) >= 2}
    if len(sets) < 2:
        return 0.0
    width = embedding.shape[1]
    covariances = {}
    for c, members in sets.items():
        mean = [sum(embedding[i][d] for i in members) / len(members) for d in range(width)]
        covariances[c] = [
            [
                sum((embedding[i][d] - mean[d]) * (embedding[i][e] - mean[e]) for i in members)
                / (len(members) - 1)
                for e in range(width)
            ]
            for d in range(width)
        ]
    major = min(sets, key=lambda c: (-len(sets[c]), c))
    return sum(
        (covariances[major][d][e] - covariances[c][d][e]) ** 2
        for c in sets
        for d in range(width)
        for e in range(width)
    )


def test_alignment_by_hand() -> None:
    """Category 4 is (0,0), (2,0), (4,0): C = [[4, 0], [0, 0]]; 1 is (0,0), (0,2): C = [[0, 0], [0, 2]].

    Item 5 is alone in category 7 and the last has none: neither counts. ‖C4 − C1‖² = 16 + 4.
    """
    embedding = torch.tensor([[0.0, 0], [0, 0], [2, 0], [0, 2], [4, 0], [9, 9], [7, -7]])
    category = torch.tensor([4, 1, 4, 1, 4, 7, -1])
    assert float(category_alignment_loss(embedding, category)) == pytest.approx(20.0)


def test_the_smallest_of_equally_large_categories_is_the_major_one() -> None:
    """Variances 2, 8 and 18 of categories 0, 1 and 2, two items each: (2−8)² + (2−18)²."""
    embedding = torch.tensor([[6.0], [0], [4], [0], [2], [0]])
    category = torch.tensor([2, 2, 1, 1, 0, 0])
    assert float(category_alignment_loss(embedding, category)) == pytest.approx(36.0 + 256.0)


@pytest.mark.parametrize("category", [[-1, -1, -1], [0, 1, 2], [5, 5, 5], [3, 3, -1], [0, 0, 1]])
def test_without_two_covariances_there_is_nothing_to_align(category: list[int]) -> None:
    embedding = torch.tensor([[1.0, 2], [3, 5], [0, 1]], requires_grad=True)
    loss = category_alignment_loss(embedding, torch.tensor(category))
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0.0
    assert embedding.grad is not None
    assert (embedding.grad == 0).all()


@pytest.mark.parametrize("num_negatives", [0, 7, 21, 1000])
def test_softmax_of_many_candidates_is_that_of_double_precision(num_negatives: int) -> None:
    """Near each other and far apart, some that do not count; gradients to a millionth of what sums to one."""
    generator = torch.Generator().manual_seed(num_negatives)
    logits = torch.randn(70, 1 + num_negatives, generator=generator)
    logits[::3] *= 300
    logits[:, 1:][torch.rand(70, num_negatives, generator=generator) < 0.1] = -torch.inf
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    ours, theirs = sampled_softmax_loss(logits), -exact.log_softmax(1)[:, 0].mean()
    for factor in (1, 3):
        (mine,) = torch.autograd.grad(factor * ours, logits, retain_graph=True)
        (their,) = torch.autograd.grad(factor * theirs, exact, retain_graph=True)
        torch.testing.assert_close(70 * mine.double(), 70 * their, rtol=3e-6, atol=1e-6)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6, abs=1e-6)


def test_the_gradient_of_alignment_is_its_slope() -> None:
    embedding = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    category = torch.tensor([4, 1, 4, -1, 1, 4, 7, 4, 2, 2, 2, -1])
    embedding.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: category_alignment_loss(x, category), (embedding,))


def test_the_gradient_of_alignment_is_its_slope_in_large_categories() -> None:
    """37 and 23 items: more than stand together in one product."""
    embedding = torch.randn(60, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    category = (torch.randperm(60, generator=torch.Generator().manual_seed(1)) < 37).long()
    embedding.requires_grad_(True)
    assert torch.autograd.gradcheck(lambda x: category_alignment_loss(x, category), (embedding,))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(-1, 4), min_size=1, max_size=14)
    | st.lists(st.integers(-1, 2), min_size=40, max_size=80),
    st.integers(0, 99),
)
def test_alignment_equals_loops(categories: list[int], seed: int) -> None:
    embedding = np.random.default_rng(seed).normal(size=(len(categories), 3))
    category = np.array(categories)
    found = category_alignment_loss(torch.from_numpy(embedding), torch.from_numpy(category))
    assert float(found) == pytest.approx(alignment_by_loops(embedding, category), rel=1e-9, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(0, 99))
def test_main_losses_equal_loops(num: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, valid = rng.normal(scale=3, size=(num, width)), rng.random((num, width)) < 0.6
    logits = logits.astype(np.float32).astype(np.float64)
    valid[:, 0] = True
    pairs, queries = [], []
    for b in range(num):
        pairs += [softplus(-logits[b, j] if j == 0 else logits[b, j]) for j in range(width) if valid[b, j]]
        total = sum(math.exp(logits[b, j]) for j in range(width) if valid[b, j])
        queries.append(math.log(total) - logits[b, 0])
    given_logits = torch.from_numpy(np.where(valid, logits, -np.inf)).float()
    assert float(bce_loss(given_logits)) == pytest.approx(np.mean(pairs), rel=5e-7)
    assert float(sampled_softmax_loss(given_logits)) == pytest.approx(np.mean(queries), rel=5e-7, abs=5e-7)
