"""The bench's workload: a state of Amazon Books' published size, and streams of impressions and clicks over
it.

Owns sizes and settings. Everything is drawn by one seed; nothing is measured here.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.index import IdIndex, NumberIndex
from feature_store.numbering import Numbering
from feature_store.rows import RowTable
from feature_store.schema import Click, Impression
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from stream_trainer.corpus import Corpus
from stream_trainer.event_log import EventLog
from stream_trainer.examples import ExampleWidths, UserOp, fold_users
from stream_trainer.learner import Learner, Tables
from stream_trainer.models.factory import row_layouts
from stream_trainer.state import TrainerState

NUM_USERS, NUM_ITEMS, NUM_CATEGORIES = 695_513, 243_166, 11
BATCH, NEGATIVES, SLATE = 1024, 5, 6
HIDDEN = [256, 128]
START_MS = 1_700_000_000_000
_CHUNK = 20_000


def configuration(folder: Path, *overrides: str) -> Configuration:
    """Return the paper's model (with the linear last layer and temperature that let it learn) at the bench's
    sizes.
    """
    settings = [
        "model.preset=paper",
        "model.last_relu=false",
        "model.temperature=0.1",
        f"learning.batch_size={BATCH}",
        f"learning.negatives_per_positive={NEGATIVES}",
        "learning.prequential_every=0",
        "learning.rows_optimiser=rowwise_adam",
        "store.row_memory_mib=4096",
        f"store.path={folder / 'store'}",
        f"log.path={folder / 'log'}",
    ]
    return load_configuration(None, [*settings, *overrides], {})


def user_id(number: int) -> str:
    """Name a user."""
    return f"A{number:012d}"


def item_id(number: int) -> str:
    """Name an item."""
    return f"B{number:09d}"


def fill_store(config: Configuration) -> None:
    """Commit a row for every user and item, with categories, as a long-lived trainer would have."""
    store = FeatureStore(config.store.path)
    state = TrainerState(config, store)
    for start in range(0, NUM_ITEMS, _CHUNK):
        for number in range(start, min(start + _CHUNK, NUM_ITEMS)):
            state.item_numbers.number(item_id(number))
            state.corpus.add(number)
            state.set_item_features(number, {"category": f"category {number % NUM_CATEGORIES}"})
        state.commit()
    for start in range(0, NUM_USERS, _CHUNK):
        state.tables.user.begin_batch()
        state.tables.user.slots([user_id(n) for n in range(start, min(start + _CHUNK, NUM_USERS))])
        state.commit()
    store.close()


def warm(state: TrainerState) -> None:
    """Bring every row into memory, as they are in a trainer that has run for a while."""
    for start in range(0, NUM_ITEMS, _CHUNK):
        state.tables.item.slots(np.arange(start, min(start + _CHUNK, NUM_ITEMS)))
    for start in range(0, NUM_USERS, _CHUNK):
        state.tables.user.slots([user_id(n) for n in range(start, min(start + _CHUNK, NUM_USERS))])


def write_events(event_log: EventLog, config: Configuration, segment: int, num_positives: int) -> None:
    """Append a segment: one impression and one click a positive, every millisecond one."""
    rng = np.random.default_rng(segment)
    users = rng.integers(NUM_USERS, size=num_positives).tolist()
    slates = rng.integers(NUM_ITEMS, size=(num_positives, SLATE)).tolist()
    writer = event_log.writer()
    for n, (user, slate) in enumerate(zip(users, slates, strict=True)):
        name, ts_ms = user_id(user), START_MS + segment * num_positives + n
        items = [item_id(item) for item in dict.fromkeys(slate)]
        shown = Impression(impression_id=f"{segment}-{n}", user_id=name, ts_ms=ts_ms, items=items)
        clicked = Click(impression_id=f"{segment}-{n}", user_id=name, item_id=items[0], ts_ms=ts_ms)
        writer.send(config.topics.impressions, name.encode(), encode(shown), ts_ms)
        writer.send(config.topics.clicks, name.encode(), encode(clicked), ts_ms)
    writer.flush()
    writer.close()


class LearnStep:
    """Row (b): the trainer's own learning step over tables in memory, without log, join or commit."""

    def __init__(self, config: Configuration) -> None:
        layouts = row_layouts(config.model, config.features, config.learning.rows_optimiser)
        items, values = Numbering(), Numbering()
        for number in range(NUM_ITEMS):
            items.number(item_id(number))
        for number in range(NUM_CATEGORIES):
            values.number(f"category\x00category {number}")

        def nothing_stored(keys: list[bytes]) -> list[bytes | None]:
            return [None] * len(keys)

        self._tables = Tables(
            RowTable(
                "item", layouts["item"], NumberIndex(NUM_ITEMS, items.ids), nothing_stored, NUM_ITEMS, 0
            ),
            RowTable("user", layouts["user"], IdIndex(NUM_USERS), nothing_stored, NUM_USERS, 0),
            RowTable("value", layouts["value"], NumberIndex(1024, values.ids), nothing_stored, 1024, 0),
        )
        corpus = Corpus()
        for start in range(0, NUM_ITEMS, _CHUNK):
            numbers = np.arange(start, min(start + _CHUNK, NUM_ITEMS))
            slots = self._tables.item.slots(numbers)
            self._tables.item.write(slots, {"values": (numbers % NUM_CATEGORIES).astype(np.int32)[:, None]})
            for number in numbers.tolist():
                corpus.add(number)
        for start in range(0, NUM_USERS, _CHUNK):
            self._tables.user.slots([user_id(n) for n in range(start, min(start + _CHUNK, NUM_USERS))])
        self._learner = Learner(config, self._tables, corpus)
        self._num_learned = 0

    def step(self, users_B: torch.Tensor, positive_B: torch.Tensor) -> None:
        """Learn one batch of positives, from operations in stream order as the session hands them over."""
        pairs = zip(users_B.tolist(), positive_B.tolist(), strict=True)
        ops = [UserOp(user_id(user), item, 0, self._num_learned + n) for n, (user, item) in enumerate(pairs)]
        for table in self._tables:
            table.begin_batch()
        examples = fold_users(self._tables.user, ops, ExampleWidths(0, 0, 0, 0, 0))
        self._learner.step(examples, len(examples), self._num_learned)
        self._num_learned += len(examples)


def batches(num_batches: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield users and positives, the same for every row of the bench."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        users_B = torch.randint(NUM_USERS, (BATCH,), generator=generator)
        yield users_B, torch.randint(NUM_ITEMS, (BATCH,), generator=generator)
