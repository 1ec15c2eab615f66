"""Training in batch epochs: the stream's own learner, over all of the past at once, again and again.

Owns the order of examples and the rebuilding of what a stream would have kept: augmented vectors as they were
before each example, under today's towers. The examples are folded once, so each holds what was known of its
user at its time. Never reads a log or joins. Legend: E examples in order of time, N items, D output width.
"""

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field

from feature_store.configuration import Configuration
from feature_store.errors import SettingsError
from feature_store.schema import Click, ItemFeatures, UserFeatures
from feature_store.store import FeatureStore
from simulators.dataset import Dataset
from simulators.timeline import timeline
from stream_trainer import running_mean
from stream_trainer.examples import Examples, Records, UserOp, UserOps, fold_users
from stream_trainer.models import frequency
from stream_trainer.state import TrainerState

OnEpoch = Callable[[int], None]
F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
_CHUNK = 8192


class EpochSettings(BaseModel):
    """How often all of the past is learned, and in which order.

    In order of time a batch holds what happened at about the same time. Where tastes drift that finds more of
    what comes next; where the answers are from all times, as in leave-last-out, it finds less.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    count: int = Field(12, ge=1)
    in_order: bool = Field(False, description="of time; else shuffled, each epoch differently")


class Past(NamedTuple):
    """Examples in order of time: users as numbers into `user_ids`, and records (E,)."""

    user_ids: list[str]
    users: I64
    records: Records


def train_epochs(
    config: Configuration,
    train: Dataset,
    seed: int,
    epochs: EpochSettings,
    on_epoch: OnEpoch | None = None,
) -> None:
    """Learn a data set in epochs, and commit the outcome to the configured store.

    `seed` is of the shuffles; rows, weights and draws are those of `learning.seed`. `on_epoch` hears how many
    epochs are done, each time after a commit, so that it may read the store; 0 is before the first. Item
    frequencies are counted once, as if the stream had passed once.

    Raises:
        SettingsError: the settings ask for what only a stream has: negatives that were shown.
    """
    if config.learning.shown_negatives:
        raise SettingsError("learning.shown_negatives needs slates, which batch epochs do not see; set it 0")
    store = FeatureStore(config.store.path)
    try:
        state = TrainerState(config, store)
        past = fold_past(state, train, seed)
        _count_frequencies(state, past.records["item"])
        rebuild_means(state, past)
        for epoch in range(epochs.count + 1):
            if epoch:
                order = np.arange(len(past.users))
                if not epochs.in_order:
                    np.random.default_rng([seed, epoch]).shuffle(order)
                _learn_epoch(state, past, order, epoch)
                rebuild_means(state, past)
            if on_epoch is not None or epoch == epochs.count:
                state.commit()
            if on_epoch is not None:
                on_epoch(epoch)
    finally:
        store.close()


def fold_past(state: TrainerState, train: Dataset, seed: int) -> Past:
    """Put the catalogue into an empty state, and fold the clicks and users' upserts into examples.

    The events are those of the stream (`timeline` with this seed), less the impressions: the join would give
    the same positives. Afterwards the users' rows hold what is known at the end.
    """
    number_of: dict[str, int] = {}
    numbers: list[int] = []
    parts: list[Records] = []
    for ops in _chunks(_operations(state, train, seed)):
        _begin_batch(state)
        examples = fold_users(state.tables.user, ops, state.widths)
        numbers += [number_of.setdefault(user, len(number_of)) for user in examples.users]
        parts.append(examples.records)
    state.flush_item_features()
    state.num_positives = len(numbers)
    return Past(list(number_of), np.array(numbers, np.int64), np.concatenate(parts))


class PrefixMeans(NamedTuple):
    """Means over some users' examples: n examples, m users. Legend as the module's."""

    places: I64
    """(n,) which examples."""
    before: F32
    """(n, D) the mean over the same user's earlier examples, zero if there are none."""
    of_user: I64
    """(m,) where in `places` each user begins."""
    after: F32
    """(m, D) the mean over all of that user's examples."""


def prefix_means(
    users_E: I64, values_of: Callable[[I64], F32], memory: float, block: int = 1 << 16
) -> Iterator[PrefixMeans]:
    """Yield running means (`running_mean.advance`) over the values that each user's examples have, `block`
    examples at once or one user.

    `users_E` is in order of time; `values_of` gives the values (n, D) of places (n,).

    >>> values = np.array([[2.0], [7.0], [4.0], [6.0]], np.float32)
    >>> (means,) = prefix_means(np.array([0, 1, 0, 0]), lambda places: values[places], 1e9)
    >>> means.places.tolist(), means.before.ravel().tolist(), means.after.ravel().tolist()
    ([0, 2, 3, 1], [0.0, 2.0, 3.0, 0.0], [4.0, 7.0])
    """
    order = np.argsort(users_E, kind="stable")
    sorted_E = users_E[order]
    starts = np.flatnonzero(np.r_[True, sorted_E[1:] != sorted_E[:-1]])
    ends = np.r_[starts[1:], len(order)]
    first = 0
    while first < len(starts):
        last = max(first + 1, int(np.searchsorted(ends, starts[first] + block, side="right")))
        places = order[starts[first] : ends[last - 1]]
        lengths = ends[first:last] - starts[first:last]
        begins = np.cumsum(lengths) - lengths
        yield PrefixMeans(places, *_running(values_of(places), begins, lengths, memory))
        first = last


def _running(values_nD: F32, begins_m: I64, lengths_m: I64, memory: float) -> tuple[F32, I64, F32]:
    """Return the last three fields of PrefixMeans: the n-th values of all users at once, then the next."""
    before_nD = np.zeros_like(values_nD)
    mean_mD = np.zeros((len(begins_m), values_nD.shape[1]), np.float32)
    by_length = np.argsort(-lengths_m, kind="stable")
    for count in range(int(lengths_m.max())):
        alive = by_length[: np.searchsorted(-lengths_m[by_length], -count)]
        now = begins_m[alive] + count
        before_nD[now] = mean_mD[alive]
        one = np.ones((len(alive), 1), np.float32)
        mean_mD[alive] = running_mean.advance(mean_mD[alive], count * one, values_nD[now], one, memory)
    return before_nD, begins_m, mean_mD


def rebuild_means(state: TrainerState, past: Past) -> None:
    """Set each example's running mean to that of its user's earlier positives, and each user's to all of
    them: under the towers as they are now, as the minimiser of loss_u. Nothing where there are no such means.
    """
    if not state.widths.augmented:
        return
    numbers = np.arange(len(state.item_numbers))
    embeddings_ND = np.concatenate([_embed(state, chunk) for chunk in _split(numbers)])
    items_E, counts = past.records["item"], np.bincount(past.users).astype(np.float32)
    table = state.tables.user
    memory = state.config.model.augmented_memory
    for means in prefix_means(past.users, lambda places: embeddings_ND[items_E[places]], memory):
        past.records["augmented"][means.places] = means.before
        for chunk in _split(np.arange(len(means.of_user))):
            _begin_batch(state)
            users = past.users[means.places[means.of_user[chunk]]]
            slots = table.slots([past.user_ids[user] for user in users.tolist()])
            table.write(slots, {"mean": means.after[chunk], "mean_count": counts[users][:, None]})


def _embed(state: TrainerState, numbers: I64) -> F32:
    _begin_batch(state)
    embedded: F32 = state.learner.embed_items(numbers).numpy()
    return embedded


def _learn_epoch(state: TrainerState, past: Past, order: I64, epoch: int) -> None:
    size = state.config.learning.batch_size
    for start in range(0, len(order), size):
        _begin_batch(state)
        places = order[start : start + size]
        records = past.records[places]
        records["partition"] = epoch  # draws are hashes of partition and offset: each epoch has its own
        users = [past.user_ids[user] for user in past.users[places].tolist()]
        state.learner.step(Examples(users, records), 0, state.num_positives)
        state.num_steps += 1


def _begin_batch(state: TrainerState) -> None:
    if any(table.needs_commit for table in state.tables):
        state.commit()
    for table in state.tables:
        table.begin_batch()


def _count_frequencies(state: TrainerState, items_E: I64) -> None:
    """Write each item's decayed count as it stands after one pass (`stream_trainer/models/frequency.py`)."""
    now = len(items_E)
    half_life = state.config.learning.frequency_half_life
    learned_at_E = np.arange(1, now + 1, dtype=np.int32)
    weights_E = frequency.decayed(np.ones(now, np.float32), learned_at_E, now, half_life)
    counts_N = np.bincount(items_E, weights=weights_E).astype(np.float32)
    numbers = np.flatnonzero(counts_N)
    for chunk in _split(numbers):
        _begin_batch(state)
        at = np.full((len(chunk), 1), frequency.stamp(now))
        slots = state.tables.item.slots(chunk)
        state.tables.item.write(slots, {"frequency": counts_N[chunk][:, None], "frequency_at": at})


def _operations(state: TrainerState, train: Dataset, seed: int) -> Iterator[UserOp]:
    """Take in the items of the stream, and yield what happens to users."""
    knows_users = bool(state.user_features.num_values or state.user_features.num_numbers)
    number_of = cache(state.item_numbers.number)
    for offset, (_, event) in enumerate(timeline(train, seed)):
        if isinstance(event, ItemFeatures):
            number = number_of(event.id)
            state.corpus.add(number)
            state.set_item_features(number, event.features)
            if state.has_many_item_changes:
                _begin_batch(state)
                state.flush_item_features()
        elif isinstance(event, Click):
            yield UserOp(event.user_id, number_of(event.item_id), 0, offset)
        elif isinstance(event, UserFeatures) and knows_users:
            values, numbers = state.user_features.encode(event.features)
            yield UserOp(event.id, features=(tuple(values.tolist()), tuple(numbers.tolist())))


def _split(places: I64) -> list[I64]:
    """Cut into so few that their rows fit into memory at once."""
    return [places[start : start + _CHUNK] for start in range(0, len(places), _CHUNK)]


def _chunks(ops: Iterator[UserOp]) -> Iterator[UserOps]:
    while len(chunk := UserOps(islice(ops, _CHUNK))):
        yield chunk
