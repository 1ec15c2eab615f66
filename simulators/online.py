"""One pass over a log: ask first, learn later, beside models that are retrained now and then or frozen.

Owns when a question is asked and who answers it. A question is a review's impression: the user is there, the
click is still to come, and nothing of it is known. It is answered by what was learned up to that moment; the
click is learned when it has been joined and its batch is full. The pass never changes what is learned.
Legend: Q questions.
"""

import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from feature_store.configuration import Configuration
from feature_store.schema import Event, EventKind, Impression
from feature_store.store import FeatureStore
from feature_store.store_reader import FeatureStoreReader
from simulators.dataset import Dataset
from simulators.epochs import EpochSettings, train_epochs
from simulators.metrics import Ranks
from simulators.online_models import I64, Follower, Generation, Questions, WatchedSession, copy_store
from simulators.online_plan import Plan, needed_refreshes
from simulators.timeline import num_events, timeline
from stream_trainer.chunker import Chunker
from stream_trainer.event_log import TopicPartition
from stream_trainer.examples import UserOps
from stream_trainer.state import TrainerState

ONLINE, RETRAINED, FROZEN = "online", "retrained", "frozen"
NEVER = "refresh never"
OnProgress = Callable[[int, int], None]
_PROGRESS_EVERY = 500  # events
# Of a short past, batches as large as of a whole log make too few steps: that would flatter `online`.
_STEPS_AN_EPOCH, _SMALLEST_BATCH = 100, 64


class Retraining(NamedTuple):
    """How the model beside is trained in batch epochs; its store is made where its configuration says."""

    config: Configuration
    epochs: EpochSettings


class PassResult(NamedTuple):
    """What one pass came to.

    `rows` (Q,) are the reviews that were asked about, `windows` (Q,) the window of each, `ranks` of each
    series the middle ranks (Q,) of what was clicked next: NaN before a series exists, infinity for an item
    that a generation does not hold yet. Seconds are of learning alone, and of each retraining. `chosen` are
    the settings that a trial found best, if it looked for any.
    """

    rows: I64
    windows: I64
    ranks: dict[str, Ranks]
    num_positives: int
    num_steps: int
    learn_seconds: float
    retrain_seconds: list[float]
    chosen: str = ""


def refresh_series(interval_seconds: float) -> str:
    """Return the name of the series served by generations made so often.

    >>> refresh_series(3600.0)
    'refresh 3600'
    """
    return f"refresh {interval_seconds:g}"


def run_online(
    config: Configuration,
    dataset: Dataset,
    seed: int,
    plan: Plan,
    refresh_seconds: Sequence[float] = (),
    retraining: Retraining | None = None,
    on_progress: OnProgress = lambda done, total: None,
) -> PassResult:
    """Stream a data set through an empty configured store, asking about the reviews of the plan's windows.

    Series: `online` is served after every step; `refresh S` by generations made at multiples of S seconds of
    event time (S > 0); with `retraining` also `refresh never` by the generation of the time that the frozen
    model starts, `frozen` by that model with rows and towers as they were, and `retrained`. Whichever towers
    answer, users' histories are those of the moment, and what a user had is left out.

    Raises:
        StoreMismatchError: the store holds something else.
    """
    run = _Pass(config, dataset, plan, refresh_seconds, retraining)
    total = num_events(dataset)
    try:
        for number, (kind, event) in enumerate(timeline(dataset, seed)):
            run.reach(event.ts_ms)
            if isinstance(event, Impression):
                run.ask(int(event.impression_id))
            run.apply(kind, event)
            if number % _PROGRESS_EVERY == 0:
                on_progress(number, total)
        run.answer()
        run.chunker.close_windows()
        run.session.apply(run.chunker.take())
        run.session.flush()
        return run.result()
    finally:
        run.close()


class _Asked(NamedTuple):
    row: int
    served: tuple[Generation | None, ...]


class _Pass:
    def __init__(
        self,
        config: Configuration,
        dataset: Dataset,
        plan: Plan,
        refresh_seconds: Sequence[float],
        retraining: Retraining | None,
    ) -> None:
        self._config, self._dataset, self._plan, self._retraining = config, dataset, plan, retraining
        self._store = FeatureStore(config.store.path)
        self._state = TrainerState(config, self._store)
        self.chunker = Chunker(config.join, self._state.position())
        self._topic_of = {kind: topic for topic, kind in config.topics.kinds().items()}
        self._num_events: Counter[EventKind] = Counter()
        self.session = WatchedSession(config, self._state, self._stepped, self._commit)
        self.session.before_learning = self._before_learning
        self._reader: FeatureStoreReader | None = None
        reviews = dataset.reviews
        self._item_number = {item_id: number for number, item_id in enumerate(reviews.item_ids)}
        self._user_number = {user_id: number for number, user_id in enumerate(reviews.user_ids)}
        self._owned: dict[int, list[int]] = {}
        self._learned: list[tuple[int, int]] = []
        self._window_of = {
            row: number for number, w in enumerate(plan.windows) for row in range(w.start, w.stop)
        }
        times = reviews.ts_ms.tolist()
        due = [needed_refreshes(plan, times, round(seconds * 1000)) for seconds in refresh_seconds]
        self._due = [list(reversed(each)) for each in due]
        self._served: list[Generation | None] = [None] * len(due)
        self._series = [refresh_series(seconds) for seconds in refresh_seconds]
        self._followers: dict[str, Follower] = {}
        self._frozen_generation: Generation | None = None
        self._retrainings = list(reversed(plan.retrain_at)) if retraining else []
        self._newest: tuple[int, Generation] | None = None
        self._waiting: list[_Asked] = []
        self._rows: list[int] = []
        self._ranks: dict[str, list[Ranks]] = {}
        self._learn_seconds = 0.0
        self._retrain_seconds: list[float] = []

    def apply(self, kind: EventKind, event: Event) -> None:
        """Let an event take effect."""
        place, offset = TopicPartition(self._topic_of[kind], 0), self._num_events[kind]
        self._num_events[kind] += 1
        self.chunker.add([(place, event.ts_ms, offset, event)])
        self.session.apply(self.chunker.take())

    def reach(self, ts_ms: int) -> None:
        """Make the generations that are due before what happens at this time."""
        for place, due in enumerate(self._due):
            while due and due[-1] <= ts_ms:
                due.pop()
                self._served[place] = self._generation()

    def ask(self, row: int) -> None:
        """Let a review's impression happen: what is due before it, then the question, if it is one."""
        if self._retraining is not None and row >= self._plan.frozen_at and FROZEN not in self._followers:
            self._freeze()
        while self._retraining is not None and self._retrainings and row >= self._retrainings[-1]:
            self.answer()
            self._retrainings.pop()
            self._retrain(self._retraining)
        if row in self._window_of:
            self._waiting.append(_Asked(row, tuple(self._served)))

    def answer(self) -> None:
        """Rank what was asked since the last step. Nothing that an answer depends on changed meanwhile."""
        asked, self._waiting = self._waiting, []
        if not asked:
            return
        reviews = self._dataset.reviews
        rows = [each.row for each in asked]
        users = reviews.users[rows].tolist()
        questions = Questions(
            [reviews.user_ids[user] for user in users],
            reviews.items[rows].astype(np.int64),
            [np.array(self._owned.get(user, ()), np.int64) for user in users],
        )
        newest = self._generation()
        of_generation = {id(newest): newest.ranks(questions)}
        self._add(ONLINE, of_generation[id(newest)])
        for place, name in enumerate(self._series):
            ranks = np.full(len(asked), np.nan)
            for q, each in enumerate(asked):
                generation = each.served[place]
                if generation is not None:
                    if id(generation) not in of_generation:
                        of_generation[id(generation)] = generation.ranks(questions)
                    ranks[q] = of_generation[id(generation)][q]
            self._add(name, ranks)
        for name, follower in self._followers.items():
            self._add(name, follower.ranks(questions))
        if self._frozen_generation is not None:
            self._add(NEVER, self._frozen_generation.ranks(questions))
        self._rows += rows

    def result(self) -> PassResult:
        """Return what was asked and answered, in the order of the reviews."""
        order = np.argsort(np.array(self._rows, np.int64), kind="stable")
        rows = np.array(self._rows, np.int64)[order]
        windows = np.array([self._window_of[row] for row in rows.tolist()], np.int64)
        ranks = {name: np.concatenate(parts)[order] for name, parts in self._ranks.items()}
        state = self._state
        counts = state.num_positives, state.num_steps
        return PassResult(rows, windows, ranks, *counts, self._learn_seconds, self._retrain_seconds)

    def close(self) -> None:
        """Release all stores."""
        for follower in self._followers.values():
            follower.close()
        if self._reader is not None:
            self._reader.close()
        self._store.close()

    def _before_learning(self, ops: UserOps) -> None:
        self.answer()
        state = self._state
        for follower in self._followers.values():
            follower.follow(ops, state.item_numbers, state.value_numbers)
        for op in ops:
            if op.is_positive:
                user = self._user_number[op.user_id]
                item = self._item_number[state.item_numbers.name(op.item)]
                self._owned.setdefault(user, []).append(item)
                self._learned.append((user, item))

    def _stepped(self, losses: dict[str, float], num_new: int, num_rehearsed: int, seconds: float) -> None:
        self._learn_seconds += seconds

    def _commit(self) -> None:
        self._state.commit()

    def _generation(self) -> Generation:
        """Return the generation of what is learned by now; the last one, if that has not changed."""
        num_steps = self._state.num_steps
        if self._newest is None or self._newest[0] != num_steps:
            self._commit()
            if self._reader is None:
                self._reader = FeatureStoreReader(self._config.store.path)
            self._reader.catch_up()
            self._newest = num_steps, Generation(self._reader, self._item_number)
        return self._newest[1]

    def _add(self, name: str, ranks: Ranks) -> None:
        """Append to a series; one that starts late has NaN before."""
        missing = len(self._rows) - sum(map(len, self._ranks.get(name, ())))
        self._ranks.setdefault(name, []).extend([np.full(missing, np.nan)] * (missing > 0) + [ranks])

    def _freeze(self) -> None:
        self.answer()
        path = self._config.store.path.with_name("frozen")
        self._frozen_generation = self._generation()
        copy_store(self._store, path)
        store = self._config.store.model_copy(update={"path": path})
        self._followers[FROZEN] = Follower(
            self._config.model_copy(update={"store": store}), self._item_number
        )

    def _retrain(self, retraining: Retraining) -> None:
        """Train in epochs on exactly what the online model has learned; that model answers from now on."""
        started = time.perf_counter()
        config = retraining.config
        if RETRAINED in self._followers:
            self._followers.pop(RETRAINED).close()
            shutil.rmtree(config.store.path)
        pairs = np.array(self._learned, np.int64).reshape(-1, 2)
        reviews = self._dataset.reviews
        keys = reviews.users.astype(np.int64) << 32 | reviews.items
        past = self._dataset.take(np.isin(keys, pairs[:, 0] << 32 | pairs[:, 1]))
        learning = config.learning
        size = max(_SMALLEST_BATCH, min(learning.batch_size, len(past.reviews) // _STEPS_AN_EPOCH))
        config = config.model_copy(update={"learning": learning.model_copy(update={"batch_size": size})})
        train_epochs(config, past, learning.seed, retraining.epochs)
        self._followers[RETRAINED] = Follower(config, self._item_number)
        self._retrain_seconds.append(time.perf_counter() - started)
