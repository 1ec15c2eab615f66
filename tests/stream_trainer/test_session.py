"""The order of an event's effects."""

from pathlib import Path

import numpy as np
import pytest
from learning import Shop, configuration, row_bytes, shop_events

from feature_store.schema import Click, Deleted, Event, EventKind, Impression, ItemFeatures, UserFeatures
from feature_store.store import FAMILIES

WINDOW_MS, LATENESS_MS = 1_000, 100
SETTINGS = [
    "join.emit=at_close",
    f"join.attribution_window_seconds={WINDOW_MS / 1000}",
    f"join.allowed_lateness_seconds={LATENESS_MS / 1000}",
    "learning.batch_size=1",
    "model.temperature=0.1",
]
AFTER_MS = 10 + WINDOW_MS + LATENESS_MS + 5  # the first time at which the window of `CLICKED` is closed
CLICKED: list[Event] = [
    ItemFeatures(id="a", ts_ms=1, features={"category": "before"}),
    ItemFeatures(id="b", ts_ms=2, features={"category": "other"}),
    Impression(impression_id="1", user_id="u", ts_ms=10, items=["a", "b"]),
    Click(impression_id="1", user_id="u", item_id="a", ts_ms=11),
]


@pytest.mark.parametrize(
    "change",
    [
        ItemFeatures(id="a", ts_ms=AFTER_MS, features={"category": "after"}),
        Deleted(kind=EventKind.ITEM, id="a", ts_ms=AFTER_MS),
    ],
    ids=["upsert", "deletion"],
)
def test_what_an_event_closes_is_learned_before_what_it_changes(change: Event, tmp_path: Path) -> None:
    """The click happened while the item was as it was, whichever event closes its window."""
    closer = UserFeatures(id="somebody", ts_ms=AFTER_MS)
    learned = []
    for name, events in (("closed before", [*CLICKED, closer, change]), ("closed by", [*CLICKED, change])):
        shop = Shop(configuration(*SETTINGS), tmp_path / name)
        shop.apply(events)
        assert len(shop.losses) == 1
        shop.state.flush_item_features()
        shop.state.tables.item.begin_batch()
        numbers = [shop.state.item_numbers.number(item) for item in ("a", "b")]
        learned.append((shop.losses, row_bytes(shop.state.tables.item, np.array(numbers))))
        shop.close()
    assert learned[0] == learned[1]


@pytest.mark.parametrize(
    "overrides",
    [
        ["learning.batch_size=5"],
        ["join.emit=on_click"],
        ["learning.batch_size=7", "learning.shown_negatives=2"],
    ],
)
def test_how_many_facts_come_at_once_changes_nothing(overrides: list[str], tmp_path: Path) -> None:
    """Positives are taken up to a full batch at once: as if each had come alone. Every other item enters the
    corpus by its first click, which changes what is drawn from then on.
    """
    events = [
        event
        for event in shop_events(3, 250)
        if not (isinstance(event, ItemFeatures) and int(event.id[1:]) % 2)
    ]
    contents = []
    for at_once in (False, True):
        shop = Shop(configuration(*SETTINGS, *overrides), tmp_path / str(at_once))
        shop.apply(events, at_once)
        shop.commit()
        assert len(shop.losses) > 3
        contents.append((shop.losses, {name: dict(shop.store.items(name)) for name in FAMILIES}))
        shop.close()
    assert contents[0] == contents[1]


def test_positives_that_wait_are_learned_before_their_item_changes(tmp_path: Path) -> None:
    shop = Shop(configuration("learning.batch_size=5"), tmp_path)
    shop.apply(CLICKED)
    other, same = (ItemFeatures(id=item, ts_ms=20, features={"category": "after"}) for item in "ba")
    shop.apply([other])
    assert shop.session.num_pending == 1
    shop.apply([same])
    assert shop.session.num_pending == 0
    assert len(shop.losses) == 1
    shop.close()


def test_a_store_goes_on_with_smaller_batches(tmp_path: Path) -> None:
    """What waits for a larger batch is several now."""
    shop = Shop(configuration("learning.batch_size=64"), tmp_path)
    events: list[Event] = [ItemFeatures(id=f"i{n}", ts_ms=n, features={"category": "c"}) for n in range(5)]
    for n in range(31):
        ts_ms, item = 10 + n, f"i{n % 5}"
        events += [
            Impression(impression_id=f"{n}", user_id=f"u{n % 7}", ts_ms=ts_ms, items=[item]),
            Click(impression_id=f"{n}", user_id=f"u{n % 7}", item_id=item, ts_ms=ts_ms),
        ]
    shop.apply(events)
    assert shop.session.num_pending == 31
    shop.commit()
    shop.close()
    again = Shop(configuration("learning.batch_size=4"), tmp_path)
    again.session.learn_what_is_full()
    assert (again.session.num_pending, len(again.losses)) == (3, 7)
    again.close()
