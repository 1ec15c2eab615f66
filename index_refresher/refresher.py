"""One full refresh: embed the corpus of one commit, index it, check it, publish it.

Owns the order of these steps and the rule of when there is nothing to do. Never decides when to
run (`scheduling.py`), and never replaces a generation by one that failed its checks.
"""

import itertools
import json
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from feature_store.configuration import RefreshSettings
from feature_store.errors import GenerationError, StoreError
from feature_store.store import CommitInfo
from feature_store.store_reader import FeatureStoreReader, StoreReader
from index_refresher import generation
from index_refresher.checks import CheckFigures, check_embeddings, check_index
from index_refresher.contents import Draft, Popular
from index_refresher.embed import EmbeddedCorpus, QueryEmbedder, embed_corpus
from index_refresher.index import F32, ItemIndex
from index_refresher.manifest import Manifest, verify
from index_refresher.metrics import RefresherMetrics
from index_refresher.names import StoreNames
from stream_trainer.models.retrieval import each_interest

log = logging.getLogger(__name__)

_MAX_POPULAR = 10_200  # the largest serve.max_k and the longest history, which is left out
_MAX_CHECK_USERS = 256


def refresh_store(
    path: Path, settings: RefreshSettings, now_ms: int, metrics: RefresherMetrics
) -> Manifest | None:
    """Do `full_refresh` of the store at `path`.

    Raises:
        GenerationError: as there.
        StoreError: the store cannot be opened or read. That is a failed refresh too, and counted.
    """
    try:
        reader = FeatureStoreReader(path)
    except StoreError:
        metrics.refreshes.labels("failed").inc()
        _newest_shown(settings, metrics)
        raise
    with closing(reader):
        return full_refresh(reader, settings, now_ms, metrics)


def full_refresh(
    reader: StoreReader, settings: RefreshSettings, now_ms: int, metrics: RefresherMetrics
) -> Manifest | None:
    """Publish a generation of the newest commit and return its manifest; None where there is nothing to do.

    That is: nothing is committed yet, or the newest generation, in use or held back, is of this very commit
    and whole. Changed settings alone make no new generation. While a rollback holds another in use, what is
    published here is held back.

    Raises:
        GenerationError: the checks refused the new generation, or it cannot be written; the one in use stays.
        StoreError: the store cannot be read.
    """
    started_s = time.perf_counter()
    try:
        newest = _newest_shown(settings, metrics)
        commit = reader.catch_up()
        if commit.number == 0:
            metrics.refreshes.labels("empty").inc()
            return None
        if newest and _made_of(newest) == (reader.identity, commit):
            metrics.checks_failed.set(0)
            metrics.refreshes.labels("unchanged").inc()
            return None
        corpus = embed_corpus(reader)
        metrics.items_embedded.inc(len(corpus.item_ids))
        try:
            draft = make_draft(corpus, check_queries(corpus, reader), settings)
        except GenerationError:
            metrics.checks_failed.set(1)
            raise
        manifest = generation.publish(settings.path, draft, now_ms, settings.keep)
    except Exception:
        metrics.refreshes.labels("failed").inc()
        raise
    metrics.checks_failed.set(0)
    metrics.refreshes.labels("published").inc()
    metrics.refresh_seconds.observe(time.perf_counter() - started_s)
    _show(manifest, metrics)
    return manifest


def make_draft(corpus: EmbeddedCorpus, queries_QD: F32, settings: RefreshSettings) -> Draft:
    """Build the index and what goes with it, and check it. Pure: nothing is written.

    Raises:
        GenerationError: a check failed; says which and what to do.
    """
    tower_width = int(json.loads(corpus.trained.model)["model"]["output_dim"])
    spread = check_embeddings(corpus.item_ids, corpus.embeddings_ND, tower_width)
    index = ItemIndex.build(corpus.item_ids, corpus.embeddings_ND, settings)
    self_retrieval, recall = check_index(index, corpus.embeddings_ND, queries_QD, settings.min_recall)
    return Draft(
        *corpus.commit,
        index,
        most_popular(corpus.item_ids, corpus.popularity_N),
        corpus.trained,
        CheckFigures(spread=spread, self_retrieval=self_retrieval, recall=recall),
        corpus.num_item_changes,
        float(corpus.popularity_N.sum()),
    )


def check_queries(corpus: EmbeddedCorpus, reader: StoreReader) -> F32:
    """Return queries to measure recall with: users, as they would be answered; items where there are none.

    Items are poor stand-ins: a user's query is longer, and its popularity column says how much that counts.
    Each of a user's interests is searched by itself, so each is a query.
    """
    users = [key.decode() for key, _ in itertools.islice(reader.items("user"), _MAX_CHECK_USERS)]
    if not users:
        return corpus.embeddings_ND[:_MAX_CHECK_USERS]
    queries = QueryEmbedder(corpus.trained, StoreNames(reader)).embed(users)
    interests_QID = each_interest(queries.embeddings_QD)
    finite_Q = np.isfinite(interests_QID).all((1, 2))
    if not finite_Q.all():
        raise GenerationError(
            f"the embeddings of {int((~finite_Q).sum())} of {len(users)} users are not finite, first "
            f"{users[int(finite_Q.argmin())]!r}; lower learning.dense_learning_rate, or restore the store"
        )
    return interests_QID.reshape(-1, interests_QID.shape[2])


def most_popular(item_ids: Sequence[str], popularity_N: F32, num_items: int = _MAX_POPULAR) -> Popular:
    """Return the most popular items, best first; of equals the smaller ID, so that the order is fixed.

    >>> most_popular(["c", "a", "b"], np.array([1, 1, 2], np.float32), 2)
    Popular(item_ids=('b', 'a'), scores=(2.0, 1.0))
    """
    places = np.lexsort((np.array(item_ids), -popularity_N))[:num_items].tolist()
    return Popular(
        tuple(item_ids[place] for place in places), tuple(float(popularity_N[place]) for place in places)
    )


def _newest_shown(settings: RefreshSettings, metrics: RefresherMetrics) -> Manifest | None:
    """Return the newest generation, its age shown before anything of the store may fail; None if damaged."""
    try:
        used = generation.current(settings.path)
        newest = None if used is None else verify(used.newest)[0]
    except GenerationError as error:
        log.warning("making a new generation whatever the commit: %s", error)
        return None
    if newest is not None:
        _show(newest, metrics)
    return newest


def _made_of(manifest: Manifest) -> tuple[str, CommitInfo]:
    return manifest.store, CommitInfo(manifest.commit, manifest.watermark_ms, manifest.latest_click_ms)


def _show(manifest: Manifest, metrics: RefresherMetrics) -> None:
    metrics.show_generation(
        manifest.number, manifest.created_ms, manifest.watermark_ms, manifest.checks.recall
    )
