"""Negatives drawn on the fly from the live corpus, each draw a hash of the event that it is for.

Pure. Legend: B positives, S negatives of each positive's own, M negatives shared by the batch.
"""

import numpy as np
import numpy.typing as npt

from feature_store.hashing import Purpose, draw_below, event_keys
from stream_trainer.corpus import Corpus

I64 = npt.NDArray[np.int64]


def own_negatives(seed: int, corpus: Corpus, partitions_B: I64, offsets_B: I64, num_draws: int) -> I64:
    """Draw S item numbers for each positive, uniform over the corpus: (B, S); (B, 0) while the corpus is
    empty.

    A draw may hit the positive itself; the loss masks it, so that the draw stays uniform.
    """
    if not len(corpus) or not num_draws:
        return np.zeros((len(offsets_B), 0), np.int64)
    keys_B = event_keys(seed, Purpose.NEGATIVE, partitions_B, offsets_B)
    return corpus.numbers[draw_below(keys_B, num_draws, len(corpus))]


def shared_negatives(seed: int, corpus: Corpus, partition: int, offset: int, num_draws: int) -> I64:
    """Draw M item numbers for a whole batch, uniform over the corpus, by the batch's first event: (M,)."""
    if not len(corpus) or not num_draws:
        return np.zeros(0, np.int64)
    keys = event_keys(seed, Purpose.SHARED_NEGATIVE, [partition], [offset])
    drawn: I64 = corpus.numbers[draw_below(keys, num_draws, len(corpus))[0]]
    return drawn
