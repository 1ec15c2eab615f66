"""Negatives: only live items, uniform, and each a function of its own event."""

import numpy as np

from stream_trainer.corpus import Corpus
from stream_trainer.negatives import own_negatives, shared_negatives


def corpus_of(num_items: int) -> Corpus:
    """Return a corpus of the items 100, 101, …"""
    corpus = Corpus()
    for number in range(100, 100 + num_items):
        corpus.add(number)
    return corpus


def draw(
    corpus: Corpus, offsets: np.ndarray, num_draws: int, partition: int = 0, seed: int = 0
) -> np.ndarray:
    return own_negatives(seed, corpus, np.full(len(offsets), partition), offsets, num_draws)


def test_draws_are_uniform_over_the_corpus() -> None:
    """Chi-square over 50 items, 49 degrees of freedom: beyond 99.7 once in 20,000 tries."""
    own = draw(corpus_of(50), np.arange(4000), 5) - 100
    shared = shared_negatives(0, corpus_of(50), 3, 7, 20_000) - 100
    for drawn in (own.reshape(-1), own[:, 0], shared):
        counts = np.bincount(drawn, minlength=50)
        expected = len(drawn) / 50
        assert len(counts) == 50
        assert ((counts - expected) ** 2 / expected).sum() < 99.7


def test_a_deleted_item_is_drawn_no_more() -> None:
    corpus, offsets = corpus_of(20), np.arange(500)
    assert (draw(corpus, offsets, 5) == 107).any()
    corpus.remove(107)
    assert sorted(set(draw(corpus, offsets, 5).reshape(-1).tolist())) == [
        number for number in range(100, 120) if number != 107
    ]
    assert 107 not in shared_negatives(0, corpus, 0, 0, 5000)


def test_a_draw_depends_on_its_event_and_not_on_its_batch() -> None:
    corpus, offsets = corpus_of(1000), np.arange(40)
    together = draw(corpus, offsets, 6)
    for place in (0, 3, 39):
        alone = draw(corpus, offsets[place : place + 1], 6)
        assert alone[0].tolist() == together[place].tolist()
    assert draw(corpus, offsets[::-1], 6).tolist() == together[::-1].tolist()
    assert draw(corpus, offsets, 4).tolist() == together[:, :4].tolist()


def test_seed_partition_and_offset_change_draws() -> None:
    corpus, offsets = corpus_of(1000), np.arange(10)
    draws = [
        draw(corpus, offsets, 8),
        draw(corpus, offsets, 8, seed=1),
        draw(corpus, offsets, 8, partition=1),
        draw(corpus, offsets + 10, 8),
    ]
    assert len({d.tobytes() for d in draws}) == 4
    events = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    shared = {
        shared_negatives(seed, corpus, partition, offset, 8).tobytes() for seed, partition, offset in events
    }
    assert len(shared) == 4


def test_nothing_to_draw_gives_no_columns() -> None:
    assert draw(Corpus(), np.arange(3), 5).shape == (3, 0)
    assert draw(corpus_of(4), np.arange(3), 0).shape == (3, 0)
    assert shared_negatives(0, Corpus(), 0, 0, 5).shape == (0,)
    assert shared_negatives(0, corpus_of(4), 0, 0, 0).shape == (0,)
    assert draw(corpus_of(1), np.arange(3), 2).tolist() == [[100, 100]] * 3
