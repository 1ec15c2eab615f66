"""A recommender over stand-ins for the store, the towers and what became of items."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import cast

import numpy as np
from prometheus_client import CollectorRegistry

from feature_store.configuration import RefreshSettings
from feature_store.errors import StoreError
from feature_store.store import CommitInfo
from index_refresher import generation
from index_refresher.checks import CheckFigures
from index_refresher.contents import Draft, Generation, Popular, Trained
from index_refresher.delta import Delta
from index_refresher.embed import QueryEmbeddings
from index_refresher.index import ItemIndex
from index_refresher.metrics import ServerMetrics
from index_refresher.names import StoreNames
from index_refresher.serving import Recommender


class FakeReader:
    """A store of which only the commit counts. Notices two threads at once."""

    def __init__(self) -> None:
        self.commit = self.commit_info = CommitInfo()
        self.identity = "a store"
        self.closed = False
        self._busy = threading.Lock()

    def use(self) -> None:
        if not self._busy.acquire(blocking=False):
            raise AssertionError("two threads use the reader at once")
        time.sleep(0.0005)
        self._busy.release()

    def catch_up(self, lock: AbstractContextManager[object] | None = None) -> CommitInfo:
        with lock or nullcontext():
            self.use()
            self.commit_info = self.commit
            return self.commit

    def close(self) -> None:
        self.closed = True


class FakeEmbedder:
    """Knows users named u…: their query is all ones, their history what `history` says. `nan…` has a broken
    row.
    """

    history: dict[str, list[str]]
    given: list[StoreNames]
    """To all that were made."""

    def __init__(self, trained: Trained, names: StoreNames) -> None:
        self.given.append(names)
        self.reader = cast(FakeReader, names.reader)

    def embed(self, user_ids: Sequence[str]) -> QueryEmbeddings:
        self.reader.use()
        queries = np.ones((len(user_ids), 2), np.float32)
        queries[[user.startswith("nan") for user in user_ids]] = np.nan
        known = np.array([user.startswith(("u", "nan")) for user in user_ids])
        return QueryEmbeddings(queries, known, [self.history.get(user, []) for user in user_ids])


class FakeFollower:
    """Says once what `delta` is; `on_follow` is called before."""

    delta: Delta | None = None
    on_follow: Callable[[], object] = staticmethod(lambda: None)

    def __init__(self, made: Generation, names: StoreNames, num_threads: int) -> None:
        self.told = False

    def follow(self, commit: CommitInfo, reader_lock: threading.Lock) -> Delta | None:
        told, self.told = self.told, True
        self.on_follow()
        return None if told else self.delta


class World:
    """A recommender over fakes. Time stands at `now_ms`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reader: FakeReader | None = None
        self.now_ms = 0
        self.registry = CollectorRegistry()
        self.metrics = ServerMetrics(self.registry)
        self.recommender = self.make(exclude_history=True)
        FakeEmbedder.history, FakeEmbedder.given = {}, []

    def make(self, exclude_history: bool, embedder: type[FakeEmbedder] = FakeEmbedder) -> Recommender:
        return Recommender(
            self.path,
            open_reader=self._open,  # type: ignore[arg-type]
            metrics=self.metrics,
            clock_ms=lambda: self.now_ms,
            exclude_history=exclude_history,
            num_threads=1,
            make_embedder=embedder,  # type: ignore[arg-type]
            make_follower=FakeFollower,  # type: ignore[arg-type]
        )

    def _open(self) -> FakeReader:
        if self.reader is None:
            raise StoreError("there is no feature store yet")
        return self.reader

    def publish(self, commit: int, items: dict[str, float]) -> str:
        """Publish items whose score for known users is as given; by popularity the order is reversed."""
        vectors = np.array([[score, 0] for score in items.values()], np.float32)
        ids = list(items)
        index = ItemIndex.build(ids, vectors, RefreshSettings())
        popular = Popular(tuple(reversed(ids)), tuple(float(n) for n in range(len(ids), 0, -1)))
        figures = CheckFigures(spread=1, self_retrieval=1, recall=1)
        draft = Draft(commit, 0, 0, index, popular, Trained(b"", "", ""), figures)
        return generation.publish(self.path, draft, 0, keep=3).folder_name

    def start(self, items: dict[str, float]) -> str:
        self.reader = FakeReader()
        self.reader.commit = CommitInfo(5, 50_000, 60_000)
        name = self.publish(4, items)
        self.recommender.reload()
        return name

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"dualstream_server_{name}", labels)
