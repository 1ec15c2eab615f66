"""Between two full refreshes: answers know new, changed and deleted items as a full refresh would."""

from pathlib import Path

import numpy as np
import pytest
from changing_shop import ALL, ASKED, CHANGES, Served, by_item
from served_world import FakeFollower, World

from feature_store.configuration import RefreshSettings
from feature_store.errors import GenerationError
from feature_store.schema import Click, Deleted, EventKind, Impression, ItemFeatures
from index_refresher.delta import Delta
from index_refresher.index import ItemIndex, Mask


def test_answers_are_those_of_a_full_refresh(served: Served) -> None:
    """Nothing is learned meanwhile, so that both have the same towers. A full refresh also counts popularity
    anew: every score of a user moves by as much.
    """
    served.refresh()
    before = by_item(served.answers())
    assert any("i7" in items for items in before)
    assert not any("new" in items for items in before)
    served.apply(CHANGES)
    delta = served.answers()
    assert (served.delta("deleted"), served.delta("fresh")) == (1, 3)
    served.refresh()
    full = served.answers()
    assert (served.delta("deleted"), served.delta("fresh")) == (0, 0)
    for one, other in zip(delta, full, strict=True):
        assert one.source == other.source
        assert {"i7", "short-lived"}.isdisjoint(dict(one.items))
        if one.source == "popularity":  # by what was popular when the generation was made
            continue
        assert {"new", "i3", "i9"} - set(dict(one.items)) <= {"i3", "i9"}  # these may be in a history
        assert dict(one.items).keys() == dict(other.items).keys()
        moved = [score - dict(other.items)[item] for item, score in one.items]
        np.testing.assert_allclose(moved, moved[0], atol=2e-5)
        assert [score for _, score in one.items] == sorted((score for _, score in one.items), reverse=True)


def test_a_short_answer_is_as_good_as_a_long_ones_beginning(served: Served) -> None:
    """What is masked must not take the places of others."""
    served.refresh()
    served.apply(CHANGES)
    best = [item for item, _ in served.answers()[0].items[:3]]
    served.apply([Deleted(kind=EventKind.ITEM, id=item, ts_ms=9100) for item in best])
    whole, short = served.answers(), served.answers(k=5)
    for one, other in zip(whole, short, strict=True):
        assert [item for item, _ in other.items] == [item for item, _ in one.items[:5]]
        assert set(best).isdisjoint(dict(one.items))


def test_changes_add_up_over_commits_and_a_deleted_item_may_come_back(served: Served) -> None:
    served.refresh()
    served.apply([Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9000)])
    assert all("i7" not in items for items in by_item(served.answers()))
    served.apply([ItemFeatures(id="new", ts_ms=9001)])
    users = by_item(served.answers())[:12]
    assert all("i7" not in items and "new" in items for items in users)
    served.apply([ItemFeatures(id="i7", ts_ms=9002), Deleted(kind=EventKind.ITEM, id="new", ts_ms=9003)])
    users = by_item(served.answers())[:12]
    assert any("i7" in items for items in users)
    assert all("new" not in items for items in users)


def test_items_are_followed_where_the_generation_in_use_cannot_be_taken(served: Served) -> None:
    served.refresh()
    served.answers()
    (served.settings.path / "CURRENT").write_text("no generation")
    served.apply(CHANGES)
    with pytest.raises(GenerationError):
        served.recommender.reload()
    answers = by_item(served.recommender.recommend(ASKED, ALL).answers)
    assert all("i7" not in items for items in answers)
    assert all("new" in items for items in answers[:12])


def test_an_item_that_is_known_by_a_click_alone_is_found(served: Served) -> None:
    served.refresh()
    shown = Impression(impression_id="late", user_id="u1", ts_ms=9000, items=["clicked"])
    click = Click(impression_id="late", user_id="u1", item_id="clicked", ts_ms=9001)
    served.shop.apply([shown, click])
    served.shop.session.flush()
    served.shop.commit()
    users = by_item(served.answers())[:12]
    assert [user for user, items in enumerate(users) if "clicked" not in items] == [1]  # who has it


def test_a_new_generation_is_never_served_without_its_delta(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between taking it and looking what was deleted since, a deleted item would be answered again."""
    world, ready = World(tmp_path), list[bool]()
    monkeypatch.setattr(FakeFollower, "delta", Delta(frozenset({"a"}), Mask([0], 2)))
    monkeypatch.setattr(FakeFollower, "on_follow", lambda _: ready.append(not world.recommender.not_ready()))
    world.start({"a": 2, "b": 1})
    assert not ready[0]
    for user in ("u", "stranger"):
        assert [item for item, _ in world.recommender.recommend([user], 2).answers[0].items] == ["b"]


@pytest.mark.parametrize("ivf_from_items", [1, 10**6])
def test_masked_places_are_not_found_and_the_others_are(ivf_from_items: int) -> None:
    rng = np.random.default_rng(4)
    items, queries = (rng.normal(size=shape).astype(np.float32) for shape in ((300, 6), (20, 6)))
    ids = [f"i{n}" for n in range(300)]
    settings = RefreshSettings(ivf_from_items=ivf_from_items, ivf_nprobe=1000)
    index = ItemIndex.build(ids, items, settings)
    masked = rng.choice(300, 120, replace=False).tolist()
    scores = queries @ items.T
    scores[:, masked] = -np.inf
    found = index.search(queries, 200, Mask(masked, 300))
    for row, (names, values) in enumerate(zip(*found, strict=True)):
        best = np.argsort(-scores[row])[:180]
        assert names == [ids[place] for place in best.tolist()]
        assert values == pytest.approx(scores[row, best].tolist(), rel=1e-4, abs=1e-4)
    nothing = index.search(queries, 5, Mask(range(300), 300))
    assert nothing == ([[]] * 20, [[]] * 20)
    few = index.search(queries, 5, Mask(range(2, 300), 300))
    assert all(sorted(names) == ["i0", "i1"] for names in few.item_ids)
