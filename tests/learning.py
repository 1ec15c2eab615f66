"""What tests of the learning core share: tables in memory, and a driver that learns as the session does.

Owns no rule of its own: `World.learn` is the body of the session's learning step without log, join and store;
`Shop` feeds a real session over a real store.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from feature_store.configuration import Configuration
from feature_store.id_index import IdIndex
from feature_store.index import NumberIndex
from feature_store.numbering import Numbering
from feature_store.row_layout import RowLayout
from feature_store.rows import ReadRows, RowTable
from feature_store.schema import (
    Click,
    Deleted,
    Event,
    EventKind,
    FeatureValue,
    Impression,
    ItemFeatures,
    UserFeatures,
)
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from stream_trainer.chunker import Chunker
from stream_trainer.corpus import Corpus
from stream_trainer.event_log import TopicPartition
from stream_trainer.examples import Examples, ExampleWidths, UserOp, UserOps, fold_users
from stream_trainer.features import FeatureEncoder
from stream_trainer.learner import Learner, Tables
from stream_trainer.models.factory import row_layouts, running_mean_width
from stream_trainer.rehearsal import Rehearsal
from stream_trainer.session import Session
from stream_trainer.state import TrainerState

Blocks = tuple[dict[str, Mapping[str, FeatureValue]], list[tuple[str, str]]]


def configuration(*overrides: str) -> Configuration:
    """Return the defaults with these settings on one thread and with small buffers."""
    small = ["learning.num_threads=1", "learning.rehearsal_capacity=10000"]
    return load_configuration(None, [*small, *overrides], {})


def nothing_stored(keys: list[bytes]) -> list[bytes | None]:
    """Read rows from an empty store."""
    return [None] * len(keys)


def user_table(
    layout: RowLayout, capacity: int = 1024, read: ReadRows = nothing_stored, seed: int = 0
) -> RowTable:
    """Return a table of rows by ID."""
    return RowTable("user", layout, IdIndex(capacity), read, capacity, seed)


class World:
    """A learner over tables in memory. `steps` keeps the examples of every batch and how many were new."""

    def __init__(self, config: Configuration, capacity: int = 4096) -> None:
        self.config = config
        self.item_numbers, self.value_numbers = Numbering(), Numbering()
        self.corpus = Corpus()
        layouts = row_layouts(config.model, config.features, config.learning.rows_optimiser)
        items = NumberIndex(capacity, self.item_numbers.keys)
        values = NumberIndex(capacity, self.value_numbers.keys)
        seed = config.learning.seed
        self.tables = Tables(
            RowTable("item", layouts["item"], items, nothing_stored, capacity, seed),
            user_table(layouts["user"], capacity, seed=seed),
            RowTable("value", layouts["value"], values, nothing_stored, capacity, seed),
        )
        self.learner = Learner(config, self.tables, self.corpus)
        features = config.features
        self._items = FeatureEncoder(features.item_categorical, features.item_numeric, self.value_numbers)
        self._users = FeatureEncoder(features.user_categorical, features.user_numeric, self.value_numbers)
        self.widths = ExampleWidths(
            config.model.history_length,
            running_mean_width(config.model),
            self._users.num_values,
            self._users.num_numbers,
            config.learning.shown_negatives,
        )
        self.rehearsal = Rehearsal(config.learning.rehearsal_capacity, self.widths)
        self.num_positives = 0
        self.steps: list[tuple[Examples, int]] = []

    def add_items(self, items: Mapping[str, Mapping[str, FeatureValue]]) -> None:
        """Put items with their features into the corpus."""
        for name, features in items.items():
            number = self.item_numbers.number(name)
            self.corpus.add(number)
            values, numbers = self._items.encode(features)
            slots = self.tables.item.slots(np.array([number]))
            self.tables.item.write(slots, {"values": values[None], "numbers": numbers[None]})

    def upsert(self, user: str, features: Mapping[str, FeatureValue]) -> UserOp:
        """Return the operation that gives a user features."""
        values, numbers = self._users.encode(features)
        return UserOp(user, features=(tuple(values.tolist()), tuple(numbers.tolist())))

    def click(self, user: str, item: str, offset: int, shown: tuple[int, ...] = ()) -> UserOp:
        """Return the operation of a positive."""
        return UserOp(user, self.item_numbers.number(item), 0, offset, shown)

    def examples(self, ops: Sequence[UserOp]) -> tuple[Examples, int]:
        """Fold operations into examples, new ones first, then the rehearsed; return how many are new."""
        for table in self.tables:
            table.begin_batch()
        new = fold_users(self.tables.user, UserOps(ops), self.widths)
        learning = self.config.learning
        rehearsed = self.rehearsal.draw(learning, new)
        return Examples.concatenate([new, rehearsed]), len(new)

    def learn(self, ops: Sequence[UserOp]) -> dict[str, float]:
        """Learn one batch; return the parts of its loss."""
        examples, num_new = self.examples(ops)
        self.steps.append((examples, num_new))
        parts = self.learner.step(examples, num_new, self.num_positives)
        self.rehearsal.add(examples.first(num_new))
        self.num_positives += num_new
        return {name: float(part) for name, part in parts.items()}

    def learn_all(self, ops: Sequence[UserOp]) -> list[dict[str, float]]:
        """Learn operations batch by batch."""
        size = self.config.learning.batch_size
        return [self.learn(ops[start : start + size]) for start in range(0, len(ops), size)]

    def item_embeddings(self) -> torch.Tensor:
        """Return p_v of the corpus, by place."""
        self.tables.item.begin_batch()
        return self.learner.embed_items(self.corpus.numbers.copy())

    def user_embeddings(self, users: list[str]) -> torch.Tensor:
        """Return p_u as users would be served now. Changes their histories: for the end of a test."""
        for table in self.tables:
            table.begin_batch()
        ops = UserOps(UserOp(user, int(self.corpus.numbers[0])) for user in users)
        return self.learner.embed_examples(fold_users(self.tables.user, ops, self.widths))


class Shop:
    """A session over a store, fed with events in order: the trainer without log and merge."""

    def __init__(self, config: Configuration, path: Path) -> None:
        self.store = FeatureStore(path)
        self.state = TrainerState(config, self.store)
        self.losses: list[dict[str, float]] = []
        self.session = Session(config, self.state, self._learned, self.commit)
        self._chunker = Chunker(config.join, self.state.position())

    def apply(self, events: Sequence[Event], at_once: bool = False) -> None:
        """Apply events, each alone or all as one chunk; each kind has a topic of one partition, and goes on
        at its stored offset.
        """
        offsets = self.state.next_offsets
        for event in events:
            kind = event.kind.value if isinstance(event, Deleted) else type(event).__name__
            partition = TopicPartition(kind, 0)
            offset = offsets.get(partition, 0)
            offsets[partition] = offset + 1
            self._chunker.add([(partition, event.ts_ms, offset, event)])
            if not at_once:
                self.session.apply(self._chunker.take())
        if at_once:
            self.session.apply(self._chunker.take())

    def commit(self) -> None:
        """Commit the state as it stands, in the middle of a batch or not."""
        self.state.commit()

    def close(self) -> None:
        """Release the store; what was not committed is lost, as in a crash."""
        self.store.close()

    def _learned(self, losses: dict[str, float], num_new: int, num_rehearsed: int, seconds: float) -> None:
        self.losses.append(losses)


def shop_events(seed: int, num_clicks: int) -> list[Event]:
    """Return item upserts, then impressions with clicks among upserts and deletions of users and items."""
    rng = np.random.default_rng(seed)
    features = {"category": "a", "price": 3.0}
    events: list[Event] = [
        ItemFeatures(id=f"i{n}", ts_ms=n, features=features | {"category": f"c{n % 4}"}) for n in range(40)
    ]
    for n in range(num_clicks):
        ts_ms, user = 1000 + 10 * n, f"u{rng.integers(12)}"
        items = [f"i{i}" for i in rng.choice(40, 4, replace=False)]
        shown = Impression(impression_id=f"{seed}-{n}", user_id=user, ts_ms=ts_ms, items=items)
        events += [shown, Click(impression_id=f"{seed}-{n}", user_id=user, item_id=items[0], ts_ms=ts_ms + 1)]
        if rng.random() < 0.15:
            events.append(UserFeatures(id=user, ts_ms=ts_ms + 2, features={"age": float(rng.integers(80))}))
        if rng.random() < 0.05:
            events.append(ItemFeatures(id=items[1], ts_ms=ts_ms + 3, features={"category": "c9"}))
        if rng.random() < 0.04:
            events.append(Deleted(kind=EventKind.USER, id=user, ts_ms=ts_ms + 4))
        if rng.random() < 0.03:
            events.append(Deleted(kind=EventKind.ITEM, id=items[2], ts_ms=ts_ms + 5))
    return events


def row_bytes(table: RowTable, keys: Sequence[str] | npt.NDArray[np.int64]) -> list[bytes]:
    """Return the bytes of rows."""
    return [row.tobytes() for row in table.rows_RW[table.slots(keys)]]


def blocks(
    seed: int, num_blocks: int = 4, num_items: int = 25, num_users: int = 200, clicks: int = 20
) -> Blocks:
    """Return items and clicks in order: each user clicks items of one block only.

    Block b has the items `b-0`, `b-1`, …; user u belongs to block u modulo the number of blocks.
    """
    rng = np.random.default_rng(seed)
    items: dict[str, Mapping[str, FeatureValue]] = {
        f"{block}-{item}": {"category": "all"} for block in range(num_blocks) for item in range(num_items)
    }
    order = rng.permutation(np.repeat(np.arange(num_users), clicks))
    stream = [(f"u{u}", f"{u % num_blocks}-{rng.integers(num_items)}") for u in order.tolist()]
    return items, stream
