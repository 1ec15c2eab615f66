"""A restart changes no bit: what is committed is all that the next loss depends on."""

from pathlib import Path

import pytest
from learning import Shop, configuration, shop_events

from feature_store.configuration import Configuration
from feature_store.schema import Click, Deleted, EventKind, Impression
from feature_store.settings import load_configuration
from feature_store.store import FAMILIES, FeatureStore
from stream_trainer.state import TrainerState

SETTINGS = (
    "model.hidden=[16]",
    "model.embedding_dim=8",
    "model.output_dim=8",
    "model.augmented_dim=8",
    "learning.batch_size=8",
    "learning.shared_negatives=16",
    "learning.rehearsal_ratio=2",
    "learning.rehearsal_capacity=50",
    "learning.prequential_every=7",
    'features.item_numeric=["price"]',
    'features.user_numeric=["age"]',
)
PRESETS = {
    "default": SETTINGS,
    "paper": (*SETTINGS, "model.preset=paper", "model.last_relu=false"),
    "fm": (*SETTINGS, "model.preset=fm"),
    "mind": (*SETTINGS, "model.preset=mind"),
    "at-close": (
        *SETTINGS,
        "join.emit=at_close",
        "join.attribution_window_seconds=0.2",
        "join.allowed_lateness_seconds=0",
        "learning.shown_negatives=3",
        "learning.rows_optimiser=rowwise_adam",
    ),
}


def contents(path: Path) -> dict[str, dict[bytes, bytes]]:
    """Return every key and value of the store, commit counters aside."""
    store = FeatureStore(path)
    found = {family: dict(store.items(family)) for family in FAMILIES}
    store.close()
    return found


def run(config: Configuration, path: Path, stops: list[int]) -> list[dict[str, float]]:
    """Apply the whole stream, with a commit and a restart at each stop; return the losses of all steps."""
    events, losses = shop_events(5, num_clicks=150), []
    for start, end in zip([0, *stops], [*stops, len(events)], strict=True):
        shop = Shop(config, path)
        shop.apply(events[start:end])
        shop.commit()
        losses += shop.losses
        shop.close()
    return losses


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_and_bytes_after_restarts_are_those_of_an_undisturbed_run(preset: str, tmp_path: Path) -> None:
    config = configuration(*PRESETS[preset])
    undisturbed = run(config, tmp_path / "one", [])
    restarted = run(config, tmp_path / "two", [10, 100, 101, 203])
    assert len(undisturbed) > 14
    assert restarted == undisturbed
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert {name for name in FAMILIES if not one[name]} <= ({"join"} if preset == "at-close" else set())
    assert two == one


def test_what_was_not_committed_is_learned_again_to_the_same_bits(tmp_path: Path) -> None:
    """A crash: events after the last commit are applied twice, and leave one trace."""
    config, events = configuration(*SETTINGS), shop_events(5, num_clicks=100)
    undisturbed = Shop(config, tmp_path / "one")
    undisturbed.apply(events)
    undisturbed.commit()
    undisturbed.close()
    for start, end, commits in [(0, 90, True), (90, 170, False), (90, len(events), True)]:
        shop = Shop(config, tmp_path / "two")
        shop.apply(events[start:end])
        if commits:
            shop.commit()
        shop.close()
    assert contents(tmp_path / "two") == contents(tmp_path / "one")


def test_a_deleted_user_starts_again_as_a_new_one(tmp_path: Path) -> None:
    """Also when the clicks before the deletion are still waiting for their batch: none of them may linger."""
    shop = Shop(configuration(*SETTINGS), tmp_path)
    events = shop_events(5, num_clicks=10)[:40]
    for n, user in enumerate(["other", "gone", "gone", "other"]):
        shown = Impression(impression_id=f"s{n}", user_id=user, ts_ms=1000 + n, items=["i1", "i2"])
        events += [shown, Click(impression_id=f"s{n}", user_id=user, item_id="i1", ts_ms=1000 + n)]
    shop.apply([*events, Deleted(kind=EventKind.USER, id="gone", ts_ms=2000)])
    shop.session.flush()
    table = shop.state.tables.user
    table.begin_batch()
    slot = table.slots(["gone"])
    assert table.rows_RW[slot].tobytes() == table.layout.new_rows(0, [b"gone"]).tobytes()
    assert table.floats(table.slots(["other"]), "mean_count")[0, 0] == 2
    shop.commit()
    kept = [value for _, value in shop.store.items("rehearsal")]
    assert any(value.endswith(b"other") for value in kept)
    assert not any(value.endswith(b"gone") for value in kept)
    shop.close()


def test_a_deleted_user_leaves_the_examples_that_are_kept_while_nothing_is_rehearsed(tmp_path: Path) -> None:
    for ratio, events in (
        (2, shop_events(5, num_clicks=60)),
        (0, [Deleted(kind=EventKind.USER, id="u2", ts_ms=10**6)]),
    ):
        settings = (*SETTINGS, f"learning.rehearsal_ratio={ratio}", "learning.rehearsal_capacity=500")
        shop = Shop(configuration(*settings), tmp_path)
        shop.apply(events)
        shop.session.flush()
        shop.commit()
        kept = [value for _, value in shop.store.items("rehearsal")]
        shop.close()
        assert any(value.endswith(b"u11") for value in kept)
        assert any(value.endswith(b"u2") for value in kept) == (ratio > 0)


@pytest.mark.parametrize("changed", ["model.augmented_dropout=1", "model.residual=false"])
def test_a_store_goes_on_under_settings_that_may_change(tmp_path: Path, changed: str) -> None:
    """What the towers hold depends on fixed settings alone."""
    base = [f"store.path={tmp_path}/store", "learning.num_threads=1"]
    for overrides in (base, [*base, changed], base):
        store = FeatureStore(tmp_path / "store")
        TrainerState(load_configuration(None, overrides, {}), store).commit()
        store.close()
