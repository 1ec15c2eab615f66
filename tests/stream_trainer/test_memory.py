"""Rows that do not fit in memory: learning gives the same bits, only slower; what comes is read ahead."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from learning import Shop, configuration

from feature_store.schema import Click, Event, Impression, ItemFeatures
from feature_store.store import FeatureStore

SETTINGS = (
    "model.embedding_dim=16",
    "model.output_dim=16",
    "model.augmented_dim=16",
    "model.hidden=[16]",
    "learning.batch_size=16",
    "learning.shared_negatives=100",
    "learning.rehearsal_ratio=2",
    "learning.rows_optimiser=rowwise_adam",  # the wider rows: fewer fit
    "learning.prequential_every=0",
)


def catalogue_then_clicks(num_items: int, num_clicks: int, num_users: int = 1500) -> list[Event]:
    events: list[Event] = [
        ItemFeatures(id=f"i{n}", ts_ms=n, features={"category": f"c{n % 5}"}) for n in range(num_items)
    ]
    for n in range(num_clicks):
        ts_ms, user, item = num_items + n, f"u{n * 7 % num_users}", f"i{n * 131 % num_items}"
        events += [
            Impression(impression_id=f"s{n}", user_id=user, ts_ms=ts_ms, items=[item]),
            Click(impression_id=f"s{n}", user_id=user, item_id=item, ts_ms=ts_ms),
        ]
    return events


def learned(path: Path, row_memory_mib: int) -> Shop:
    """Return the trainer's state after a catalogue that came before the first click and the first commit."""
    shop = Shop(configuration(*SETTINGS, f"store.row_memory_mib={row_memory_mib}"), path)
    shop.apply(catalogue_then_clicks(9000, 1600))
    shop.commit()
    return shop


def test_a_catalogue_larger_than_memory_is_learned_to_the_same_bits(tmp_path: Path) -> None:
    small, large = learned(tmp_path / "small", 1), learned(tmp_path / "large", 64)
    table = small.state.tables.item
    assert table.capacity < 2000
    assert table.num_evicted > 1000
    assert table.num_read > 1000
    assert large.state.tables.item.num_evicted == 0
    assert len(small.losses) == 100
    assert small.losses == large.losses
    for family in ("item", "user", "value", "dense", "rehearsal", "corpus"):
        assert dict(small.store.items(family)) == dict(large.store.items(family))
    small.close()
    large.close()


@pytest.mark.parametrize("history_length", [0, 12])
def test_what_the_next_batch_needs_is_told_while_this_one_is_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, history_length: int
) -> None:
    """Positives, users, both kinds of negatives, rehearsed examples, histories: all but what is evicted
    meanwhile.
    """
    told: dict[str, set[bytes]] = {}
    early, late, get = Counter[str](), Counter[str](), FeatureStore.get

    def tell(_: FeatureStore, keys: Mapping[str, list[bytes]]) -> None:
        told.update({family: set(some) for family, some in keys.items()})

    def find(store: FeatureStore, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        early[family] += len(told.get(family, set()).intersection(keys))
        late[family] += len(set(keys) - told.get(family, set()))
        return get(store, family, keys)

    def peek(store: FeatureStore, family: str, keys: Sequence[bytes]) -> list[bytes | None]:
        found = zip(keys, get(store, family, keys), strict=True)
        return [value if key in told.get(family, set()) else None for key, value in found]

    events = catalogue_then_clicks(9000, 12_800, num_users=8009)
    settings = ("learning.negatives_per_positive=2", "store.row_memory_mib=1")
    history = f"model.history_length={history_length}"
    shop = Shop(configuration(*SETTINGS, *settings, history), tmp_path)
    shop.apply(events[:-12_800])
    monkeypatch.setattr(FeatureStore, "read_ahead", tell)
    monkeypatch.setattr(FeatureStore, "get", find)
    monkeypatch.setattr(FeatureStore, "peek", peek)
    shop.apply(events[-12_800:], at_once=True)
    assert len(shop.losses) == 800
    assert early["item"] > 5000
    assert late["item"] < early["item"] / 50
    assert late["user"] < early["user"] / 20
    shop.close()
