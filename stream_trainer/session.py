"""What one fact does: change features and corpus, wait for a batch, and learn when it is full.

Owns the rule of when pending examples are learned. The order of effects is a function of the facts' order
alone, so a replay repeats it. Never polls, decodes or joins.
"""

import time
from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt

from feature_store.configuration import Configuration
from stream_trainer.chunk import Changed, Chunk, Positives
from stream_trainer.examples import NO_ITEM, Examples, UserOp, UserOps, fold_users, unfolded
from stream_trainer.prequential import Prequential
from stream_trainer.state import TrainerState

_OPS_PER_EXAMPLE = (
    16  # so many feature upserts an example may wait for the batch to fill, then it is learned short
)

I64 = npt.NDArray[np.int64]
OnStep = Callable[[dict[str, float], int, int, float], None]


class Session:
    """Applies facts to the state. `on_step` hears of each step: losses, new and rehearsed, seconds."""

    def __init__(
        self, config: Configuration, state: TrainerState, on_step: OnStep, commit: Callable[[], None]
    ) -> None:
        self.state = state
        self.prequential = Prequential(config.learning)
        self._config = config
        self._on_step = on_step
        self._commit = commit
        self._count_pending()
        self._num_read = 0
        self._batch_size = config.learning.batch_size
        self._max_ops = _OPS_PER_EXAMPLE * self._batch_size

    @property
    def num_pending(self) -> int:
        """Examples that wait for their batch to fill."""
        return self._num_pending

    def apply(self, chunk: Chunk) -> None:
        """Apply all of a chunk."""
        self.state.receive(chunk)
        while self.state.unapplied:
            self.apply_next()

    def apply_next(self) -> None:
        """Apply the first fact that is not applied yet, and positives after it up to a full batch. A commit
        may fall in the middle: it holds a fact either among those to be applied or with its effect.
        """
        state = self.state
        change = state.unapplied.change
        if change is None:
            self._add_positives()
        else:
            self._learn_before(change)
            state.pop_change()
            self._change(change)
        if self._is_full():
            self.learn_what_is_full()
        if change is not None and change.is_item and state.has_many_item_changes:
            if state.tables.item.needs_commit:
                self._commit()
            else:
                state.flush_item_features()

    def learn_what_is_full(self) -> None:
        """Learn every full batch, and a short one that waited too long, before the next event is applied.

        At start, too: the last commit may stand between the batches of one event.
        """
        while self._num_pending >= self._batch_size:
            self._learn(self._batch_size)
        if len(self.state.pending) > self._max_ops:
            self.flush()

    def flush(self) -> None:
        """Learn what is pending, though the batch is not full: at the end of a replay, or when examples
        waited too long.
        """
        while self.state.pending:
            self._learn(self._config.learning.batch_size)

    def _is_full(self) -> bool:
        return self._num_pending >= self._batch_size or len(self.state.pending) > self._max_ops

    def _add_positives(self) -> None:
        """Let the positives that come next wait for their batch, until it is full."""
        state = self.state
        room = min(self._batch_size - self._num_pending, self._max_ops + 1 - len(state.pending))
        ops = _numbered(state.take_positives(room), state.item_numbers.numbers)
        state.item_changes.add(state.corpus.add_seen(ops.items))
        state.pending += ops
        self._pending_items.update(ops.items)
        self._num_pending += len(ops)

    def _change(self, fact: Changed) -> None:
        state = self.state
        if fact.is_item:
            number = state.item_numbers.number(fact.id)
            if fact.features is None:
                state.corpus.remove(number)
            else:
                state.corpus.add(number)
            state.set_item_features(number, fact.features or {})
            state.item_changes.add([number])
        elif fact.features is None:
            state.pending.append(UserOp(fact.id))
        else:
            values, numbers = state.user_features.encode(fact.features)
            features = (tuple(values.tolist()), tuple(numbers.tolist()))
            state.pending.append(UserOp(fact.id, features=features))

    def _learn_before(self, fact: Changed) -> None:
        """Learn pending examples of an item whose features are about to change, or of a user about to be
        deleted: they happened before that, and must not move the row of the user who starts again.
        """
        if fact.is_item:
            pending = self._pending_items
            if pending and int(self.state.item_numbers.find([fact.id])[0]) in pending:
                self.flush()
        elif fact.features is None:
            ops = self.state.pending
            if fact.id in ops.users and fact.id in ops.positives().users:
                self.flush()

    def _learn(self, num_examples: int) -> None:
        state = self.state
        if any(table.needs_commit for table in state.tables):
            self._commit()
        ops = self._take_ops(num_examples)
        start = time.perf_counter()
        for table in state.tables:
            table.begin_batch()
        state.flush_item_features()
        if self.prequential.is_due(state.num_steps + 1):
            self.prequential.prepare(state.learner)
        new = fold_users(state.tables.user, ops, state.widths)
        state.rehearsal.forget(ops.deleted_users())
        if not len(new):
            return
        if self.prequential.is_due(state.num_steps + 1):
            self.prequential.observe(state.learner, new, state.num_positives)
        rehearsed = state.rehearsal.draw(self._config.learning, new)
        examples = Examples.concatenate([new, rehearsed]) if len(rehearsed) else new
        state.rehearsal.add(new)
        parts = state.learner.step(examples, len(new), state.num_positives, self._read_ahead)
        state.num_positives += len(new)
        state.num_steps += 1
        losses = {name: float(part) for name, part in parts.items()}
        self._on_step(losses, len(new), len(rehearsed), time.perf_counter() - start)

    def _read_ahead(self) -> None:
        """Let the store read what the batch after this one will need, if this one needed anything of it.

        By guess: what is about to change is not known yet, and a new item changes what is drawn. A history is
        known with its user's row, which is read one batch sooner. What is missed is read when it is needed.
        """
        state = self.state
        num_read, self._num_read = self._num_read, sum(table.num_read for table in state.tables)
        if not self._config.store.own_process or num_read == self._num_read:
            return
        num_batches = 2 if state.widths.history else 1
        room = max(num_batches * self._batch_size - self._num_pending, 0)
        positives = state.pending.positives()
        positives += _numbered(state.unapplied.coming(2 * room), state.item_numbers.find).take(room)
        if len(positives):
            new = unfolded(positives.take(self._batch_size), state.widths)
            if state.widths.history:
                state.foresee_histories(new)
            rehearsed = state.rehearsal.draw(self._config.learning, new)
            state.read_ahead(Examples.concatenate([new, rehearsed]), positives.users)

    def _take_ops(self, num_examples: int) -> UserOps:
        """Take operations up to the last of `num_examples` positives; all if there are not so many."""
        pending = self.state.pending
        end = len(pending)
        if self._num_pending > num_examples:
            end = int(np.flatnonzero(pending.are_positive())[num_examples - 1]) + 1
        taken = pending.take(end)
        self._count_pending()
        return taken

    def _count_pending(self) -> None:
        items = [item for item in self.state.pending.items if item != NO_ITEM]
        self._num_pending, self._pending_items = len(items), set(items)


def _numbered(positives: Positives, numbers_of: Callable[[Sequence[str]], I64]) -> UserOps:
    """Return positives with numbers for their items: all looked up at once, in the log's order."""
    if not any(positives.shown):
        items, shown = numbers_of(positives.item_ids).tolist(), list[tuple[int, ...]]([()]) * len(positives)
    else:
        each = [(item, *others) for item, others in zip(positives.item_ids, positives.shown, strict=True)]
        numbers = iter(numbers_of([name for names in each for name in names]).tolist())
        rows = [tuple(islice(numbers, len(names))) for names in each]
        items, shown = [row[0] for row in rows], [row[1:] for row in rows]
    return UserOps.of_positives(positives.user_ids, items, positives.partitions, positives.offsets, shown)
