"""What one event does: join it, change features and corpus, and learn when a batch is full.

Owns the rule of when pending examples are learned. The order of effects is a function of the events' order
alone, so a replay repeats it. Never polls or decodes; time is the stream's.
"""

import time
from collections.abc import Callable, Sequence

from feature_store.configuration import Configuration
from feature_store.schema import Click, Deleted, Event, EventKind, Impression, ItemFeatures, UserFeatures
from stream_trainer.event_log import TopicPartition
from stream_trainer.examples import Examples, UserOp, fold_users
from stream_trainer.join import Origin, Positive
from stream_trainer.prequential import Prequential
from stream_trainer.state import TrainerState

_OPS_PER_EXAMPLE = (
    16  # so many feature upserts an example may wait for the batch to fill, then it is learned short
)
_CHANGES = (ItemFeatures, Deleted)

OnStep = Callable[[dict[str, float], int, int, float], None]


class Session:
    """Applies events to the state. `on_step` hears of each step: losses, new and rehearsed, seconds."""

    def __init__(
        self, config: Configuration, state: TrainerState, on_step: OnStep, commit: Callable[[], None]
    ) -> None:
        self.state = state
        self.prequential = Prequential(config.learning)
        self.latest_event_ms = 0
        self._config = config
        self._on_step = on_step
        self._commit = commit
        self._count_pending()
        self._batch_size = config.learning.batch_size
        self._max_ops = _OPS_PER_EXAMPLE * self._batch_size
        self._lateness_ms = round(config.join.allowed_lateness_seconds * 1000)

    @property
    def num_pending(self) -> int:
        """Examples that wait for their batch to fill."""
        return self._num_pending

    def apply(self, partition: TopicPartition, offset: int, ts_ms: int, event: Event | None) -> None:
        """Apply one record in merge order; None could not be decoded, but its place still counts."""
        state = self.state
        watermark_ms = ts_ms - self._lateness_ms
        if watermark_ms > state.watermark_ms:
            # First: what time closes happened before this event, and must be learned before what it changes.
            state.watermark_ms = watermark_ms
            closed = state.joiner.advance(watermark_ms)
            if closed:
                self._add_positives(closed)
                self.learn_what_is_full()
        if isinstance(event, _CHANGES):
            self._learn_before_change(event)
        state.next_offsets[partition] = offset + 1
        state.latest_ts_ms[partition] = ts_ms
        if event is not None:
            self.latest_event_ms = max(self.latest_event_ms, event.ts_ms)
            joined = self._effects(partition, offset, event)
            if joined:
                self._add_positives(joined)
        if self._num_pending >= self._batch_size or len(state.pending) > self._max_ops:
            self.learn_what_is_full()
        if isinstance(event, _CHANGES) and state.has_many_item_changes:
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

    def close_windows(self) -> None:
        """Act as if time had passed every window: the end of a bounded replay."""
        self._add_positives(self.state.joiner.advance(2**62))
        self.flush()

    def _effects(self, partition: TopicPartition, offset: int, event: Event) -> list[Positive]:
        state = self.state
        if isinstance(event, Click):
            state.latest_click_ms = max(state.latest_click_ms, event.ts_ms)
            return state.joiner.click(event, Origin(*partition, offset))
        if isinstance(event, Impression):
            return state.joiner.impression(event)
        if isinstance(event, ItemFeatures):
            number = state.item_numbers.number(event.id)
            state.corpus.add(number)
            state.set_item_features(number, event.features)
        elif isinstance(event, UserFeatures):
            values, numbers = state.user_features.encode(event.features)
            features = (tuple(values.tolist()), tuple(numbers.tolist()))
            state.pending.append(UserOp(event.id, features=features))
        elif event.kind == EventKind.ITEM:
            number = state.item_numbers.number(event.id)
            state.corpus.remove(number)
            state.set_item_features(number, {})
        else:
            state.pending.append(UserOp(event.id))
        return []

    def _add_positives(self, positives: Sequence[Positive]) -> None:
        state = self.state
        number_of = state.item_numbers.number
        for user_id, item_id, _, (_, partition, offset), shown, _ in positives:
            number = number_of(item_id)
            state.corpus.add_seen(number)
            numbers = tuple(map(number_of, shown)) if shown else ()
            state.pending.append(UserOp(user_id, number, partition, offset, numbers))
            self._pending_items.add(number)
        self._num_pending += len(positives)

    def _learn_before_change(self, event: ItemFeatures | Deleted) -> None:
        """Learn pending examples of an item whose features are about to change, or of a user about to be
        deleted: they happened before that, and must not move the row of the user who starts again.
        """
        if isinstance(event, Deleted) and event.kind != EventKind.ITEM:
            if any(op.is_positive and op.user_id == event.id for op in self.state.pending):
                self.flush()
            return
        if self.state.item_numbers.get(event.id) in self._pending_items:
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
        if not len(new):
            return
        if self.prequential.is_due(state.num_steps + 1):
            self.prequential.observe(state.learner, new, state.num_positives)
        ratio = self._config.learning.rehearsal_ratio
        rehearsed = state.rehearsal.draw(self._config.learning.seed, new, ratio)
        examples = Examples.concatenate([new, rehearsed])
        parts = state.learner.step(examples, len(new), state.num_positives)
        state.rehearsal.add(new)
        state.num_positives += len(new)
        state.num_steps += 1
        losses = {name: float(part) for name, part in parts.items()}
        self._on_step(losses, len(new), len(rehearsed), time.perf_counter() - start)

    def _take_ops(self, num_examples: int) -> list[UserOp]:
        """Take operations up to the last of `num_examples` positives; all if there are not so many."""
        pending = self.state.pending
        end = len(pending)
        if self._num_pending > num_examples:
            places = [i for i, op in enumerate(pending) if op.is_positive]
            end = places[num_examples - 1] + 1
        taken, self.state.pending = pending[:end], pending[end:]
        self._count_pending()
        return taken

    def _count_pending(self) -> None:
        items = [op.item for op in self.state.pending if op.is_positive]
        self._num_pending, self._pending_items = len(items), set(items)
