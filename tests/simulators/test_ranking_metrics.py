"""Ranks, hit rate, MRR and NDCG against values worked out by hand and against sorting."""

import math

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import RR, Success, nDCG

from simulators.metrics import hit_rate, middle_ranks, mrr, ndcg


def test_ranks_by_hand():
    scores = np.array([[0.1, 0.9, 0.5, 0.3], [0.2, 0.2, 0.2, 0.9], [4.0, 3.0, 2.0, 1.0]])
    target = np.array([2, 0, 3])
    assert middle_ranks(scores, target, [[], [], []]).tolist() == [2.0, 3.0, 4.0]
    # without item 1: first; without one of the equals: 2 and 3 shared; two of three better ones gone
    assert middle_ranks(scores, target, [[1], [1], [0, 1]]).tolist() == [1.0, 2.5, 2.0]


def test_target_is_ranked_even_if_excluded_and_repeats_count_once():
    scores = np.array([[0.9, 0.8, 0.7]])
    assert middle_ranks(scores, np.array([2]), [[2, 0, 0, 0]]).tolist() == [2.0]


def test_constant_scores_rank_as_random_ones_do_on_average():
    num_items, num_queries = 21, 4000
    target = np.arange(num_queries) % num_items
    nothing = [[]] * num_queries
    constant = middle_ranks(np.zeros((num_queries, num_items)), target, nothing)
    assert np.all(constant == (num_items + 1) / 2)
    noise = middle_ranks(np.random.default_rng(0).random((num_queries, num_items)), target, nothing)
    assert constant.mean() == pytest.approx(noise.mean(), abs=0.3)
    assert hit_rate(constant, 10) == 0.0 < hit_rate(noise, 10)  # ties never score as hits at the top


@given(st.data())
def test_ranks_equal_the_mean_place_over_sorted_lists(data):
    num_items = data.draw(st.integers(1, 8))
    scores = data.draw(st.lists(st.integers(0, 3), min_size=num_items, max_size=num_items))
    target = data.draw(st.integers(0, num_items - 1))
    excluded = data.draw(st.lists(st.integers(0, num_items - 1)))
    kept = [scores[item] for item in range(num_items) if item == target or item not in excluded]
    places = [place for place, score in enumerate(sorted(kept, reverse=True), 1) if score == scores[target]]
    rank = middle_ranks(np.array([scores], np.float32), np.array([target]), [excluded])
    assert rank.tolist() == [sum(places) / len(places)]


def test_scores_that_mean_nothing_are_refused():
    target, nothing = np.array([0]), [[]]
    for scores in ([[math.nan, 1.0]], [[1.0, math.nan]], [[math.inf, 1.0]], [[-math.inf, 1.0]]):
        with pytest.raises(ValueError, match="NaN"):
            middle_ranks(np.array(scores), target, nothing)
    assert middle_ranks(np.array([[1.0, -math.inf]]), target, nothing).tolist() == [1.0]


def test_figures_by_hand():
    ranks = np.array([1.0, 2.0, 3.0, 50.0, 50.5])
    assert hit_rate(ranks, 1) == 0.2
    assert hit_rate(ranks, 3) == 0.6
    assert hit_rate(ranks, 50) == 0.8
    assert mrr(ranks) == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 50 + 1 / 50.5) / 5)
    assert ndcg(ranks, 3) == pytest.approx((1 + 1 / math.log2(3) + 1 / 2) / 5)


def test_no_ranks_have_no_mean():
    for figure in (mrr, lambda ranks: hit_rate(ranks, 10), lambda ranks: ndcg(ranks, 10)):
        with pytest.raises(ValueError, match="no ranks"):
            figure(np.zeros(0))


def test_no_queries_give_no_ranks():
    assert middle_ranks(np.zeros((0, 5)), np.zeros(0, np.int64), []).shape == (0,)


def test_figures_agree_with_trec_eval():
    """An independent implementation, by `ir_measures`, on scores without ties: to 1e-6."""
    rng = np.random.default_rng(5)
    num_queries, num_items = 300, 120
    scores = rng.permuted(np.tile(np.arange(num_items), (num_queries, 1)), axis=1).astype(np.float64)
    targets = rng.integers(0, num_items, num_queries)
    excluded = [rng.choice(num_items, 15, replace=False) for _ in range(num_queries)]
    ranks = middle_ranks(scores, targets, excluded)
    relevant = {f"q{query}": {f"i{target}": 1} for query, target in enumerate(targets)}
    run = {
        f"q{query}": {
            f"i{item}": float(scores[query, item])
            for item in range(num_items)
            if item == targets[query] or item not in excluded[query]
        }
        for query in range(num_queries)
    }
    ours = {Success @ k: hit_rate(ranks, k) for k in (10, 50, 100)}
    ours |= {RR: mrr(ranks), nDCG @ 10: ndcg(ranks, 10), nDCG @ 50: ndcg(ranks, 50)}
    theirs = ir_measures.calc_aggregate(list(ours), relevant, run)
    assert ours == pytest.approx(theirs, abs=1e-6)
    assert 0.0 < ours[Success @ 10] < ours[Success @ 50] < 1.0
