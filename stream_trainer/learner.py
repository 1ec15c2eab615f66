"""One learning step: examples in, rows and weights moved.

Owns the order of a step: gather every row once, score, back-propagate, put every row back once. Never polls,
joins or commits. Legend: B examples (new first, then rehearsed), N new ones, I distinct items, T items in the
tower, D output width.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_store.configuration import Configuration
from feature_store.hashing import Purpose, event_keys
from feature_store.rows import RowTable
from stream_trainer import running_mean
from stream_trainer.candidates import Candidates, lay_out, score
from stream_trainer.corpus import Corpus
from stream_trainer.examples import Examples
from stream_trainer.gathered import GatheredRows, GatheredValues, item_inputs
from stream_trainer.models import frequency
from stream_trainer.models.dense_adam import DenseAdam
from stream_trainer.models.dropout import Draws
from stream_trainer.models.factory import make_model, running_mean_width
from stream_trainer.models.loops import pick_rows
from stream_trainer.models.retrieval import History, Scored, UserInputs
from stream_trainer.models.tower import Tower
from stream_trainer.models.weight_gradients import WeightGradients
from stream_trainer.negatives import own_negatives, shared_negatives

# oneDNN compiles a product in bfloat16 for each number of rows it meets, and keeps 1,024 of them unless told
# otherwise: up to 3 GiB that are hardly ever used again. Read at the first product of a process.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class Tables(NamedTuple):
    """The three tables of rows."""

    item: RowTable
    user: RowTable
    value: RowTable


class Learner:
    """Holds the model and its optimiser over the tables of rows."""

    def __init__(self, config: Configuration, tables: Tables, corpus: Corpus) -> None:
        torch.set_num_threads(config.learning.num_threads)
        torch.manual_seed(config.learning.seed)
        self.config = config
        self.tables = tables
        self.corpus = corpus
        self.model = make_model(config.model, config.features)
        self.optimiser = DenseAdam(self.model.parameters(), config.learning.dense_learning_rate)
        self._beside = WeightGradients() if config.learning.gradient_thread else None
        for module in self.model.modules():
            if isinstance(module, Tower) and self._beside is not None:
                module.beside = self._beside.add
        self._running_mean = running_mean_width(config.model) > 0
        self._item_counts = list(config.features.item_categorical.values())
        self._user_counts = list(config.features.user_categorical.values())
        names = list(config.features.item_categorical)
        category = names.index(config.features.category) if config.features.category else -1
        self._category_column = sum(self._item_counts[:category]) if category >= 0 else -1

    def candidates(self, examples: Examples) -> Candidates:
        """Return which items examples are scored against, and those of their histories."""
        return lay_out(
            examples.records["item"],
            self._own_negatives(examples),
            self._shared_negatives(examples),
            examples.records["history"],
        )

    def step(
        self,
        examples: Examples,
        num_new: int,
        num_positives: int,
        on_gathered: Callable[[], None] = lambda: None,
    ) -> dict[str, Tensor]:
        """Learn B examples, the first `num_new` of them for the first time; return the parts of the loss.

        `num_positives` were learned before this step: the clock of the frequency estimate. `on_gathered` is
        called once all rows of the step are in memory.
        """
        records, candidates = examples.records, self.candidates(examples)
        items = GatheredRows(self.tables.item, self.tables.item.slots(candidates.numbers_I), learn=True)
        user_rows, place_B = self._gather_users(examples)
        item_values = items.ints("values")[: candidates.num_tower]
        values = GatheredValues(self.tables.value, item_values, _tensor(records["values"]), learn=True)
        key = event_keys(
            self.config.learning.seed, Purpose.DROPOUT, records["partition"][:1], records["offset"][:1]
        )
        draws = Draws(int(key[0]))
        inputs = item_inputs(items, candidates.num_tower, values.items(self._item_counts))
        user_inputs = self._user_inputs(examples, candidates, items, user_rows, place_B, values)
        on_gathered()
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.learning.precision == "bfloat16"):
            items_TD = self.model.embed_items(inputs, draws)
            users = self.model.embed_users(user_inputs, draws)
        users_BD = self.model.loss_queries(users, items_TD, candidates.positive_B)
        scored = self._score(candidates, items, users_BD, items_TD, num_positives, item_values)
        augmented_IA = items.learned_or_none("augmented")
        scored = scored._replace(
            user_augmented_BA=None if self._running_mean else user_inputs.augmented_BA,
            item_augmented_BA=None if augmented_IA is None else pick_rows(augmented_IA, scored.positive_B),
        )
        parts = self.model.losses(scored)
        self.optimiser.zero_grad()
        torch.autograd.backward(list(parts.values()))  # of their sum
        for gathered in (items, user_rows, values.rows):
            if gathered is not None:
                gathered.learn(self.config.learning.rows_learning_rate)
        self._count(records["item"][:num_new], num_positives)
        if self._beside is not None:
            self._beside.wait()
        self.optimiser.step()
        self.advance_means(examples, num_new)
        return {name: part.detach() for name, part in parts.items()}

    def advance_means(self, examples: Examples, num_new: int) -> None:
        """Bring a_u up to date with the first `num_new` positives: the running mean of stopped p_v that
        minimises loss_u (`running_mean.advance`). Nothing where a_u is learned, or is not.
        """
        if not self._running_mean or not num_new:
            return
        table = self.tables.user
        embedding = self.embed_items(examples.records["item"][:num_new]).numpy()
        slots, user = np.unique(examples.first(num_new).find(table), return_inverse=True)
        sums = np.zeros((len(slots), embedding.shape[1]), np.float32)
        np.add.at(sums, user, embedding)
        added = np.bincount(user).astype(np.float32)[:, None]
        count = table.floats(slots, "mean_count")
        memory = self.config.model.augmented_memory
        mean = running_mean.advance(table.floats(slots, "mean"), count, sums, added, memory)
        table.write(slots, {"mean": mean, "mean_count": count + added})

    def embed_items(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        """Return item embeddings as they would be served now, no gradient: (n, D)."""
        with torch.no_grad():
            rows = GatheredRows(self.tables.item, self.tables.item.slots(numbers), learn=False)
            values = GatheredValues(
                self.tables.value, rows.ints("values"), torch.zeros((0, 0), dtype=torch.int32), learn=False
            )
            inputs = item_inputs(rows, len(numbers), values.items(self._item_counts))
            return self.model.embed_items(inputs)

    def embed_examples(self, examples: Examples) -> Tensor:
        """Return the query embeddings of examples as they would be served now, no gradient: (B, D), or
        (B, I, D) of a model with several interests.
        """
        none = np.zeros(0, np.int64)
        with torch.no_grad():
            candidates = lay_out(
                examples.records["item"], none.reshape(len(examples), 0), none, examples.records["history"]
            )
            items = GatheredRows(self.tables.item, self.tables.item.slots(candidates.numbers_I), learn=False)
            users, place_B = self._gather_users(examples)
            values = GatheredValues(
                self.tables.value,
                torch.zeros((0, 0), dtype=torch.int32),
                _tensor(examples.records["values"]),
                learn=False,
            )
            return self.model.embed_users(
                self._user_inputs(examples, candidates, items, users, place_B, values)
            )

    def _own_negatives(self, examples: Examples) -> npt.NDArray[np.int64]:
        settings, records = self.config.learning, examples.records
        drawn = own_negatives(
            settings.seed,
            self.corpus,
            records["partition"],
            records["offset"],
            settings.negatives_per_positive,
        )
        return np.concatenate([drawn, records["shown"]], axis=1)

    def _shared_negatives(self, examples: Examples) -> npt.NDArray[np.int64]:
        settings, first = self.config.learning, examples.records[0]
        return shared_negatives(
            settings.seed,
            self.corpus,
            int(first["partition"]),
            int(first["offset"]),
            settings.shared_negatives,
        )

    def _gather_users(self, examples: Examples) -> tuple[GatheredRows | None, Tensor | None]:
        table = self.tables.user
        if not table.layout.num_learned:
            return None, None
        slots, place_B = np.unique(examples.find(table), return_inverse=True)
        return GatheredRows(table, slots, learn=True), torch.from_numpy(place_B)

    def _user_inputs(
        self,
        examples: Examples,
        candidates: Candidates,
        items: GatheredRows,
        users: GatheredRows | None,
        place_B: Tensor | None,
        values: GatheredValues,
    ) -> UserInputs:
        def pick(name: str) -> Tensor | None:
            field = None if users is None else users.learned_or_none(name)
            return None if field is None or place_B is None else pick_rows(field, place_B)

        records, history = examples.records, History(items.learned("embedding"), candidates.history_BL)
        return UserInputs(
            pick("embedding"),
            history if self.config.model.history_length else None,
            _tensor(records["augmented"]) if self._running_mean else pick("augmented"),
            values.users(self._user_counts),
            _tensor(records["numbers"]),
        )

    def _score(
        self,
        candidates: Candidates,
        items: GatheredRows,
        users_BD: Tensor,
        items_TD: Tensor,
        num_positives: int,
        values_TC: Tensor,
    ) -> Scored:
        learning, model = self.config.learning, self.config.model
        log_expected_T = None
        is_drawn = learning.negatives_per_positive + learning.shared_negatives + learning.in_batch_negatives
        if model.logq and is_drawn:
            log_expected_T = self._log_expected(items, candidates, num_positives, len(users_BD))
        logits_BJ = score(
            candidates, users_BD / model.temperature, items_TD, learning.in_batch_negatives, log_expected_T
        )
        category = values_TC[:, self._category_column].long() if self._category_column >= 0 else None
        num_pairs = len(users_BD) * (1 + candidates.own_BX.shape[1])
        return Scored(logits_BJ, users_BD, items_TD, candidates.positive_B, None, None, category, num_pairs)

    def _log_expected(
        self, items: GatheredRows, candidates: Candidates, num_positives: int, num_queries: int
    ) -> Tensor:
        """Return the logarithm of each item's expected count among a batch's candidates (T,), over all the
        ways to be drawn: (uniform draws) / corpus size + (in-batch queries) × its probability of being a
        positive (Yang et al., WWW 2020).
        """
        learning = self.config.learning
        half_life = learning.frequency_half_life
        count_I = frequency.decayed(
            items.floats("frequency")[:, 0].numpy(),
            items.ints("frequency_at")[:, 0].numpy(),
            num_positives,
            half_life,
        )
        total = frequency.total_count(num_positives, half_life)
        probability_I = frequency.probability(count_I, total, len(self.corpus))
        uniform = learning.negatives_per_positive + learning.shared_negatives
        expected_I = (
            uniform / max(len(self.corpus), 1) + learning.in_batch_negatives * num_queries * probability_I
        )
        log_expected = torch.from_numpy(np.log(expected_I).astype(np.float32))
        return log_expected[: candidates.num_tower]

    def _count(self, new_items_N: npt.NDArray[np.int64], num_positives: int) -> None:
        numbers, counts_n = np.unique(new_items_N, return_counts=True)
        table, now = self.tables.item, num_positives + len(new_items_N)
        slots = table.slots(numbers)
        count_n, at_n = table.floats(slots, "frequency")[:, 0], table.ints(slots, "frequency_at")[:, 0]
        fresh_n = frequency.decayed(count_n, at_n, now, self.config.learning.frequency_half_life) + counts_n
        at_n1 = np.full((len(slots), 1), frequency.stamp(now))
        table.write(slots, {"frequency": fresh_n.astype(np.float32)[:, None], "frequency_at": at_n1})


def _tensor(column: npt.NDArray[np.generic]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(column))
