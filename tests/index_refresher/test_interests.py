"""Answers for users of several interests equal those of scoring every item by every interest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from served_world import FakeEmbedder, World

from feature_store.configuration import RefreshSettings
from index_refresher import generation
from index_refresher.checks import CheckFigures
from index_refresher.contents import Draft, Popular, Trained
from index_refresher.embed import QueryEmbeddings
from index_refresher.index import ItemIndex


def test_a_user_of_several_interests_gets_the_items_that_any_of_them_finds_best(tmp_path: Path) -> None:
    """The same as scoring every item by every interest; items that several interests find appear once."""
    world = World(tmp_path)
    rng = np.random.default_rng(6)
    items, queries = (rng.normal(size=shape).astype(np.float32) for shape in ((60, 4), (3, 5, 4)))
    queries[2, 1, 3] = np.nan  # one interest gone bad is the whole user
    ids = [f"i{n}" for n in range(60)]
    world.start({"a": 1})
    index = ItemIndex.build(ids, items, RefreshSettings())
    popular, figures = Popular(("i7",), (1.0,)), CheckFigures(spread=1, self_retrieval=1, recall=1)
    draft = Draft(6, 0, 0, index, popular, Trained(b"", "", ""), figures)
    generation.publish(world.path, draft, 0, keep=3)
    history = [["i3"], [], []]
    known = np.ones(3, bool)

    class Several(FakeEmbedder):
        def embed(self, user_ids: Sequence[str]) -> QueryEmbeddings:
            places = [int(user[1:]) for user in user_ids]
            return QueryEmbeddings(queries[places], known[places], [history[place] for place in places])

    recommender = world.make(exclude_history=True, embedder=Several)
    recommender.reload()
    for asked in (["u1", "u2", "u0"], ["u2"], ["u0"]):
        answers = recommender.recommend(asked, 12).answers
        for user, answer in zip(asked, answers, strict=True):
            if user == "u2":
                assert (answer.source, answer.items) == ("popularity", [("i7", 1.0)])
                continue
            scores = np.array([max(p @ item for p in queries[int(user[1:])]) for item in items])
            scores[[int(item[1:]) for item in history[int(user[1:])]]] = -np.inf
            best = np.argsort(-scores)[:12]
            assert [item for item, _ in answer.items] == [ids[place] for place in best]
            assert [score for _, score in answer.items] == pytest.approx(scores[best].tolist(), rel=1e-5)
