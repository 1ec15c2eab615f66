"""What the refresher's tests share: generations made without a trainer."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from changing_shop import MODELS, Served

from feature_store.configuration import RefreshSettings
from feature_store.store import CommitInfo
from index_refresher import generation
from index_refresher.contents import Trained
from index_refresher.embed import EmbeddedCorpus
from index_refresher.manifest import Manifest
from index_refresher.refresher import make_draft

MakeCorpus = Callable[..., EmbeddedCorpus]
Publish = Callable[..., Manifest]


@pytest.fixture
def make_corpus() -> MakeCorpus:
    """A corpus of random items; item i has been bought i times. Towers and model are stand-ins."""

    def make(commit: int = 1, num_items: int = 30, width: int = 8, prefix: str = "i") -> EmbeddedCorpus:
        rng = np.random.default_rng(commit)
        return EmbeddedCorpus(
            CommitInfo(commit, commit * 1000, commit * 1000 + 500),
            [f"{prefix}{i}" for i in range(num_items)],
            rng.normal(size=(num_items, width)).astype(np.float32),
            np.arange(num_items, dtype=np.float32),
            Trained(f"towers of {commit}".encode(), json.dumps({"model": {"output_dim": width}}), "a store"),
        )

    return make


@pytest.fixture
def publish(make_corpus: MakeCorpus) -> Publish:
    """Publish a generation of such a corpus under a path."""

    def publish_one(path: Path, commit: int = 1, keep: int = 3, **corpus_args: object) -> Manifest:
        corpus = make_corpus(commit, **corpus_args)
        draft = make_draft(corpus, corpus.embeddings_ND[:5], RefreshSettings(path=path))
        return generation.publish(path, draft, created_ms=commit * 10_000, keep=keep)

    return publish_one


@pytest.fixture(params=MODELS)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    opened = Served(MODELS[request.param], tmp_path)
    yield opened
    opened.close()
