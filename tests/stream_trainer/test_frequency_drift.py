"""The streaming frequency estimate beside exact decayed counts, on a log whose popularity turns round."""

import numpy as np
import pytest
from learning import World, configuration

from stream_trainer.models import frequency

NUM_ITEMS, HALF_LIFE = 8, 60.0
SMALL = ("model.hidden=[8]", "learning.shared_negatives=4", "learning.rehearsal_ratio=1")


def estimate(world: World) -> np.ndarray:
    """Return the smoothed probabilities that logQ uses, as of now."""
    table = world.tables.item
    table.begin_batch()
    slots = table.slots(np.arange(NUM_ITEMS))
    now, half_life = world.num_positives, world.config.learning.frequency_half_life
    at = table.ints(slots, "frequency_at")[:, 0]
    count = frequency.decayed(table.floats(slots, "frequency")[:, 0], at, now, half_life)
    return frequency.probability(count, frequency.total_count(now, half_life), NUM_ITEMS)


@pytest.mark.parametrize(("batch_size", "tolerance"), [(1, 1e-4), (4, 0.03), (16, 0.12)])
def test_the_estimate_follows_a_drift_as_exact_counts_do(batch_size: int, tolerance: float) -> None:
    """A batch's positives all count as of its end: of batches larger than one, counts are a little high."""
    world = World(configuration(*SMALL, f"learning.frequency_half_life={HALF_LIFE}"))
    world.add_items({f"i{n}": {} for n in range(NUM_ITEMS)})
    rng = np.random.default_rng(3)
    shares = np.array([0.5, 0.25, 0.1, 0.05, 0.04, 0.03, 0.02, 0.01])
    stream = [*rng.choice(NUM_ITEMS, 320, p=shares), *rng.choice(NUM_ITEMS, 320, p=shares[::-1])]
    leaders = []
    for start in range(0, len(stream), batch_size):
        chunk = stream[start : start + batch_size]
        world.learn([world.click(f"u{start + k}", f"i{item}", start + k) for k, item in enumerate(chunk)])
        if (start + batch_size) % 80 == 0:
            learned = np.array(stream[: start + batch_size])
            weights = 2.0 ** (-(len(learned) - 1 - np.arange(len(learned))) / HALF_LIFE)
            exact = np.bincount(learned, weights=weights, minlength=NUM_ITEMS)
            expected = (exact + 1) / (weights.sum() + NUM_ITEMS)
            found = estimate(world)
            assert found == pytest.approx(expected, rel=tolerance)
            leaders.append(int(np.argmax(found)))
    assert leaders[3] == 0
    assert leaders[-1] == NUM_ITEMS - 1
