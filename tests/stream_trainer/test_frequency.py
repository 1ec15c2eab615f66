"""The streaming frequency estimate: exact where nothing decays, decayed as documented, and logQ's sign."""

import math

import numpy as np
import pytest
from learning import World, configuration

from stream_trainer.models import frequency

ITEMS: dict[str, dict[str, str]] = {f"i{n}": {} for n in range(6)}
SMALL = ("model.hidden=[8]", "learning.shared_negatives=4", "learning.rehearsal_ratio=0")


def learn(world: World, stream: list[int], batch_size: int) -> None:
    """Learn these items one after the other, each by a user of its own."""
    ops = [world.click(f"u{k}", f"i{item}", k) for k, item in enumerate(stream)]
    for start in range(0, len(ops), batch_size):
        world.learn(ops[start : start + batch_size])


def counts(world: World) -> np.ndarray:
    """Return the decayed count of each item as of now."""
    table = world.tables.item
    table.begin_batch()
    slots = table.slots(np.arange(6))
    count, at = table.floats(slots, "frequency")[:, 0], table.ints(slots, "frequency_at")[:, 0]
    return frequency.decayed(count, at, world.num_positives, world.config.learning.frequency_half_life)


@pytest.mark.parametrize("half_life", ["1e9", "1e18"])
@pytest.mark.parametrize("batch_size", [1, 7, 50])
def test_counts_are_exact_when_nothing_decays(half_life: str, batch_size: int) -> None:
    """Every occurrence counts, also several in one batch; rehearsed examples do not count again."""
    settings = ("learning.rehearsal_ratio=2", f"learning.frequency_half_life={half_life}", "model.logq=true")
    world = World(configuration(*SMALL, *settings))
    world.add_items(ITEMS)
    stream = np.random.default_rng(0).choice(6, 50, p=[0.5, 0.3, 0.1, 0.1, 0, 0]).tolist()
    learn(world, stream, batch_size)
    expected = np.bincount(stream, minlength=6)
    assert counts(world).tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert frequency.total_count(50, float(half_life)) == pytest.approx(50, rel=1e-6)


def test_counts_halve_after_a_half_life() -> None:
    """Batches of one: the positive at place p of n weighs 2^(-(n - 1 - p) / half_life)."""
    world = World(configuration(*SMALL, "learning.frequency_half_life=5"))
    world.add_items(ITEMS)
    stream = [0, 1, 0, 2, 2, 0, 1, 0, 3, 3, 3, 0]
    learn(world, stream, 1)
    expected = [0.0] * 6
    for place, item in enumerate(stream):
        expected[item] += 2.0 ** (-(len(stream) - 1 - place) / 5)
    assert counts(world).tolist() == pytest.approx(expected, rel=1e-5)
    assert frequency.total_count(len(stream), 5.0) == pytest.approx(sum(expected), rel=1e-9)


@pytest.mark.parametrize("start", [2**31 - 6, 2**32 - 6, 5 * 2**32 + 7])
def test_counts_go_on_after_billions_of_positives(start: int) -> None:
    """A row keeps 32 bits of the clock; a day of 25,000 positives a second is more than 31 hold."""
    world = World(configuration(*SMALL, "learning.frequency_half_life=5", "model.logq=true"))
    world.add_items(ITEMS)
    world.num_positives = start
    stream = [0, 1, 0, 2, 2, 0, 1, 0, 3, 3, 3, 0]
    learn(world, stream, 1)
    expected = [sum(2.0 ** (-(11 - at) / 5) for at, n in enumerate(stream) if n == item) for item in range(6)]
    assert counts(world).tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("num", "half_life"), [(0, 3.0), (1, 3.0), (40, 0.5), (1000, 1e6), (1000, 1e15)])
def test_the_total_is_the_sum_of_all_weights(num: int, half_life: float) -> None:
    expected = math.fsum(2.0 ** (-age / half_life) for age in range(num))
    assert frequency.total_count(num, half_life) == pytest.approx(expected, rel=1e-9)


def test_probabilities_have_one_pseudo_count_an_item_and_sum_to_one() -> None:
    share = frequency.probability(np.array([6, 2, 0, 0], np.float32), 8.0, 4)
    assert share.tolist() == pytest.approx([7 / 12, 3 / 12, 1 / 12, 1 / 12])
    assert frequency.probability(np.array([0], np.float32), 0.0, 0).tolist() == [1.0]


def test_logq_subtracts_the_log_of_the_expected_count() -> None:
    """In-batch: expected = queries × probability of being a positive, so popular items lose most."""
    flags = ("learning.in_batch_negatives=true", "learning.shared_negatives=0", "model.dropout=0")
    plain = World(configuration(*SMALL, *flags))
    corrected = World(configuration(*SMALL, *flags, "model.logq=true"))
    losses = []
    for world in (plain, corrected):
        world.add_items(ITEMS)
        learn(world, [0, 0, 0, 0, 1], 1)  # a loss of one candidate is 0: nothing is learned yet
        losses.append(world.learn([world.click("a", "i0", 100), world.click("b", "i1", 101)])["main"])
    embeddings = World(configuration(*SMALL, *flags))  # the same initial towers
    embeddings.add_items(ITEMS)
    learn(embeddings, [0, 0, 0, 0, 1], 1)
    examples, _ = embeddings.examples([embeddings.click("a", "i0", 100), embeddings.click("b", "i1", 101)])
    users = embeddings.learner.embed_examples(examples).numpy()
    items = embeddings.learner.embed_items(np.array([0, 1])).numpy()
    scores = users @ items.T / embeddings.config.model.temperature
    total = frequency.total_count(5, 200_000)
    expected_count = 2 * (np.array([4, 1]) + 1) / (total + 6)  # two queries, six items
    for loss, correction in zip(losses, (np.zeros(2), np.log(expected_count)), strict=True):
        logits = scores - correction
        by_hand = [math.log(np.exp(logits[q]).sum()) - logits[q, q] for q in range(2)]
        assert loss == pytest.approx(np.mean(by_hand), rel=1e-4)
    assert np.log(expected_count)[0] > np.log(expected_count)[1]


def test_uniform_draws_count_too() -> None:
    """Uniform negatives alone: every item is expected equally often, so the softmax does not change."""
    losses = []
    for logq in ("false", "true"):
        world = World(configuration(*SMALL, "model.dropout=0", f"model.logq={logq}"))
        world.add_items(ITEMS)
        learn(world, [0, 0, 0, 1, 2], 5)
        losses.append(world.learn([world.click("a", "i0", 100), world.click("b", "i1", 101)])["main"])
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_where_only_what_was_shown_is_scored_nothing_is_corrected() -> None:
    """Nothing is drawn by frequency then: the logarithm of an expected count of 0 would spoil every score."""
    shown_only = ("learning.shared_negatives=0", "learning.shown_negatives=2", "join.emit=at_close")
    losses = []
    for logq in ("true", "false"):
        world = World(configuration(*SMALL, *shown_only, f"model.logq={logq}"))
        world.add_items(ITEMS)
        losses.append(world.learn([world.click("u0", "i0", 0, (1, 2)), world.click("u1", "i1", 1, (0, 3))]))
    assert math.isfinite(losses[0]["main"])
    assert losses[0] == losses[1]
