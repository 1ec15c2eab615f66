"""Learning in bfloat16 stays close to learning in float32, for every model."""

import pytest
import torch
from learning import World, blocks, configuration

from feature_store.presets import PRESETS

FEW_STEPS = 6


def learn(preset: str, precision: str) -> tuple[list[dict[str, float]], torch.Tensor]:
    items, stream = blocks(7, num_users=60, clicks=5)
    settings = ("learning.batch_size=16", f"learning.precision={precision}", f"model.preset={preset}")
    world = World(configuration(*settings))
    world.add_items({name: {"category": f"c{n % 5}"} for n, name in enumerate(items)})
    ops = [world.click(user, item, k) for k, (user, item) in enumerate(stream)]
    return world.learn_all(ops[: 16 * FEW_STEPS]), world.item_embeddings()


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - {"fm"}))  # which has no layers
def test_half_the_bits_change_losses_a_little_and_nothing_is_stored_in_them(preset: str) -> None:
    whole, half = learn(preset, "float32"), learn(preset, "bfloat16")
    for one, other in zip(whole[0], half[0], strict=True):
        assert other == pytest.approx(one, rel=0.03, abs=0.03)
    assert whole[0] != half[0]
    assert half[1].dtype == torch.float32
