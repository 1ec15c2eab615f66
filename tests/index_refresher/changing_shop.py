"""A trained shop that is served while it changes."""

import shutil
from pathlib import Path

from learning import Shop, configuration, shop_events
from prometheus_client import CollectorRegistry

from feature_store.configuration import RefreshSettings
from feature_store.schema import Deleted, Event, EventKind, ItemFeatures
from feature_store.store_reader import FeatureStoreReader
from index_refresher.metrics import RefresherMetrics, ServerMetrics
from index_refresher.refresher import full_refresh
from index_refresher.serving import Answer, Recommender

SETTINGS = (
    "model.hidden=[16]",
    "model.embedding_dim=8",
    "model.output_dim=8",
    "model.augmented_dim=8",
    "model.history_length=4",
    "learning.batch_size=16",
    "features.item_categorical={category=1}",
    'features.item_numeric=["price"]',
)
MODELS = {
    "default": SETTINGS,
    "without popularity": (*SETTINGS, "model.popularity_weight=0"),
    "several interests": (*SETTINGS, "model.name=mind", "model.num_interests=3"),
}
ASKED = [*(f"u{n}" for n in range(12)), "stranger"]
ALL = 60
CHANGES: list[Event] = [
    ItemFeatures(id="new", ts_ms=9000, features={"category": "c2", "price": 3.0}),
    ItemFeatures(id="i3", ts_ms=9001, features={"category": "c0", "price": 9000.0}),
    Deleted(kind=EventKind.ITEM, id="i7", ts_ms=9002),
    ItemFeatures(id="short-lived", ts_ms=9003),
    Deleted(kind=EventKind.ITEM, id="short-lived", ts_ms=9004),
    Deleted(kind=EventKind.ITEM, id="i9", ts_ms=9005),
    ItemFeatures(id="i9", ts_ms=9006, features={"category": "c1", "price": 1.0}),
    Deleted(kind=EventKind.ITEM, id="never seen", ts_ms=9007),
]


class Served:
    """A trained shop that is served, and its refresher."""

    def __init__(self, settings: tuple[str, ...], path: Path) -> None:
        self._store_path = path / "store"
        self.shop = self._trained(settings, shop_events(8, num_clicks=120))
        self.settings = RefreshSettings(path=path / "generations", min_recall=0)
        self._reader = FeatureStoreReader(path / "store")
        self._restarted: list[Recommender] = []
        self.registry = CollectorRegistry()
        self.recommender = self._recommender(self.registry)

    def _trained(self, settings: tuple[str, ...], events: list[Event] | None) -> Shop:
        shop = Shop(configuration(*settings), self._store_path)
        if events is not None:
            shop.apply(events)
            shop.session.flush()
            shop.commit()
        return shop

    def replace_store(self, settings: tuple[str, ...], events: list[Event] | None) -> None:
        """Put another shop's store in the place of this one's, while it is served; None: without a commit."""
        self.shop.close()
        shutil.rmtree(self._store_path)
        self.shop = self._trained(settings, events)

    def _recommender(self, registry: CollectorRegistry) -> Recommender:
        return Recommender(
            self.settings.path,
            open_reader=lambda: FeatureStoreReader(self._store_path),
            metrics=ServerMetrics(registry),
            clock_ms=lambda: 0,
            exclude_history=True,
            num_threads=1,
        )

    def restarted(self) -> Recommender:
        """Return another server over the same."""
        self._restarted.append(self._recommender(CollectorRegistry()))
        self._restarted[-1].reload()
        return self._restarted[-1]

    def refresh(self) -> None:
        assert full_refresh(self._reader, self.settings, 0, RefresherMetrics(CollectorRegistry()))

    def apply(self, events: list[Event]) -> None:
        self.shop.apply(events)
        self.shop.commit()

    def answers(self, k: int = ALL) -> list[Answer]:
        self.recommender.reload()
        return self.recommender.recommend(ASKED, k).answers

    def delta(self, state: str) -> float | None:
        return self.registry.get_sample_value("dualstream_server_delta_items", {"state": state})

    def close(self) -> None:
        for recommender in (self.recommender, *self._restarted):
            recommender.close()
        self._reader.close()
        self.shop.close()


def by_item(answers: list[Answer]) -> list[dict[str, float]]:
    return [dict(answer.items) for answer in answers]
