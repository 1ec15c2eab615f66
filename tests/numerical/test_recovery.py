"""Known answers: who clicks in one block of items only is recommended that block, after one pass."""

import numpy as np
import pytest
from learning import World, blocks, configuration

from stream_trainer.models.retrieval import best_scores

REHEARSED = (
    "learning.batch_size=32",
    "learning.rehearsal_ratio=8",
    "learning.rehearsal_recent_share=0",  # nothing drifts here
    "learning.rows_learning_rate=0.01",
)


def one_pass(seed: int, *overrides: str) -> tuple[World, list[dict[str, float]]]:
    """Learn 200 users' 20 clicks each, in four blocks of 25 items, once."""
    items, stream = blocks(seed)
    world = World(configuration(*overrides))
    world.add_items(items)
    return world, world.learn_all([world.click(user, item, k) for k, (user, item) in enumerate(stream)])


def share_in_block(world: World) -> float:
    """Return how much of all users' ten best items lies in their own block; by chance a quarter."""
    items = world.item_embeddings().numpy()
    users = world.user_embeddings([f"u{n}" for n in range(200)]).numpy()
    best_UT = np.argsort(-best_scores(users, items), axis=1)[:, :10]
    return float(np.mean(best_UT // 25 == (np.arange(200) % 4)[:, None]))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.name=two_tower",),
        ("model.user_augmented=learned", "model.item_augmented=learned", "model.use_user_id=true"),
        ("learning.rows_optimiser=rowwise_adam",),
        ("learning.shared_negatives=0", "learning.in_batch_negatives=true", "model.logq=true"),
        ("model.preset=paper_mended", *REHEARSED),
        ("model.preset=youtube_dnn", *REHEARSED),
        ("model.preset=fm", *REHEARSED),
        ("model.preset=mind", *REHEARSED),
    ],
    ids=[
        "default",
        "two-tower",
        "learned",
        "adagrad",
        "in-batch",
        "paper-mended",
        "youtube-dnn",
        "fm",
        "mind",
    ],
)
def test_users_get_their_own_block(seed: int, overrides: tuple[str, ...]) -> None:
    world, losses = one_pass(seed, *overrides)
    assert share_in_block(world) > 0.8
    early, late = (np.mean([parts["main"] for parts in some]) for some in (losses[1:4], losses[-3:]))
    assert late < early


def test_the_papers_letter_collapses() -> None:
    """Known and documented: every output becomes the same, and the loss stays at log 2.

    A ReLU at the end and five negatives to a positive make it best to score nothing. The preset is kept as
    the paper has it, so this is what its user must expect, and what the embeddings show.
    """
    world, losses = one_pass(1, "model.preset=paper", "learning.batch_size=16")
    assert losses[-1]["main"] == pytest.approx(np.log(2), abs=1e-3)
    items = world.item_embeddings().numpy()
    users = world.user_embeddings([f"u{n}" for n in range(200)]).numpy()
    assert np.ptp(users @ items.T) < 0.01
    assert items.std(axis=0).max() < 0.01
    assert users.std(axis=0).max() < 0.01
