"""What the delta does where it cannot follow every change; a deleted item is answered in no case."""

import threading

import numpy as np
import pytest
from changing_shop import ALL, ASKED, CHANGES, Served, by_item

from feature_store.item_changes import ItemChanges
from feature_store.schema import Deleted, Event, EventKind, ItemFeatures
from feature_store.store import CommitInfo


def test_a_new_server_and_one_that_runs_agree_though_more_changed_than_is_told(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Half of the changes at once, then one by one; few are kept."""
    monkeypatch.setattr("feature_store.item_changes._KEPT", 4)
    served.shop.state.item_changes = ItemChanges(served.shop.state.item_changes.encode())
    served.refresh()
    served.answers()
    gone = [f"i{n}" for n in range(12)]
    deletions: list[Event] = [Deleted(kind=EventKind.ITEM, id=item, ts_ms=9000) for item in gone]
    served.apply([*deletions[:6], ItemFeatures(id="new", ts_ms=9001)])
    for deletion in deletions[6:]:
        served.apply([deletion])
        served.recommender.reload()
    whole, newly = served.answers(), served.restarted().recommend(ASKED, ALL).answers
    assert whole == newly
    assert all(set(gone).isdisjoint(items) for items in by_item(whole))
    assert all("new" in items for items in by_item(whole)[:12])
    assert "comparing with all" in caplog.text


def test_another_store_is_compared_as_a_whole(served: Served) -> None:
    """It has had fewer changes than the generation knows of."""
    served.refresh()
    served.answers()
    served.shop.state.item_changes = ItemChanges()
    served.apply([Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9000), ItemFeatures(id="new", ts_ms=9001)])
    users = by_item(served.answers())[:12]
    assert all("i7" not in items and "new" in items for items in users)


def test_an_embedding_that_is_not_finite_changes_nothing(served: Served) -> None:
    """A full refresh would refuse it; an answer must not hold it, nor lose the item that it is of."""
    served.refresh()
    before = by_item(served.answers())
    served.shop.apply([ItemFeatures(id=item, ts_ms=9000) for item in ("i3", "broken", "i5")])
    table = served.shop.state.tables.item
    served.shop.state.flush_item_features()
    numbers = served.shop.state.item_numbers.find(["i3", "broken"])
    table.begin_batch()
    slots = table.slots(numbers)
    table.write(slots, {"embedding": np.full((2, 8), np.nan, np.float32)})
    served.shop.commit()
    after = by_item(served.answers())
    assert served.delta("fresh") == 1
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys()
        assert one.get("i3") == other.get("i3")


def test_so_many_are_searched_beside_and_no_more(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("index_refresher.delta._MOST_FRESH", 2)
    served.refresh()
    served.answers()
    served.apply([ItemFeatures(id=f"new{n}", ts_ms=9000 + n) for n in range(4)])
    users = by_item(served.answers())[:12]
    assert all(sum(item.startswith("new") for item in items) == 2 for items in users)
    served.apply(
        [
            Deleted(kind=EventKind.ITEM, id="new0", ts_ms=9100),
            Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9101),
        ]
    )
    users = by_item(served.answers())[:12]
    assert all("new0" not in items and "i7" not in items for items in users)
    assert caplog.text.count("wait for the next refresh") == 1


def test_the_reader_is_given_back_between_pieces(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many changes as fit take a while: queries must get their turn."""
    monkeypatch.setattr("index_refresher.delta._AT_ONCE", 2)
    served.refresh()
    served.recommender.reload()
    served.apply(CHANGES)
    state = served.recommender._served
    assert state is not None
    served.recommender._catch_up()

    class Counting:
        num = 0
        lock = threading.Lock()

        def __enter__(self) -> None:
            self.num += 1
            self.lock.acquire()

        def __exit__(self, *error: object) -> None:
            self.lock.release()

    counting = Counting()
    commit = CommitInfo(10**6)
    assert state.follower.follow(commit, counting) is not None  # type: ignore[arg-type]
    assert counting.num == 1 + 3
    assert state.follower.follow(commit, counting) is None  # type: ignore[arg-type]
