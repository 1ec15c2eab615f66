"""When a refresh publishes, when it has nothing to do, and when it refuses."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from feature_store.configuration import RefreshSettings
from feature_store.errors import GenerationError, StoreError
from feature_store.store import CommitInfo
from index_refresher import generation, refresher
from index_refresher.embed import EmbeddedCorpus
from index_refresher.metrics import RefresherMetrics

MakeCorpus = Callable[..., EmbeddedCorpus]


class FakeReader:
    """A store of which only the commit and the users' IDs count."""

    def __init__(self) -> None:
        self.commit = CommitInfo()
        self.identity = "a store"
        self.failure: Exception | None = None

    def catch_up(self) -> CommitInfo:
        if self.failure is not None:
            raise self.failure
        return self.commit

    def items(self, family: str) -> Iterator[tuple[bytes, bytes]]:
        return iter(())


class World:
    """A refresher over a fake store. `corpus` is what embedding it gives."""

    def __init__(self, path: Path, make_corpus: MakeCorpus) -> None:
        self.reader = FakeReader()
        self.settings = RefreshSettings(path=path)
        self.registry = CollectorRegistry()
        self.metrics = RefresherMetrics(self.registry)
        self._make_corpus = make_corpus
        self.corpus = make_corpus(1)

    def commit(self, number: int) -> None:
        self.corpus = self._make_corpus(number)
        self.reader.commit = self.corpus.commit

    def refresh(self, now_ms: int = 1_000) -> str | None:
        manifest = refresher.full_refresh(self.reader, self.settings, now_ms, self.metrics)  # type: ignore[arg-type]
        return manifest and manifest.folder_name

    def in_use(self) -> str | None:
        used = generation.current(self.settings.path)
        return used and used.folder.name

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"dualstream_refresher_{name}", labels)


@pytest.fixture
def world(tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path / "generations", make_corpus)
    monkeypatch.setattr(refresher, "embed_corpus", lambda reader: made.corpus)
    return made


def test_publishes_each_commit_once(world: World) -> None:
    assert world.refresh() is None
    world.commit(3)
    assert world.refresh(now_ms=77) == "00000001-3"
    assert generation.load(world.settings.path / "00000001-3", 1).manifest.created_ms == 77
    assert world.refresh() is None
    world.commit(4)
    assert world.refresh() == world.in_use() == "00000002-4"
    counts = {
        name: world.value("refreshes_total", outcome=name) for name in ("empty", "published", "unchanged")
    }
    assert counts == {"empty": 1, "published": 2, "unchanged": 1}
    assert world.value("items_embedded_total") == 60
    assert world.value("refresh_seconds_count") == 2
    assert world.value("generation") == 2


def test_the_same_commit_number_of_another_store_is_another_commit(world: World) -> None:
    world.commit(3)
    world.refresh()
    world.corpus = world.corpus._replace(commit=CommitInfo(3, 9_999, 9_999))
    world.reader.commit = world.corpus.commit
    assert world.refresh() == "00000002-3"


def test_another_store_is_refreshed_though_its_commit_says_the_same(world: World) -> None:
    world.commit(3)
    world.refresh()
    world.reader.identity = "another store"
    assert world.refresh() == "00000002-3"


def test_age_and_staleness_are_of_the_newest_generation(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert np.isnan(world.value("generation_age_seconds") or 0)
    world.commit(3)  # its watermark is at 3 seconds
    world.refresh(now_ms=20_000)
    monkeypatch.setattr("index_refresher.metrics.time.time", lambda: 25.0)
    assert world.value("generation_age_seconds") == 5
    assert world.value("staleness_seconds") == 22


@pytest.mark.parametrize("fault", ["nan", "collapsed", "empty"])
def test_a_refused_generation_leaves_the_old_one_and_raises_the_alert(world: World, fault: str) -> None:
    world.commit(1)
    world.refresh()
    world.commit(2)
    bad = world.corpus.embeddings_ND.copy()
    if fault == "nan":
        bad[2, 2] = np.nan
    elif fault == "collapsed":
        bad[:] = 0.25
    else:
        world.corpus = world.corpus._replace(item_ids=[], popularity_N=np.zeros(0, np.float32))
        bad = bad[:0]
    world.corpus = world.corpus._replace(embeddings_ND=bad)
    with pytest.raises(GenerationError):
        world.refresh()
    assert world.in_use() == "00000001-1"
    assert world.value("checks_failed") == world.value("refreshes_total", outcome="failed") == 1
    world.commit(3)
    assert world.refresh() == "00000002-3"
    assert world.value("checks_failed") == 0


def test_a_collapsed_tower_is_seen_behind_the_popularity_column(world: World) -> None:
    """The model says how wide the towers are; the column after that is popularity."""
    world.commit(1)
    collapsed = np.concatenate([np.ones((30, 7), np.float32), world.corpus.embeddings_ND[:, :1]], axis=1)
    model = json.dumps({"model": {"output_dim": 7}})
    world.corpus = world.corpus._replace(
        embeddings_ND=collapsed, trained=world.corpus.trained._replace(model=model)
    )
    with pytest.raises(GenerationError, match="the model has collapsed"):
        world.refresh()


def test_a_store_that_fails_counts_as_a_failure_without_the_alert(world: World) -> None:
    world.reader.failure = StoreError("torn")
    with pytest.raises(StoreError):
        world.refresh()
    assert world.value("refreshes_total", outcome="failed") == 1
    assert world.value("checks_failed") == 0


def test_a_store_that_cannot_be_opened_is_a_failure_too_and_the_age_is_known(
    world: World, tmp_path: Path
) -> None:
    """As after a restart of the refresher."""
    world.commit(1)
    world.refresh(now_ms=20_000)
    registry = CollectorRegistry()
    with pytest.raises(StoreError, match="there is no feature store"):
        refresher.refresh_store(tmp_path / "none", world.settings, 0, RefresherMetrics(registry))
    assert registry.get_sample_value("dualstream_refresher_refreshes_total", {"outcome": "failed"}) == 1
    assert (registry.get_sample_value("dualstream_refresher_generation_age_seconds") or 0) > 0


def test_a_rollback_holds_through_commits_until_it_is_resumed(world: World) -> None:
    for number in (1, 2):
        world.commit(number)
        world.refresh()
    generation.rollback(world.settings.path)
    assert world.refresh() is None
    assert world.in_use() == "00000001-1"
    world.commit(3)
    assert world.refresh() == "00000003-3"
    assert world.refresh() is None
    assert world.in_use() == "00000001-1"
    generation.resume(world.settings.path)
    assert world.in_use() == "00000003-3"
    world.commit(4)
    assert world.refresh() == world.in_use() == "00000004-4"


@pytest.mark.parametrize("damaged", ["index.faiss", "manifest.json", "../CURRENT"])
def test_a_damaged_generation_is_made_again_though_the_commit_is_the_same(world: World, damaged: str) -> None:
    world.commit(1)
    world.refresh()
    (world.settings.path / "00000001-1" / damaged).write_bytes(b"")
    assert world.refresh() == world.in_use() == "00000002-1"


def test_a_crash_before_the_pointer_moved_does_not_hide_the_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.commit(1)
    world.refresh()
    world.commit(2)
    with monkeypatch.context() as patch:
        patch.setattr(generation, "_point", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            world.refresh()
    assert world.in_use() == "00000001-1"
    assert world.refresh() == world.in_use() == "00000003-2"
