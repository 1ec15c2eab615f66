"""Offline evaluation: replay, learn, and rank what each user did next over the whole corpus.

Owns the protocol. Items that a user has in training are left out; equal scores share the middle rank; queries
are made as the server makes them, from the committed store. Legend: Q queries, N items, D embedding width.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from feature_store.configuration import Configuration
from feature_store.errors import DataError
from feature_store.store import FeatureStore, FeatureStoreReader
from index_refresher.embed import EmbeddedCorpus, QueryEmbedder, embed_corpus
from simulators.dataset import Dataset, Reviews, TimeSplit, leave_last_out, split_by_time
from simulators.metrics import hit_rate, middle_ranks, mrr, ndcg
from simulators.replay import create_topics, replay
from simulators.timeline import num_events, timeline
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.open_log import open_log
from stream_trainer.trainer import Summary, Trainer

_BLOCK = 512
Scorer = Callable[[Sequence[int]], npt.NDArray[np.float32]]
Progress = Callable[[int, int], None]


class Held(NamedTuple):
    """What is learned from and what is to be found."""

    train: Dataset
    test: Dataset


def hold_out(dataset: Dataset, train_end_ms: int | None, test_start_ms: int | None) -> Held:
    """Split by each user's last review, or by the two times if they are given.

    Raises:
        DataError: only one time is given, or a part is empty.
    """
    if (train_end_ms is None) != (test_start_ms is None):
        raise DataError("a split by time needs both --train-end-ms and --test-start-ms")
    if train_end_ms is None or test_start_ms is None:
        return Held(*leave_last_out(dataset))
    split: TimeSplit = split_by_time(dataset, train_end_ms, test_start_ms)
    return Held(split.train, split.test)


def feature_overrides(dataset: Dataset) -> list[str]:
    """Return the settings that make the model see what the data set's items have."""
    metas = list(dataset.items.values())
    categorical = {
        name: 1 for name in ("category", "brand") if any(getattr(m, name) is not None for m in metas)
    }
    numeric = [
        name for name in ("price", "average_rating") if any(getattr(m, name) is not None for m in metas)
    ]
    table = ", ".join(f"{name} = {count}" for name, count in categorical.items())
    overrides = [f"features.item_categorical={{ {table} }}", f"features.item_numeric={numeric}"]
    return overrides if "category" in categorical else [*overrides, "features.category="]


def replay_into_log(config: Configuration, train: Dataset, seed: int, show_progress: bool) -> int:
    """Write the training reviews as events to the configured log; return the number of events."""
    event_log = open_log(config.log)
    create_topics(event_log, config.topics)
    writer = event_log.writer()
    try:
        counts = replay(
            timeline(train, seed),
            writer,
            config.topics,
            num_events=num_events(train),
            show_progress=show_progress,
        )
        return sum(counts.values())
    finally:
        writer.close()
        event_log.close()


def learn(config: Configuration, on_progress: Progress) -> Summary:
    """Run the trainer over the configured log to its end, committing to the configured store."""
    event_log = open_log(config.log)
    store = FeatureStore(config.store.path)
    metrics = TrainerMetrics(CollectorRegistry())
    trainer = Trainer(config, event_log, store, metrics, until_end=True, on_progress=on_progress)
    try:
        return trainer.run(threading.Event())
    finally:
        trainer.close()
        store.close()
        event_log.close()


def evaluate_store(store: Path, held: Held, seed: int) -> dict[str, dict[str, float]]:
    """Rank the held-out items by the committed model, by popularity in training and at random.

    Returns for each of `dat`, `popularity`, `random`: hr@10, hr@50, hr@100, mrr10 (MRR × 10), ndcg@10, and
    recall@10 and recall@50 (the mean over users, which differs where a user has several held-out items).
    """
    reader = FeatureStoreReader(store)
    try:
        reader.catch_up()
        corpus = embed_corpus(reader)
        embedder = QueryEmbedder(corpus.towers, corpus.model, reader)
        user_ids = held.test.reviews.user_ids

        def model(users: Sequence[int]) -> npt.NDArray[np.float32]:
            queries_QD = embedder.embed([user_ids[user] for user in users]).embeddings_QD
            return queries_QD @ corpus.embeddings_ND.T

        place = _places(corpus, held.test.reviews)
        counts_N = np.zeros(len(corpus.item_ids), np.float32)
        np.add.at(counts_N, place[held.train.reviews.items], 1)
        rng = np.random.default_rng(seed)
        scorers: dict[str, Scorer] = {
            "dat": model,
            "popularity": lambda users: np.tile(counts_N, (len(users), 1)),
            "random": lambda users: rng.random((len(users), len(counts_N)), np.float32),
        }
        return {name: _figures(held, place, scorer) for name, scorer in scorers.items()}
    finally:
        reader.close()


def _places(corpus: EmbeddedCorpus, reviews: Reviews) -> npt.NDArray[np.int64]:
    """Return where each of the data set's items stands in the corpus."""
    place_of = {item_id: place for place, item_id in enumerate(corpus.item_ids)}
    missing = [item_id for item_id in reviews.item_ids if item_id not in place_of]
    if missing:
        raise DataError(
            f"{len(missing)} items of the data are not in the corpus, the first is '{missing[0]}'"
        )
    return np.array([place_of[item_id] for item_id in reviews.item_ids], np.int64)


def _figures(held: Held, place: npt.NDArray[np.int64], scorer: Scorer) -> dict[str, float]:
    test = held.test.reviews
    owned = _items_of(held.train.reviews, place)
    ranks_parts = []
    for start in range(0, len(test), _BLOCK):
        users = test.users[start : start + _BLOCK].tolist()
        targets = place[test.items[start : start + _BLOCK]]
        ranks_parts.append(middle_ranks(scorer(users), targets, [owned.get(user, []) for user in users]))
    ranks = np.concatenate(ranks_parts)
    figures = {f"hr@{k}": hit_rate(ranks, k) for k in (10, 50, 100)}
    per_user = np.bincount(test.users)
    for k in (10, 50):
        hits = np.bincount(test.users, weights=ranks <= k)
        figures[f"recall@{k}"] = float((hits[per_user > 0] / per_user[per_user > 0]).mean())
    return {**figures, "mrr10": 10 * mrr(ranks), "ndcg@10": ndcg(ranks, 10)}


def _items_of(reviews: Reviews, place: npt.NDArray[np.int64]) -> dict[int, npt.NDArray[np.int64]]:
    order = np.argsort(reviews.users, kind="stable")
    users, starts = np.unique(reviews.users[order], return_index=True)
    return dict(zip(users.tolist(), np.split(place[reviews.items[order]], starts[1:]), strict=True))


def report(held: Held, figures: dict[str, dict[str, float]], summary: Summary, seed: int) -> dict[str, Any]:
    """Return what `--json` writes: data, seed, figures and how learning went."""
    return {
        "data": held.train.name,
        "seed": seed,
        "num_train": len(held.train.reviews),
        "num_test": len(held.test.reviews),
        "num_items": len(held.train.items),
        "figures": figures,
        "prequential": [list(point) for point in summary.prequential],
        "seconds": summary.seconds,
        "num_commits": summary.num_commits,
    }
