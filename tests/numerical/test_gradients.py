"""Where gradients must not flow, and which rows must not move."""

import numpy as np
import pytest
import torch
from learning import World, configuration, row_bytes
from torch import Tensor

from stream_trainer.candidates import Candidates, score
from stream_trainer.examples import UserOp
from stream_trainer.models.factory import make_model
from stream_trainer.models.retrieval import History, ItemInputs, Scored, UserInputs

TINY = (
    "model.embedding_dim=4",
    "model.output_dim=4",
    "model.augmented_dim=4",
    "model.hidden=[6]",
    "model.init_scale=0.5",
    "model.last_relu=false",
)
PAPER = ("model.preset=paper", *TINY)
USER_SIDE, ITEM_SIDE = {"user id", "user tower"}, {"item id", "values", "item tower"}


def reached(*overrides: str) -> dict[str, set[str]]:
    """Return, for each part of the loss, what of the model its gradient reaches."""
    config = configuration(*PAPER, *overrides)
    torch.manual_seed(0)
    model = make_model(config.model, config.features)
    leaves = {
        "user id": torch.randn(3, 4),
        "history": torch.randn(5, 4),
        "a_u": torch.randn(3, 4),
        "item id": torch.randn(6, 4),
        "a_v": torch.randn(6, 4),
        "values": torch.randn(6, 4),
        "weight": torch.randn(6, 1),
    }
    for leaf in leaves.values():
        leaf.requires_grad_()
    dense: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        dense.setdefault(name.split(".")[0].replace("_", " "), []).append(parameter)
    numbers = torch.zeros(6, 0)
    items = model.embed_items(
        ItemInputs(leaves["item id"], leaves["a_v"], leaves["values"], numbers, leaves["weight"])
    )
    history = History(leaves["history"], torch.tensor([[-1, 0], [1, 2], [3, 4]]))
    user_id = leaves["user id"] if config.model.use_user_id else None
    past = history if config.model.history_length else None
    embedded = model.embed_users(UserInputs(user_id, past, leaves["a_u"], None, numbers[:3]))
    positive = torch.tensor([0, 1, 2])
    users = model.loss_queries(embedded, items, positive)
    laid = Candidates(
        np.arange(6), 6, positive, torch.tensor([[3], [4], [5]]), positive[:0], positive[:, None]
    )
    logits = score(laid, users, items, False)
    category = torch.tensor([0, 0, 1, 1, 1, 0])
    parts = model.losses(
        Scored(logits, users, items, positive, leaves["a_u"], leaves["a_v"][positive], category, 6)
    )
    found: dict[str, set[str]] = {}
    for part, value in parts.items():
        groups: dict[str, list[Tensor]] = {name: [leaf] for name, leaf in leaves.items()}
        groups |= dense
        found[part] = set()
        for name, tensors in groups.items():
            gradients = torch.autograd.grad(value, tensors, retain_graph=True, allow_unused=True)
            if any(gradient is not None and bool(gradient.any()) for gradient in gradients):
                found[part].add(name)
    return found


@pytest.mark.parametrize("own_tower", ["false", "true"])
def test_mimic_losses_reach_the_augmented_vectors_alone(own_tower: str) -> None:
    assert reached(f"model.own_tower_mimic={own_tower}") == {
        "main": {"a_u", "a_v"} | USER_SIDE | ITEM_SIDE,
        "mimic_user": {"a_u"},
        "mimic_item": {"a_v"},
        "category_alignment": {"a_v"} | ITEM_SIDE,
    }


def test_an_item_vector_that_only_mimics_gets_nothing_from_the_other_losses() -> None:
    assert reached("model.item_augmented=mimic_only") == {
        "main": {"a_u"} | USER_SIDE | ITEM_SIDE,
        "mimic_user": {"a_u"},
        "mimic_item": {"a_v"},
        "category_alignment": ITEM_SIDE,
    }


@pytest.mark.parametrize(
    ("preset", "main"),
    [
        ("youtube_dnn", {"history", "item id", "user tower"}),
        ("fm", {"user id", "item id", "values", "weight", "w0"}),
        ("mind", {"history", "item id", "user tower", "bilinear"}),
    ],
)
def test_the_other_models_have_one_loss_that_reaches_all_they_are_made_of(
    preset: str, main: set[str]
) -> None:
    """The presets go last: [model] keys of the paper's lie under them."""
    assert reached(f"model.preset={preset}", "model.history_length=" + str(2 * ("history" in main))) == {
        "main": main
    }


DEFAULT = (*TINY, "learning.shared_negatives=6", "learning.rehearsal_ratio=0", "model.dropout=0")


def world_of(num_items: int, *overrides: str) -> World:
    world = World(configuration(*overrides))
    world.add_items({f"i{n}": {"category": f"c{n % 3}"} for n in range(num_items)})
    return world


def test_a_mimic_only_vector_of_a_negative_stays_where_it_started() -> None:
    """Only positives have a mimic loss, so only their augmented vectors leave zero."""
    world = world_of(12, *DEFAULT, "learning.shared_negatives=600")
    world.learn([world.click("u", "i1", 0), world.click("v", "i4", 1)])
    augmented = world.tables.item.floats(world.tables.item.slots(np.arange(12)), "augmented")
    assert np.flatnonzero(augmented.any(1)).tolist() == [1, 4]
    embedding = world.tables.item.floats(world.tables.item.slots(np.arange(12)), "embedding")
    fresh = world.tables.item.layout.new_rows(0, [b"i%d" % n for n in range(12)])
    moved = (embedding != fresh[:, world.tables.item.layout.span("embedding")]).any(1)
    assert moved.all()  # the negatives did learn otherwise


def test_a_running_mean_is_the_mean_of_item_embeddings_and_no_gradient_changes_it() -> None:
    """After each batch a_u gains its positives' p_v under the towers just learned; rehearsal adds nothing."""
    world = world_of(12, *DEFAULT, "learning.rehearsal_ratio=3", "model.augmented_memory=1e9")
    assert [f.name for f in world.tables.user.layout.fields if f.kind == "learned"] == []
    expected: dict[str, list[np.ndarray]] = {"u": [], "v": [], "w": []}
    batches = [[("u", 1), ("u", 1), ("v", 2)], [("v", 3), ("u", 4)], [("u", 5), ("u", 6), ("u", 7)]]
    for step, batch in enumerate(batches):
        parts = world.learn([world.click(u, f"i{n}", 10 * step + k) for k, (u, n) in enumerate(batch)])
        assert "mimic_user" not in parts
        for user, number in batch:
            expected[user].append(world.learner.embed_items(np.array([number])).numpy()[0])
    table = world.tables.user
    for user, seen in expected.items():
        slot = table.slots([user])
        assert table.floats(slot, "mean_count")[0, 0] == len(seen)
        mean = np.mean(seen, axis=0) if seen else np.zeros(4)
        np.testing.assert_allclose(table.floats(slot, "mean")[0], mean, rtol=1e-5, atol=1e-6)


def test_a_running_mean_forgets_what_is_longer_ago_than_its_memory() -> None:
    """Memory 2: each batch of one counts a half, once there are two."""
    world = world_of(12, *DEFAULT, "learning.rehearsal_ratio=0", "model.augmented_memory=2")
    mean = np.zeros(4)
    for step, number in enumerate([1, 2, 3, 4]):
        world.learn([world.click("u", f"i{number}", step)])
        share = 1.0 if step == 0 else 0.5
        mean += share * (world.learner.embed_items(np.array([number])).numpy()[0] - mean)
    slot = world.tables.user.slots(["u"])
    np.testing.assert_allclose(world.tables.user.floats(slot, "mean")[0], mean, rtol=1e-5, atol=1e-6)


def state_bytes(world: World, users: list[str], num_items: int) -> list[bytes]:
    """Return the bytes of rows and weights."""
    rows = row_bytes(world.tables.user, users) + row_bytes(world.tables.item, np.arange(num_items))
    return rows + [tensor.numpy().tobytes() for tensor in world.learner.model.state_dict().values()]


@pytest.mark.parametrize("loss", ["bce", "sampled_softmax"])
def test_a_negative_that_is_the_positive_has_no_influence(loss: str) -> None:
    """Nor has an empty place: all three batches learn the same, to the last bit."""
    shown = "learning.shown_negatives=2"
    results = []
    for first in ((3,), (3, 1), (3, -1)):
        world = world_of(
            6, *DEFAULT, "join.emit=at_close", shown, "learning.shared_negatives=0", f"model.loss={loss}"
        )
        world.learn([UserOp("u", 1, 0, 0, first), UserOp("v", 2, 0, 1, (4, 5))])
        results.append(state_bytes(world, ["u", "v"], 6))
    assert results[0] == results[1] == results[2]


def test_a_positive_alone_in_the_corpus_teaches_nothing_but_the_mimic() -> None:
    """Every draw is the positive itself: the softmax has one candidate, and towers and embeddings stay."""
    world = world_of(1, *DEFAULT)
    fresh = world_of(1, *DEFAULT)
    parts = world.learn([world.click("u", "i0", 0)])
    assert parts["main"] == 0.0
    assert parts["mimic_item"] > 0
    for (name, now), before in zip(
        world.learner.model.state_dict().items(), fresh.learner.model.state_dict().values(), strict=True
    ):
        assert torch.equal(now, before), name
    spans = world.tables.item.layout.span("embedding")
    assert np.array_equal(world.tables.item.rows_RW[:1, spans], fresh.tables.item.rows_RW[:1, spans])


@pytest.mark.parametrize(
    "preset",
    [
        DEFAULT,
        (*PAPER, "learning.negatives_per_positive=2"),
        *(
            (*DEFAULT, f"model.name={name}", "model.use_user_id=true")
            for name in ("youtube_dnn", "fm", "mind")
        ),
    ],
)
def test_rows_outside_the_batch_do_not_move(preset: tuple[str, ...]) -> None:
    world = world_of(60, *preset)
    users = [f"u{n}" for n in range(10)]
    for start in range(0, 30, 3):
        world.learn([world.click(users[k % 10], f"i{k * 7 % 60}", k) for k in range(start, start + 3)])
    users_before, items_before = (
        row_bytes(world.tables.user, users),
        row_bytes(world.tables.item, np.arange(60)),
    )
    examples, num_new = world.examples([world.click("u1", "i9", 40), world.click("u2", "i8", 41)])
    drawn = {*world.learner._own_negatives(examples).reshape(-1).tolist()}
    drawn |= {*world.learner._shared_negatives(examples).tolist()}
    in_batch = {9, 8, *drawn, *examples.records["history"].reshape(-1).tolist()}
    folded = row_bytes(world.tables.user, users)
    world.learner.step(examples, num_new, world.num_positives)
    items_after = row_bytes(world.tables.item, np.arange(60))
    users_after = row_bytes(world.tables.user, users)
    assert {n for n in range(60) if items_after[n] != items_before[n]} == in_batch - {-1}
    assert {u for u, a, b in zip(users, users_after, users_before, strict=True) if a != b} == {"u1", "u2"}
    assert users_after[1] != folded[1]


def test_rehearsed_examples_leave_counts_means_and_histories_alone() -> None:
    """A rehearsed example moves what is learned by gradient, and nothing that counts events."""
    world = world_of(30, *DEFAULT, "learning.rehearsal_ratio=8")
    for k in range(20):
        world.learn([world.click(f"u{k % 4}", f"i{k}", k)])
    table = world.tables.user
    before = table.rows_RW[table.slots(["u1", "u2", "u3"])].tobytes()
    world.learn([world.click("u0", "i25", 99)])
    assert {"u1", "u2", "u3"} & set(world.steps[-1][0].users[1:])
    assert table.rows_RW[table.slots(["u1", "u2", "u3"])].tobytes() == before
    items = world.tables.item
    counts = items.floats(items.slots(np.arange(30)), "frequency")[:, 0]
    assert counts.sum() == pytest.approx(21, rel=1e-3)
