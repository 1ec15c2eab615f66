"""The compiled loops against the same in plain torch, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from feature_store.compiled import compiled
from stream_trainer.models.candidate_scores import candidate_scores
from stream_trainer.models.history_pool import pool_history
from stream_trainer.models.loops import pick_rows, pool_values, unit_length


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), requires_grad=True)


def gradients(output: Tensor, *inputs: Tensor) -> list[Tensor]:
    """Return the gradients of some sum of the output, no part of which weighs the same."""
    weights = torch.arange(output.numel(), dtype=torch.float32).view(output.shape).sin()
    return list(torch.autograd.grad((output * weights).sum(), inputs))


def same(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 33), (0, 5), (1, 1)])
def test_unit_length_is_torchs_normalize(shape: tuple[int, ...]) -> None:
    x = draw(*shape)
    ours, theirs = unit_length(x), F.normalize(x, dim=-1)
    same([ours, *gradients(ours, x)], [theirs, *gradients(theirs, x)])


def test_a_zero_stays_zero_and_gets_torchs_gradient() -> None:
    x = torch.zeros(2, 3, requires_grad=True)
    ours, theirs = unit_length(x), F.normalize(x, dim=-1)
    same([ours, *gradients(ours, x)], [theirs, *gradients(theirs, x)])


def test_columns_of_something_wider_are_read_as_they_stand() -> None:
    x = draw(6, 8)
    ours, theirs = unit_length(x[:, 2:5]), F.normalize(x[:, 2:5], dim=-1)
    same([ours, *gradients(ours, x)], [theirs, *gradients(theirs, x)])


def pooled_plainly(embedding: Tensor, values: Tensor, counts: list[int]) -> Tensor:
    rows = []
    for row in values:
        parts = [[int(v) for v in part if v >= 0] for part in torch.split(row, counts)]
        rows.append(
            torch.cat([embedding[p].mean(0) if p else embedding.new_zeros(embedding.shape[1]) for p in parts])
        )
    return torch.stack(rows)


def test_pooling_averages_what_there_is_of_each_feature() -> None:
    values = torch.tensor([[0, 2, -1], [-1, -1, 1], [-1, 3, 3], [2, 2, 0]])
    embedding = draw(4, 5)
    for counts in ([2, 1], [3], [1, 1, 1]):
        ours, theirs = pool_values(embedding, values, counts), pooled_plainly(embedding, values, counts)
        same([ours, *gradients(ours, embedding)], [theirs, *gradients(theirs, embedding)])


def test_picked_rows_are_those_of_index_select_to_the_last_bit() -> None:
    x, places = draw(5, 33), torch.tensor([4, 0, 4, 1, 4, 1])
    ours, theirs = pick_rows(x, places), x.index_select(0, places)
    for one, other in zip([ours, *gradients(ours, x)], [theirs, *gradients(theirs, x)], strict=True):
        assert torch.equal(one, other)
    assert pick_rows(x, places[:0]).shape == (0, 33)


def test_pooling_without_any_value_is_zero() -> None:
    none = torch.zeros(0, 3)
    assert pool_values(none, torch.full((2, 3), -1), [1, 2]).tolist() == [[0.0] * 6] * 2


@pytest.mark.parametrize("num_shared", [0, 1, 6])
def test_scores_are_inner_products_of_what_counts(num_shared: int) -> None:
    users, items = draw(3, 4), draw(5, 4)
    positive = torch.tensor([3, 2, 4])
    own = torch.tensor([[0, 4, 4, -1], [2, -1, 0, 1], [4, 0, 3, 2]])
    shared = torch.tensor([1, 4, 1, 0, 2, 4][:num_shared], dtype=torch.int64)
    ours = candidate_scores(users, items, positive, own, shared)
    places = torch.cat([positive.view(-1, 1), own, shared.expand(3, -1)], dim=1)
    counts = (places >= 0) & (places != positive.view(-1, 1))
    counts[:, 0] = True
    theirs = torch.einsum("bd,bjd->bj", users, items[places.clamp(min=0)])
    assert torch.equal(ours.isfinite(), counts)
    assert (ours[~counts] == -torch.inf).all()
    ours, theirs = torch.where(counts, ours, 0.0), torch.where(counts, theirs, 0.0)
    same([ours, *gradients(ours, users, items)], [theirs, *gradients(theirs, users, items)])


def pooled_by_places(embedding: Tensor, history: Tensor, weight: Tensor, exponent: float) -> Tensor:
    known = (history >= 0).float() * weight
    sums = torch.einsum("bl,blk->bk", known, embedding[history.clamp(min=0)])
    return sums * known.sum(1, keepdim=True).clamp(min=1e-9) ** exponent


@pytest.mark.parametrize("mean", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_pooling_a_history_weighs_its_places(mean: bool, weighted: bool) -> None:
    history = torch.tensor([[-1, -1, -1, -1], [-1, 2, 0, 2], [1, 1, 1, 1], [-1, -1, -1, 3]])
    embedding, weight = draw(5, 6), draw(4).detach().exp().requires_grad_()
    ours = pool_history(embedding, history, weight if weighted else None, mean)
    theirs = pooled_by_places(
        embedding, history, weight if weighted else torch.ones(4), -1.0 if mean else -0.5
    )
    inputs = (embedding, weight) if weighted else (embedding,)
    same([ours, *gradients(ours, *inputs)], [theirs, *gradients(theirs, *inputs)])
    assert ours[0].tolist() == [0.0] * 6


def test_without_any_item_a_history_is_zero() -> None:
    assert pool_history(torch.zeros(0, 3), torch.full((2, 4), -1)).tolist() == [[0.0] * 3] * 2


def test_other_types_than_float32_are_refused() -> None:
    with pytest.raises(AssertionError, match="float32"):
        unit_length(torch.ones(2, 3, dtype=torch.float64))


def test_places_beyond_the_end_are_refused() -> None:
    with pytest.raises(AssertionError, match="place 2 of 2"):
        pool_values(torch.ones(2, 3), torch.tensor([[2]]), [1])
    with pytest.raises(AssertionError, match="place 2 of 2"):
        candidate_scores(
            torch.ones(1, 3), torch.ones(2, 3), *map(torch.tensor, ([0], [[2]])), torch.zeros(0).long()
        )
    with pytest.raises(AssertionError, match="place 2 of 2"):
        pool_history(torch.ones(2, 3), torch.tensor([[2]]))


def test_without_a_folder_to_keep_it_in_a_loop_is_compiled_all_the_same() -> None:
    from_nowhere: dict[str, object] = {}
    exec("def twice(x):\n    return 2 * x", from_nowhere)  # no file: nothing to stand beside
    twice = from_nowhere["twice"]
    assert callable(twice)
    assert compiled(twice)(4) == 8
