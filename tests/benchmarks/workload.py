"""The bench's workload: a state of Amazon Books' published size, and streams of impressions and clicks over
it.

Owns sizes and settings. Everything is drawn by one seed; nothing is measured here.
"""

from pathlib import Path

import numpy as np
import torch
from pairs import BATCH, NEGATIVES, NUM_CATEGORIES, NUM_ITEMS, NUM_USERS

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.schema import Click, Impression
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from stream_trainer.chunk import Fact, Joined, as_facts
from stream_trainer.event_log import EventLog
from stream_trainer.session import Session
from stream_trainer.state import TrainerState

SLATE = 6
START_MS = 1_700_000_000_000
_CHUNK = 20_000
_LONGEST_DELAY_MS = 30_000


def configuration(folder: Path, *overrides: str) -> Configuration:
    """Return the paper's model (with the linear last layer and temperature that let it learn, and rows by the
    default's row-wise Adagrad) at the bench's sizes.
    """
    settings = [
        "model.preset=paper",
        "model.last_relu=false",
        "model.temperature=0.1",
        f"learning.batch_size={BATCH}",
        f"learning.negatives_per_positive={NEGATIVES}",
        "learning.prequential_every=0",
        "learning.rows_optimiser=adagrad",
        "store.row_memory_mib=4096",
        f"store.path={folder / 'store'}",
        f"log.path={folder / 'log'}",
    ]
    return load_configuration(None, [*settings, *overrides], {})


def default_configuration(folder: Path, *overrides: str) -> Configuration:
    """Return the default preset at the bench's sizes."""
    settings = [
        "learning.prequential_every=0",
        "store.row_memory_mib=4096",
        f"store.path={folder / 'store'}",
        f"log.path={folder / 'log'}",
    ]
    return load_configuration(None, [*settings, *overrides], {})


def with_settings(config: Configuration, **learning: object) -> Configuration:
    """Return settings that differ in some of [learning]."""
    return config.model_copy(update={"learning": config.learning.model_copy(update=learning)})


def user_id(number: int) -> str:
    """Name a user."""
    return f"A{number:012d}"


def item_id(number: int) -> str:
    """Name an item."""
    return f"B{number:09d}"


def fill_store(config: Configuration, num_users: int = NUM_USERS) -> None:
    """Commit a row for every user and item, with categories and histories, as a long-lived trainer has."""
    store = FeatureStore(config.store.path)
    state = TrainerState(config, store)
    rng = np.random.default_rng(0)
    for start in range(0, NUM_ITEMS, _CHUNK):
        for number in range(start, min(start + _CHUNK, NUM_ITEMS)):
            state.item_numbers.number(item_id(number))
            state.corpus.add(number)
            state.set_item_features(number, {"category": f"category {number % NUM_CATEGORIES}"})
        state.commit()
    for start in range(0, num_users, _CHUNK):
        state.tables.user.begin_batch()
        slots = state.tables.user.slots([user_id(n) for n in range(start, min(start + _CHUNK, num_users))])
        if config.model.history_length:
            history = rng.integers(NUM_ITEMS, size=(len(slots), config.model.history_length), dtype=np.int32)
            history[:, : config.model.history_length // 2] = -1
            state.tables.user.write(slots, {"history": history})
        state.commit()
    store.close()


def warm(state: TrainerState) -> None:
    """Bring rows into memory, as they are in a trainer that has run for a while: all, or what there is room
    for.
    """
    for start in range(0, NUM_ITEMS, _CHUNK):
        state.tables.item.begin_batch()
        state.tables.item.slots(np.arange(start, min(start + _CHUNK, NUM_ITEMS)))
    for start in range(0, NUM_USERS, _CHUNK):
        state.tables.user.begin_batch()
        state.tables.user.slots([user_id(n) for n in range(start, min(start + _CHUNK, NUM_USERS))])


def write_events(
    event_log: EventLog,
    config: Configuration,
    segment: int,
    num_positives: int,
    num_users: int = NUM_USERS,
) -> None:
    """Append a segment: one impression a positive, every millisecond one, and its click up to half a minute
    later. (At the same millisecond, clicks would come first and each wait for its impression.)
    """
    rng = np.random.default_rng(segment)
    users = rng.integers(num_users, size=num_positives).tolist()
    slates = rng.integers(NUM_ITEMS, size=(num_positives, SLATE)).tolist()
    start_ms = START_MS + segment * (num_positives + _LONGEST_DELAY_MS)
    shown_ms = start_ms + np.arange(num_positives)
    clicked_ms = shown_ms + rng.integers(1, _LONGEST_DELAY_MS, size=num_positives)
    writer = event_log.writer()
    for n, ts_ms in enumerate(shown_ms.tolist()):
        name, items = user_id(users[n]), [item_id(item) for item in dict.fromkeys(slates[n])]
        shown = Impression(impression_id=f"{segment}-{n}", user_id=name, ts_ms=ts_ms, items=items)
        writer.send(config.topics.impressions, name.encode(), encode(shown), ts_ms)
    for n in np.argsort(clicked_ms, kind="stable").tolist():
        name, item, ts_ms = user_id(users[n]), item_id(slates[n][0]), int(clicked_ms[n])
        clicked = Click(impression_id=f"{segment}-{n}", user_id=name, item_id=item, ts_ms=ts_ms)
        writer.send(config.topics.clicks, name.encode(), encode(clicked), ts_ms)
    writer.flush()
    writer.close()


class LearnStep:
    """Rows (b): the trainer's own session over rows in memory, without log, join or commit."""

    def __init__(self, config: Configuration) -> None:
        self.config = config
        self._store = FeatureStore(config.store.path)
        self._state = TrainerState(config, self._store)
        warm(self._state)
        self._session = Session(config, self._state, lambda *_: None, self._refuse)
        self._num_made = 0

    def facts(self, users_B: torch.Tensor, positive_B: torch.Tensor) -> list[Fact]:
        """Return positives as the input side hands them over: what makes them is not a part of the step."""
        pairs = zip(users_B.tolist(), positive_B.tolist(), strict=True)
        first, self._num_made = self._num_made, self._num_made + len(users_B)
        return as_facts(
            Joined(user_id(user), item_id(item), 0, n) for n, (user, item) in enumerate(pairs, first)
        )

    def step(self, facts: list[Fact]) -> None:
        """Learn some positives, in batches of the configured size."""
        self._state.unapplied.add(facts)
        while self._state.unapplied:
            self._session.apply_next()

    def set_precision(self, precision: str) -> None:
        """Let the towers compute in this precision from now on."""
        self._state.learner.config = with_settings(self.config, precision=precision)

    def close(self) -> None:
        """Release the store."""
        self._store.close()

    @staticmethod
    def _refuse() -> None:
        raise RuntimeError("a learn step alone is not to commit")
