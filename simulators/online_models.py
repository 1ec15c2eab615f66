"""Who answers questions along a log: generations of the online model, and models that learn no more.

Owns how a question is ranked: as the server would, items and towers of one commit, the newest committed rows
for the query. Never learns anything. Legend: Q questions, N items of the data set, D embedding width.
"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from feature_store.configuration import Configuration
from feature_store.numbering import Numbering
from feature_store.store import FAMILIES, FeatureStore
from feature_store.store_reader import FeatureStoreReader
from index_refresher.embed import QueryEmbedder, embed_corpus
from index_refresher.names import StoreNames
from simulators.metrics import Ranks, middle_ranks
from stream_trainer.examples import UserOps, fold_users
from stream_trainer.learner import Learner
from stream_trainer.models.retrieval import best_scores
from stream_trainer.session import Session
from stream_trainer.state import TrainerState

_OPS_AT_ONCE = 4096
I64 = npt.NDArray[np.int64]


class Questions(NamedTuple):
    """What is asked: the users' IDs, the items to be found, and those left out, as the data set's numbers."""

    user_ids: list[str]
    items_Q: I64
    excluded: list[I64]


class Generation:
    """All items under one commit's towers. Queries use its towers over what the reader shows when asked."""

    def __init__(self, reader: FeatureStoreReader, number_of: dict[str, int]) -> None:
        """Embed what the reader shows; `number_of` gives the data set's number of each item ID.

        Raises:
            StoreError: nothing is committed yet.
        """
        corpus = embed_corpus(reader)
        self._embeddings_ND = corpus.embeddings_ND
        self._embedder = QueryEmbedder(corpus.trained, StoreNames(reader))
        self._place_N = np.full(len(number_of), -1, np.int64)
        self._place_N[[number_of[item_id] for item_id in corpus.item_ids]] = np.arange(len(corpus.item_ids))

    def ranks(self, questions: Questions) -> Ranks:
        """Return the middle rank (Q,) of each item; infinity for one that this generation does not hold yet,
        which no search can find.
        """
        target_Q = self._place_N[questions.items_Q]
        found = np.flatnonzero(target_Q >= 0)
        ranks_Q = np.full(len(target_Q), np.inf)
        if len(found):
            queries = self._embedder.embed([questions.user_ids[q] for q in found.tolist()]).embeddings_QD
            places = [self._place_N[questions.excluded[q]] for q in found.tolist()]
            excluded = [place[place >= 0] for place in places]
            scores = best_scores(queries, self._embeddings_ND)
            ranks_Q[found] = middle_ranks(scores, target_Q[found], excluded)
        return ranks_Q


class Follower:
    """A committed model that learns no more, while its users' histories, means and features go on."""

    def __init__(self, config: Configuration, number_of: dict[str, int]) -> None:
        """Open the configured store, which a training has filled.

        Raises:
            StoreError: there is none.
        """
        self._store = FeatureStore(config.store.path)
        self._state = TrainerState(config, self._store)
        self._learner = Learner(config, self._state.tables, self._state.corpus)
        self._learner.model.load_state_dict(self._state.learner.model.state_dict())
        self._reader = FeatureStoreReader(config.store.path)
        self._reader.catch_up()
        self._generation = Generation(self._reader, number_of)
        self._waiting = UserOps()
        self._value_number = cache(self._state.value_numbers.number)

    def follow(self, ops: UserOps, items: Numbering, values: Numbering) -> None:
        """Take note of what happens to users, in `ops` by these numbers."""
        names = [items.name(op.item) for op in ops if op.is_positive]
        numbers = iter(self._state.item_numbers.numbers(names).tolist())
        for op in ops:
            item = next(numbers) if op.is_positive else op.item
            features = op.features
            if features is not None:
                known = (code if code < 0 else self._value_number(values.name(code)) for code in features[0])
                features = (tuple(known), features[1])
            self._waiting.append(replace(op, item=item, shown=(), features=features))

    def ranks(self, questions: Questions) -> Ranks:
        """Return `Generation.ranks` with all that was noted before."""
        state = self._state
        has_more = len(self._waiting) > 0
        while len(self._waiting):
            if any(table.needs_commit for table in state.tables):
                state.commit()
            for table in state.tables:
                table.begin_batch()
            examples = fold_users(state.tables.user, self._waiting.take(_OPS_AT_ONCE), state.widths)
            self._learner.advance_means(examples, len(examples))
        if has_more:
            state.commit()
            self._reader.catch_up()
        return self._generation.ranks(questions)

    def close(self) -> None:
        """Release the store."""
        self._reader.close()
        self._store.close()


def copy_store(source: FeatureStore, path: Path) -> None:
    """Write what `source` last committed to a new store."""
    target = FeatureStore(path)
    try:
        _, watermark_ms, latest_click_ms = source.last_commit
        target.commit({name: list(source.items(name)) for name in FAMILIES}, watermark_ms, latest_click_ms)
    finally:
        target.close()


class WatchedSession(Session):
    """A session that says what it is about to learn, before anything has changed."""

    before_learning: Callable[[UserOps], None]

    def _take_ops(self, num_examples: int) -> UserOps:
        ops = super()._take_ops(num_examples)
        self.before_learning(ops)
        return ops
