"""Another store comes in the place of the one that is served: its rows mean nothing to the towers in use, and
may not even fit them.
"""

import pytest
from changing_shop import ALL, ASKED, SETTINGS, Served
from learning import shop_events

from feature_store.schema import Deleted, EventKind, ItemFeatures

WIDER = tuple(one.replace("_dim=8", "_dim=12") for one in SETTINGS)


@pytest.mark.parametrize("settings", [SETTINGS, WIDER], ids=["as wide", "wider"])
@pytest.mark.parametrize("num_clicks", [40, 400], ids=["fewer commits", "more"])
def test_what_is_popular_is_answered_until_the_next_refresh(
    served: Served, settings: tuple[str, ...], num_clicks: int
) -> None:
    for n in range(4):
        served.apply([Deleted(kind=EventKind.ITEM, id="never seen", ts_ms=8000 + n)])
    served.refresh()
    before = served.answers()
    assert {answer.source for answer in before} == {"model", "popularity"}
    served.replace_store(settings, shop_events(9, num_clicks=num_clicks))
    for n in range(num_clicks // 100):
        served.apply([Deleted(kind=EventKind.ITEM, id="never seen", ts_ms=9000 + n)])
    served.apply([Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9999)])
    between = served.answers()
    assert {answer.source for answer in between} == {"popularity"}
    assert served.restarted().recommend(ASKED, ALL).answers == between
    served.refresh()
    after = served.answers()
    assert any(answer.source == "model" for answer in after)
    live = dict(after[-1].items)
    assert "i7" not in live
    popular = [(item, score) for item, score in before[-1].items if item in live]
    assert all(answer.items == popular for answer in between)
    assert served.restarted().recommend(ASKED, ALL).answers == after


def test_an_item_that_comes_back_in_another_store_is_answered_again(served: Served) -> None:
    served.refresh()
    served.replace_store(SETTINGS, shop_events(8, num_clicks=120))
    served.apply([Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9000)])
    assert all("i7" not in dict(answer.items) for answer in served.answers())
    served.apply([ItemFeatures(id="i7", ts_ms=9001)])
    assert all("i7" in dict(answer.items) for answer in served.answers())


def test_a_store_that_has_learned_nothing_yet_hides_nothing(served: Served) -> None:
    """Neither before its first commit nor after one of no items; a deleted item stays so."""
    served.refresh()
    served.apply([Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9000)])
    before = served.answers()[-1].items
    assert len(before) > 30
    for events in (None, []):
        served.replace_store(SETTINGS, events)
        between = served.answers()
        assert {answer.source for answer in between} == {"popularity"}
        assert all(answer.items == before for answer in between)
