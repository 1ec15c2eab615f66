"""Everything the trainer knows, as one thing that is loaded from the store and committed to it as a whole.

Owns which column family each part lives in. Never learns, polls or joins by itself.
"""

from collections import deque
from collections.abc import Mapping
from functools import partial
from typing import Any

import msgpack
import msgspec
import numpy as np
import numpy.typing as npt
import safetensors.torch

from feature_store.configuration import Configuration
from feature_store.id_index import IdIndex
from feature_store.index import NumberIndex
from feature_store.item_changes import KEY, ItemChanges
from feature_store.numbering import Numbering
from feature_store.rows import RowTable
from feature_store.schema import FeatureValue
from feature_store.sequenced import EncodedChanges
from feature_store.store import CommitInfo, Writes
from feature_store.store_process import Store
from stream_trainer.chunk import Chunk, Marks, Place, Position, Positives, Remainder, decode_remainder
from stream_trainer.corpus import Corpus
from stream_trainer.event_log import TopicPartition
from stream_trainer.examples import Examples, ExampleWidths, UserOp, UserOps
from stream_trainer.features import FeatureEncoder
from stream_trainer.learner import Learner, Tables
from stream_trainer.models.factory import row_layouts, running_mean_width
from stream_trainer.rehearsal import Rehearsal
from stream_trainer.store_fit import check_fits, config_json
from stream_trainer.waiting import Waiting

_MAX_ITEM_CHANGES = 4096
_CHUNK = 512
_TABLE_SHARES = {"item": 0.45, "user": 0.45, "value": 0.1}


class TrainerState:
    """The parts of the one commit. Attributes are the live objects; `commit` makes them durable together."""

    def __init__(self, config: Configuration, store: Store) -> None:
        """Load what the store holds, or start afresh in an empty one.

        Raises:
            StoreMismatchError: the store was made with settings that these cannot continue.
        """
        self.config = config
        self._store = store
        self._meta = dict(store.items("meta"))
        check_fits(config, self._meta.get(b"config"))
        self.item_numbers = Numbering(store.items("item_number"))
        self.value_numbers = Numbering(store.items("value_number"))
        self.corpus = Corpus(store.items("corpus"))
        self.item_changes = ItemChanges(self._meta.get(KEY))
        self._join_changes: list[bytes] = []
        self.num_join_bytes = 0
        """How much changed in the join since the last commit."""
        features = config.features
        self.item_features = FeatureEncoder(
            features.item_categorical, features.item_numeric, self.value_numbers
        )
        self.user_features = FeatureEncoder(
            features.user_categorical, features.user_numeric, self.value_numbers
        )
        progress = _unpack(self._meta.get(b"progress")) or {}
        self.num_positives: int = progress.get("num_positives", 0)
        self.num_steps: int = progress.get("num_steps", 0)
        self.watermark_ms: int = progress.get("watermark_ms", 0)
        self.latest_click_ms: int = progress.get("latest_click_ms", 0)
        self.widths = ExampleWidths(
            history=config.model.history_length,
            augmented=running_mean_width(config.model),
            values=self.user_features.num_values,
            numbers=self.user_features.num_numbers,
            shown=config.learning.shown_negatives,
        )
        num_rehearsal_added = progress.get("num_rehearsal_added", 0)
        # What is kept goes on while nothing is rehearsed: deleted users must leave it.
        keeps = config.learning.rehearsal_ratio or num_rehearsal_added
        self.rehearsal = Rehearsal(
            config.learning.rehearsal_capacity if keeps else 0,
            self.widths,
            num_rehearsal_added,
            store.items("rehearsal"),
        )
        self._new_item_features: dict[int, tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]] = {}
        self.pending = UserOps(_op(fields) for fields in _unpack(self._meta.get(b"pending")) or [])
        places = [Place(*fields) for fields in _unpack(self._meta.get(b"offsets")) or []]
        self._places = {TopicPartition(place.topic, place.partition): place for place in places}
        remainder = Remainder([], Marks(self.watermark_ms, self.latest_click_ms))
        if b"unapplied" in self._meta:
            remainder = decode_remainder(self._meta[b"unapplied"])
        self.unapplied = Waiting(remainder.facts)
        self._marks = remainder.marks
        self._num_received, self._num_applied = len(self.unapplied), 0
        self._unsettled = deque([(self._num_received, self._marks)])
        self.topic_ids: dict[str, str] = _unpack(self._meta.get(b"topic_ids")) or {}
        self.tables = self._make_tables()
        self.learner = Learner(config, self.tables, self.corpus)
        dense = store.get("dense", [b"weights", b"optimiser"])
        if dense[0] is not None and dense[1] is not None:
            _load_dense(self.learner, dense[0], dense[1])

    @property
    def next_offsets(self) -> dict[TopicPartition, int]:
        """Where each partition goes on after what was received."""
        return {partition: place.next_offset for partition, place in self._places.items()}

    def position(self) -> Position:
        """Return what the input side needs to go on after the last commit; nothing was received since."""
        places = sorted(self._places.values(), key=lambda place: (place.topic, place.partition))
        return Position(places, self.topic_ids, self._marks, list(self._store.items("join")))

    def receive(self, chunk: Chunk) -> None:
        """Take over a chunk, to be applied fact by fact. From now on the whole of it is part of the commit:
        what is not applied by then goes along.
        """
        for place in chunk.places:
            self._places[TopicPartition(place.topic, place.partition)] = place
        if chunk.join_changes:
            self._join_changes.append(chunk.join_changes)
            self.num_join_bytes += len(chunk.join_changes)
        num_before = len(self.unapplied)
        self.unapplied.add(chunk.facts)
        self._marks = chunk.marks
        self._num_received += len(self.unapplied) - num_before
        if self._unsettled and not chunk.facts:
            self._unsettled.pop()
        self._unsettled.append((self._num_received, self._marks))
        self._settle()

    def take_positives(self, most: int) -> Positives:
        """Take the positives that come next, at most so many: from now on they are applied."""
        positives = self.unapplied.take_positives(most)
        self._num_applied += len(positives)
        self._settle()
        return positives

    def pop_change(self) -> None:
        """Regard the change that comes next as applied."""
        self.unapplied.pop_change()
        self._num_applied += 1
        self._settle()

    def _settle(self) -> None:
        """Take over the marks of the chunks whose facts are all applied."""
        while self._unsettled and self._unsettled[0][0] <= self._num_applied:
            _, marks = self._unsettled.popleft()
            self.watermark_ms, self.latest_click_ms, _ = msgspec.structs.astuple(marks)

    def foresee_histories(self, examples: Examples) -> None:
        """Fill in the histories of examples that are yet to come, as far as their users' rows are at hand."""
        users, at_hand = self.tables.user, partial(self._store.peek, self.tables.user.name)
        examples.records["history"] = users.peek(examples.users, "history", at_hand)

    def read_ahead(self, examples: Examples, users_after: list[str]) -> None:
        """Let the store read the rows that these examples will need, and those of users whose examples come
        after them. To be called when all rows of the step before are in memory: what else is read waits for
        these.
        """
        items, users = self.tables.item, self.tables.user
        keys = {
            items.name: items.absent(self.learner.candidates(examples).numbers_I),
            users.name: users.absent(list(dict.fromkeys([*examples.users, *users_after]))),
        }
        if any(keys.values()):  # for nothing a commit would be handed over at once
            self._store.read_ahead(keys)

    @property
    def last_commit(self) -> CommitInfo:
        """The last commit that was begun."""
        return self._store.last_commit

    def set_item_features(self, number: int, features: Mapping[str, FeatureValue]) -> None:
        """Let an item have these features from the next batch on. Kept aside so that rows are touched by the
        batch.
        """
        self._new_item_features[number] = self.item_features.encode(features)

    @property
    def has_many_item_changes(self) -> bool:
        """Whether so many items wait for new features that those are to be written before the next batch: a
        commit writes them, too, and must find room for their rows.
        """
        return len(self._new_item_features) >= min(_MAX_ITEM_CHANGES, self.tables.item.capacity // 8)

    def flush_item_features(self) -> None:
        """Write the item features set since the last batch into their rows."""
        changes, self._new_item_features = self._new_item_features, {}
        numbers = np.fromiter(changes, np.int64, len(changes))
        for start in range(0, len(numbers), _CHUNK):
            self.tables.item.begin_batch()
            chunk = numbers[start : start + _CHUNK]
            slots = self.tables.item.slots(chunk)
            values = np.stack([changes[number][0] for number in chunk.tolist()])
            floats = np.stack([changes[number][1] for number in chunk.tolist()])
            self.tables.item.write(slots, {"values": values, "numbers": floats})

    def commit(self) -> int:
        """Hand everything that changed since the last commit to the store, to be made durable as a whole;
        return the number of rows.
        """
        self._store.is_durable(wait=True)  # the rows of the commit before leave their tables first
        self.flush_item_features()
        num_rows = sum(table.num_dirty for table in self.tables)
        rows = {name: table.take_dirty() for name, table in self.tables._asdict().items()}
        join_changes = EncodedChanges(self._join_changes)
        self._join_changes, self.num_join_bytes = [], 0
        writes: Writes = {
            "item_number": self.item_numbers.take_changes(),
            "value_number": self.value_numbers.take_changes(),
            "corpus": self.corpus.take_changes(),
            "join": join_changes,
            "rehearsal": self.rehearsal.take_changes(),
            "dense": _dump_dense(self.learner),
            "meta": self._meta_changes(),
        }
        self._store.commit(writes, self.watermark_ms, self.latest_click_ms, rows)
        return num_rows

    def _make_tables(self) -> Tables:
        config, store = self.config, self._store
        layouts = row_layouts(config.model, config.features, config.learning.rows_optimiser)
        budget = config.store.row_memory_mib << 20

        def table(name: str, numbering: Numbering | None) -> RowTable:
            layout = layouts[name]
            capacity = max(1024, int(budget * _TABLE_SHARES[name]) // (4 * max(layout.width, 1)))
            index = IdIndex(capacity) if numbering is None else NumberIndex(capacity, numbering.keys)
            return RowTable(
                name, layout, index, lambda keys: store.get(name, keys), capacity, config.learning.seed
            )

        return Tables(
            table("item", self.item_numbers), table("user", None), table("value", self.value_numbers)
        )

    def _meta_changes(self) -> list[tuple[bytes, bytes]]:
        offsets = [list(msgspec.structs.astuple(self._places[name])) for name in sorted(self._places)]
        progress = {
            "num_positives": self.num_positives,
            "num_steps": self.num_steps,
            "num_rehearsal_added": self.rehearsal.num_added,
            "watermark_ms": self.watermark_ms,
            "latest_click_ms": self.latest_click_ms,
        }
        now = {
            b"offsets": msgpack.packb(offsets),
            b"pending": msgpack.packb([msgspec.structs.astuple(op) for op in self.pending]),
            b"progress": msgpack.packb(progress),
            b"unapplied": msgspec.msgpack.encode(Remainder(self.unapplied.rest(), self._marks)),
            b"topic_ids": msgpack.packb(dict(sorted(self.topic_ids.items()))),
            b"config": config_json(self.config),
            KEY: self.item_changes.encode(),
        }
        changed = [(key, value) for key, value in now.items() if self._meta.get(key) != value]
        self._meta.update(now)
        return changed


def _dump_dense(learner: Learner) -> list[tuple[bytes, bytes]]:
    weights = {name: tensor.contiguous() for name, tensor in learner.model.state_dict().items()}
    moments = {
        f"{index}.{name}": tensor.contiguous()
        for index, slots in learner.optimiser.state.items()
        for name, tensor in slots.items()
    }
    return [(b"weights", safetensors.torch.save(weights)), (b"optimiser", safetensors.torch.save(moments))]


def _load_dense(learner: Learner, weights: bytes, optimiser: bytes) -> None:
    learner.model.load_state_dict(safetensors.torch.load(weights))
    for name, tensor in safetensors.torch.load(optimiser).items():
        index, slot = name.split(".")
        learner.optimiser.state.setdefault(int(index), {})[slot] = tensor


def _unpack(value: bytes | None) -> Any:
    return None if value is None else msgpack.unpackb(value)


def _op(fields: list[Any]) -> UserOp:
    user_id, item, partition, offset, shown, features = fields
    pair = None if features is None else (tuple(features[0]), tuple(features[1]))
    return UserOp(user_id, item, partition, offset, tuple(shown), pair)
