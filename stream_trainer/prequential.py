"""Predict first, learn later: how well the model ranks positives that it has not learned yet.

Owns running figures only; never changes what is learned. One batch in `prequential_every` is ranked over the
live corpus (thinned evenly if it is large), items of the user's stored history left out. Ties take the middle
rank. Legend: B examples, n corpus items.
"""

import numpy as np
import numpy.typing as npt
import torch

from feature_store.configuration import LearningSettings
from stream_trainer.examples import Examples
from stream_trainer.learner import Learner
from stream_trainer.models.retrieval import F32, best_scores

HITS_AT = 50
_CHUNK = 8192
_KEPT = 100_000


class Prequential:
    """Ranks a batch now and then. `curve` holds (positives learned so far, hit rate at 50, mean reciprocal
    rank), the newest hundred thousand.
    """

    def __init__(self, settings: LearningSettings) -> None:
        self._settings = settings
        self._numbers = np.zeros(0, np.int64)
        self._items = torch.zeros(0, 0)
        self.curve: list[tuple[int, float, float]] = []

    def is_due(self, step: int) -> bool:
        """Whether this step's batch is to be ranked."""
        return self._settings.prequential_every > 0 and step % self._settings.prequential_every == 0

    def prepare(self, learner: Learner) -> None:
        """Embed the corpus, before the batch's own rows are brought into memory: large corpora may push
        others out.
        """
        numbers = learner.corpus.numbers
        stride = -(-len(numbers) // self._settings.prequential_max_items) or 1
        self._numbers = numbers[::stride].copy()
        embedded = []
        chunk = min(_CHUNK, learner.tables.item.capacity // 4)  # half and more may be dirty
        for start in range(0, len(self._numbers), chunk):
            for table in learner.tables:
                table.begin_batch()
            embedded.append(learner.embed_items(self._numbers[start : start + chunk]))
        self._items = torch.cat(embedded) if embedded else torch.zeros(0, 0)
        for table in learner.tables:
            table.begin_batch()

    def observe(self, learner: Learner, new: Examples, num_positives: int) -> None:
        """Rank each example's item among the corpus prepared before."""
        if not len(self._numbers):
            return
        users = learner.embed_examples(new).numpy()
        targets = learner.embed_items(new.records["item"]).numpy()
        ranks = self._ranks(users, targets, new)
        self.curve.append((num_positives, float(np.mean(ranks <= HITS_AT)), float(np.mean(1 / ranks))))
        del self.curve[:-_KEPT]

    def _ranks(self, users: F32, targets_BD: F32, new: Examples) -> npt.NDArray[np.float64]:
        scores_Bn = best_scores(users, self._items.numpy())
        pairs = zip(users, targets_BD, strict=True)
        target_B1 = np.concatenate([best_scores(user[None], target[None]) for user, target in pairs])
        own_Bn = self._numbers[None, :] == new.records["item"][:, None]
        scores_Bn[own_Bn] = -np.inf
        for row, history in enumerate(new.records["history"]):
            scores_Bn[row, np.isin(self._numbers, history[history >= 0])] = -np.inf
        better = (scores_Bn > target_B1).sum(1)
        equal = (scores_Bn == target_B1).sum(1)
        ranks: npt.NDArray[np.float64] = 1 + better + equal / 2
        return ranks
