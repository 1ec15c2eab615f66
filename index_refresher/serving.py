"""What the server answers from: one generation, one view of the store, and who may touch them when.

Owns the reference to what is served and the lock around the store's reader. A new generation replaces the old
one by that one reference, so an answer is made of one generation alone. Never speaks HTTP (`service.py`),
never writes anything.
"""

import itertools
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from feature_store.errors import DualstreamError, GenerationError
from feature_store.store import CommitInfo
from feature_store.store_reader import StoreReader
from index_refresher import generation
from index_refresher.contents import Generation, Trained
from index_refresher.delta import Delta, ItemFollower
from index_refresher.embed import QueryEmbedder, QueryEmbeddings
from index_refresher.index import Found
from index_refresher.metrics import ServerMetrics
from index_refresher.names import StoreNames
from stream_trainer.models.retrieval import each_interest

log = logging.getLogger(__name__)

Scored = list[tuple[str, float]]


class Embedder(Protocol):
    """What is needed of `embed.QueryEmbedder`."""

    def embed(self, user_ids: Sequence[str]) -> QueryEmbeddings:
        """Embed users as they stand in the newest commit."""


class Follower(Protocol):
    """What is needed of `delta.ItemFollower`."""

    def follow(self, commit: CommitInfo, reader_lock: threading.Lock) -> Delta | None:
        """Return what differs from the generation by this commit, None if nothing changed."""


class Answer(NamedTuple):
    """One user's recommendations. `source`: `model`, or `popularity` for a user of whom nothing is known."""

    user_id: str
    items: Scored
    source: str


class Answers(NamedTuple):
    """Answers of one generation, with the commit whose user rows they know."""

    answers: list[Answer]
    generation: str
    commit: int
    watermark_ms: int


class NotReadyError(Exception):
    """Nothing can be answered yet; the text says why."""


class _Served(NamedTuple):
    """What one answer is made of. Never changed: replaced."""

    folder: Path
    generation: Generation
    reader: StoreReader
    embedder: Embedder
    follower: Follower
    delta: Delta


class Recommender:
    """Answers from the generation in use and the newest committed user rows. Any thread may ask."""

    def __init__(
        self,
        generations: Path,
        *,
        open_reader: Callable[[], StoreReader],
        metrics: ServerMetrics,
        clock_ms: Callable[[], int],
        exclude_history: bool,
        num_threads: int,
        make_embedder: Callable[[Trained, StoreNames], Embedder] = QueryEmbedder,
        make_follower: Callable[[Generation, StoreNames, int], Follower] = ItemFollower,
    ) -> None:
        self._generations = generations
        self._open_reader = open_reader
        self._make_embedder = make_embedder
        self._make_follower = make_follower
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._exclude_history = exclude_history
        self._num_threads = num_threads
        self._served: _Served | None = None
        self._why_not = "not looked yet"
        self._reader_lock = threading.Lock()  # guards all below: the reader is for one thread at a time
        self._names: StoreNames | None = None
        self._commit = CommitInfo()
        self._observed_event_ms = 0
        self._unobserved_event_ms: int | None = None

    def not_ready(self) -> str | None:
        """Return why nothing can be answered yet; None once something can, for ever."""
        return self._why_not if self._served is None else None

    def reload(self) -> None:
        """Take the newest commit, the generation in use, and what became of items since it was made. For one
        thread; `recommend` goes on meanwhile.

        Where that is damaged and nothing is served yet, the newest whole one before it stands in.

        Raises:
            StoreError: there is no store yet, or it cannot be read.
            GenerationError: the generation is damaged. What was served before stays; at a start, none is
                whole.
        """
        try:
            names = self._catch_up()
            try:
                self._take_current(names)
            finally:  # a generation that cannot be taken must not bring deleted items back
                self._follow_items()
        except DualstreamError as error:
            self._why_not = str(error)
            raise

    def recommend(self, user_ids: Sequence[str], k: int) -> Answers:
        """Return at most k items for each user, best first; fewer only where the corpus has no more.

        Raises:
            NotReadyError: no generation is loaded yet.
        """
        served = self._served  # read once: all that follows is of one generation
        if served is None:
            raise NotReadyError(self._why_not)
        with self._reader_lock:
            embedded, commit = served.embedder.embed(user_ids), served.reader.commit_info
            event_ms, self._unobserved_event_ms = self._unobserved_event_ms, None
        # A model gone bad after the generation was checked must not take the shop's page with it.
        interests_QID = each_interest(embedded.embeddings_QD)
        usable_Q = embedded.known_Q & np.isfinite(interests_QID).all((1, 2))
        hidden = [set(history) if self._exclude_history else set() for history in embedded.history]
        widest = k + max(map(len, hidden), default=0)
        searched = interests_QID[usable_Q].reshape(-1, interests_QID.shape[2])
        found = served.delta.search(served.generation.item_index, searched, widest)
        ranked = _merged(found, interests_QID.shape[1])
        popular = list(zip(*served.generation.popular, strict=True))
        answers = []
        for user_id, usable, hide in zip(user_ids, usable_Q.tolist(), hidden, strict=True):
            items = next(ranked) if usable else popular
            kept = _first_visible(items, hide if usable else hide | served.delta.deleted, k)
            answers.append(Answer(user_id, kept, "model" if usable else "popularity"))
            self._metrics.answers.labels(answers[-1].source).inc()
        if event_ms is not None:
            self._metrics.click_to_served_seconds.observe(max(0, self._clock_ms() - event_ms) / 1000)
        manifest = served.generation.manifest
        return Answers(answers, manifest.folder_name, commit.number, commit.watermark_ms)

    def close(self) -> None:
        """Release the store's reader."""
        with self._reader_lock:
            if self._names is not None:
                self._names.reader.close()
                self._names = None

    def _catch_up(self) -> StoreNames:
        if self._names is None:
            self._names = StoreNames(self._open_reader())
        commit = self._names.reader.catch_up(self._reader_lock)
        with self._reader_lock:
            if commit.number < self._commit.number or not self._names.are_of_this_store:
                self._names = StoreNames(self._names.reader)
            if commit != self._commit:
                self._commit = commit
                self._metrics.show_commit(commit.number, commit.watermark_ms)
                if commit.latest_click_ms > self._observed_event_ms:
                    self._observed_event_ms = self._unobserved_event_ms = commit.latest_click_ms
            return self._names

    def _take_current(self, names: StoreNames) -> None:
        try:
            used = generation.current(self._generations)
            if used is None:
                self._why_not = (
                    f"there is no generation in {self._generations} yet; run index-refresher run or once"
                )
            elif self._served is None or self._served.folder != used.folder:
                self._swap(used.folder, names)
        except GenerationError as error:
            if self._served is not None or not self._take_earlier(names, error):
                raise

    def _follow_items(self) -> None:
        served = self._served
        if served is None:
            return
        delta = served.follower.follow(self._commit, self._reader_lock)
        if delta is not None:
            self._served = served._replace(delta=delta)
            self._metrics.show_delta(len(delta.deleted), len(delta.fresh or ()))

    def _take_earlier(self, names: StoreNames, damage: GenerationError) -> bool:
        for folder in generation.earlier(self._generations):
            try:
                self._swap(folder, names)
            except GenerationError:
                continue
            log.warning("generation %s stands in for the one in use: %s", folder.name, damage)
            return True
        return False

    def _swap(self, folder: Path, names: StoreNames) -> None:
        loaded = generation.load(folder, self._num_threads)
        with self._reader_lock:
            names.check()
            embedder = self._make_embedder(loaded.trained, names)
            follower = self._make_follower(loaded, names, self._num_threads)
        delta = follower.follow(self._commit, self._reader_lock) or Delta()
        self._served = _Served(folder, loaded, names.reader, embedder, follower, delta)
        manifest = loaded.manifest
        self._metrics.show_generation(manifest.number, manifest.created_ms)
        self._metrics.show_delta(len(delta.deleted), len(delta.fresh or ()))
        log.info(
            "serving generation %s: commit %d, %d items", folder.name, manifest.commit, manifest.num_items
        )


def _merged(found: Found, num_interests: int) -> Iterator[Scored]:
    """Return, query by query, what its interests found: each item once, with its best score, best first.

    >>> list(_merged(Found([["a", "b"], ["c", "a"]], [[3.0, 1.0], [4.0, 2.0]]), 2))
    [[('c', 4.0), ('a', 3.0), ('b', 1.0)]]
    """
    pairs = [list(zip(*pair, strict=True)) for pair in zip(*found, strict=True)]
    for start in range(0, len(pairs), num_interests):
        best: dict[str, float] = {}
        for item, score in itertools.chain(*pairs[start : start + num_interests]):
            best[item] = max(score, best.get(item, score))
        yield sorted(best.items(), key=lambda entry: -entry[1])


def _first_visible(items: Sequence[tuple[str, float]], hidden: set[str], k: int) -> Scored:
    """Return the first k items that are not hidden.

    >>> _first_visible([("a", 3.0), ("b", 2.0), ("c", 1.0)], {"b"}, 2)
    [('a', 3.0), ('c', 1.0)]
    """
    kept: Scored = []
    for item in items:
        if len(kept) == k:
            break
        if item[0] not in hidden:
            kept.append(item)
    return kept
