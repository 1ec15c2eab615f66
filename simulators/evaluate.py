"""Offline evaluation: replay, learn, and rank what each user did next over the whole corpus.

Owns the protocol. Items that a user has in training are left out; equal scores share the middle rank; queries
are made as the server makes them, from the committed store. Legend: Q queries, N items, U users, K places.
"""

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry

from feature_store.configuration import Configuration
from feature_store.errors import DataError
from feature_store.store_process import open_store
from feature_store.store_reader import FeatureStoreReader
from index_refresher.embed import EmbeddedCorpus, QueryEmbedder, embed_corpus
from index_refresher.names import StoreNames
from simulators.baselines import F32, Scorer, popularity_scorer, random_scorer
from simulators.dataset import Dataset, Reviews, TimeSplit, leave_last_out, split_by_time
from simulators.metrics import Ranks, hit_rate, middle_ranks, mrr, ndcg
from simulators.replay import replay
from simulators.timeline import num_events, timeline
from simulators.variety import LISTS, PLACES, Variety, top_items, variety
from stream_trainer.feed_process import open_feed
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.models.retrieval import best_scores
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics
from stream_trainer.trainer import Summary, Trainer

Places = npt.NDArray[np.int64]
_SCORES_AT_ONCE = 1 << 23  # 32 MiB of float32, and about as much again while they are compared
Progress = Callable[[int, int], None]


class Held(NamedTuple):
    """What is learned from and what is to be found."""

    train: Dataset
    test: Dataset


class Ranked(NamedTuple):
    """How what was held out is ranked (Q,), in the order of `held.test.reviews`; how alike lists are."""

    ranks: Ranks
    variety: Variety


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
    metrics = TrainerMetrics(CollectorRegistry())
    with closing(open_store(config.store)) as store, closing(open_feed(config, until_end=True)) as feed:
        return Trainer(config, feed, store, metrics, on_progress=on_progress).run(threading.Event())


def evaluate_store(store: Path, held: Held, seed: int) -> dict[str, dict[str, float]]:
    """Rank the held-out items by the committed model, by popularity in training and at random.

    Returns of each, `dat`, `popularity` and `random`, `figures_of`, and `coverage@50` and `overlap@50`
    (`Variety`) if there are lists to tell them of.
    """
    ranked = {
        "dat": rank_by_store(store, held),
        "popularity": rank_by_scorer(held, popularity_scorer(held.train)),
        "random": rank_by_scorer(held, random_scorer(held.train, seed)),
    }
    return {
        name: {
            **figures_of(each.ranks, held),
            **{
                f"{figure}@{PLACES}": value
                for figure, value in each.variety._asdict().items()
                if not math.isnan(value)  # JSON has no NaN
            },
        }
        for name, each in ranked.items()
    }


def rank_by_store(store: Path, held: Held) -> Ranked:
    """Rank by the model committed to a store, with corpus and queries embedded as for serving.

    Raises:
        DataError: an item of the data is not in the store's corpus.
    """
    reader = FeatureStoreReader(store)
    try:
        reader.catch_up()
        corpus = embed_corpus(reader)
        embedder = QueryEmbedder(corpus.trained, StoreNames(reader))
        user_ids = held.test.reviews.user_ids

        def model(users: Sequence[int]) -> F32:
            queries = embedder.embed([user_ids[user] for user in users]).embeddings_QD
            return best_scores(queries, corpus.embeddings_ND)

        return _ranked(held, _places(corpus, held.test.reviews), model)
    finally:
        reader.close()


def rank_by_scorer(held: Held, scorer: Scorer) -> Ranked:
    """Rank by scores whose columns are the data set's items in their own order."""
    return _ranked(held, np.arange(len(held.test.reviews.item_ids)), scorer)


def _ranked(held: Held, place: Places, scorer: Scorer) -> Ranked:
    return Ranked(ranks_of(held, place, scorer), variety_of(held, place, scorer))


def ranks_of(held: Held, place: Places, scorer: Scorer) -> Ranks:
    """Return the middle rank (Q,) of each held-out review's item, in the order of `held.test.reviews`.

    `place` says at which column of the scores each item of the data set stands. What a user has in training
    is left out. Users are scored in blocks of so many that memory stays bounded however large the catalogue.
    """
    test = held.test.reviews
    owned = _items_of(held.train.reviews, place)
    ranks = np.zeros(len(test))
    for rows in _blocks(len(test), len(place)):
        users = test.users[rows].tolist()
        ranks[rows] = middle_ranks(scorer(users), place[test.items[rows]], [owned(user) for user in users])
    return ranks


def variety_of(held: Held, place: Places, scorer: Scorer) -> Variety:
    """Return how alike the lists of the test's users are: of `LISTS` evenly chosen ones if they are more.

    A list has 50 places, or half as many as there are items if that is fewer; who has so much of the
    catalogue that less is left is passed over. Both figures are NaN if nobody is left.
    """
    num_places = min(PLACES, max(1, len(place) // 2))
    owned = _items_of(held.train.reviews, place)
    most = len(place) - num_places
    users_U = [
        user for user in np.unique(held.test.reviews.users).tolist() if len(set(owned(user).tolist())) <= most
    ]
    if not users_U:
        return Variety(float("nan"), float("nan"))
    chosen = [users_U[n] for n in np.linspace(0, len(users_U) - 1, min(LISTS, len(users_U))).astype(int)]
    lists = [
        top_items(scorer(users), [owned(user) for user in users], num_places)
        for users in (chosen[rows] for rows in _blocks(len(chosen), len(place)))
    ]
    return variety(np.concatenate(lists), len(place))


def _blocks(num_rows: int, num_items: int) -> Iterator[slice]:
    block = max(1, _SCORES_AT_ONCE // max(1, num_items))
    return (slice(start, start + block) for start in range(0, num_rows, block))


def figures_of(ranks: Ranks, held: Held) -> dict[str, float]:
    """Return hr@10, hr@50, hr@100, mrr10 (MRR × 10), ndcg@10, and recall@10 and recall@50: the mean over
    users, which differs from the hit rate where a user has several held-out items.
    """
    test = held.test.reviews
    figures = {f"hr@{k}": hit_rate(ranks, k) for k in (10, 50, 100)}
    per_user = np.bincount(test.users)
    for k in (10, 50):
        hits = np.bincount(test.users, weights=ranks <= k)
        figures[f"recall@{k}"] = float((hits[per_user > 0] / per_user[per_user > 0]).mean())
    return {**figures, "mrr10": 10 * mrr(ranks), "ndcg@10": ndcg(ranks, 10)}


def _places(corpus: EmbeddedCorpus, reviews: Reviews) -> Places:
    """Return where each of the data set's items stands in the corpus."""
    place_of = {item_id: place for place, item_id in enumerate(corpus.item_ids)}
    missing = [item_id for item_id in reviews.item_ids if item_id not in place_of]
    if missing:
        raise DataError(
            f"{len(missing)} items of the data are not in the corpus, the first is '{missing[0]}'"
        )
    return np.array([place_of[item_id] for item_id in reviews.item_ids], np.int64)


def _items_of(reviews: Reviews, place: Places) -> Callable[[int], Places]:
    """Return what gives a user's items."""
    order = np.argsort(reviews.users, kind="stable")
    users, starts = np.unique(reviews.users[order], return_index=True)
    owned = dict(zip(users.tolist(), np.split(place[reviews.items[order]], starts[1:]), strict=True))
    nothing = np.zeros(0, np.int64)
    return lambda user: owned.get(user, nothing)


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
