"""What may not be published: nothing, nonsense, a collapsed model, IDs in the wrong order, an index that
finds too little.
"""

import numpy as np
import pytest

from feature_store.configuration import RefreshSettings
from feature_store.errors import GenerationError
from index_refresher.checks import check_embeddings, check_index
from index_refresher.index import ItemIndex

SETTINGS = RefreshSettings()
IDS = [f"i{n}" for n in range(200)]


def _items(num_items: int = 200) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(num_items, 6)).astype(np.float32)


def test_no_item_is_refused() -> None:
    with pytest.raises(GenerationError, match="no item is live"):
        check_embeddings([], np.zeros((0, 6), np.float32), 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_embeddings_that_are_not_finite_are_refused_by_name(bad: float) -> None:
    items = _items()
    items[[3, 7], 2] = bad
    with pytest.raises(GenerationError, match=r"2 of 200 items are not finite, first 'i3'"):
        check_embeddings(IDS, items, 6)


@pytest.mark.parametrize("value", [0.0, 0.3])
def test_a_collapsed_model_is_refused_even_with_a_popularity_column(value: float) -> None:
    towers = np.full((200, 5), value, np.float32) + np.float32(1e-6) * _items()[:, :5]
    items = np.concatenate([towers * (value > 0), _items()[:, :1]], axis=1)
    with pytest.raises(GenerationError, match="the model has collapsed"):
        check_embeddings(IDS, items, 5)


def test_the_spread_of_two_opposite_items_is_one_and_a_single_item_passes() -> None:
    assert check_embeddings(["a", "b"], np.array([[2, 0], [-2, 0]], np.float32), 2) == 1.0
    assert check_embeddings(["a"], np.array([[2, 0]], np.float32), 2) == 0.0


@pytest.mark.parametrize("ivf_from_items", [1, 10**6])
def test_a_good_index_passes(ivf_from_items: int) -> None:
    index = ItemIndex.build(IDS, _items(), RefreshSettings(ivf_from_items=ivf_from_items))
    assert check_index(index, _items(), _items()[:20] * 10, 0.9) == (1.0, 1.0)


def test_equal_items_pass_for_each_other() -> None:
    items = np.repeat(_items(100), 2, axis=0)
    index = ItemIndex.build(IDS, items, SETTINGS)
    assert check_index(index, items, items[:20], 1.0) == (1.0, 1.0)


def test_ids_in_the_wrong_order_are_refused() -> None:
    index = ItemIndex.build(IDS[1:] + IDS[:1], _items(), SETTINGS)
    items = np.roll(_items(), 1, axis=0)  # what check_index is told stands at each ID's place
    with pytest.raises(GenerationError, match="do not belong together"):
        check_index(index, items, items[:20], 0.9)


def test_low_recall_is_refused_with_what_to_do() -> None:
    """Four of 51 lists: much of the best hundred lies in others."""
    items = np.random.default_rng(0).normal(size=(2000, 6)).astype(np.float32)
    ids = [f"i{n}" for n in range(2000)]
    index = ItemIndex.build(ids, items, RefreshSettings(ivf_from_items=1, ivf_nprobe=4))
    with pytest.raises(
        GenerationError, match=r"less than refresh\.min_recall = 0\.9; raise refresh\.ivf_nprobe"
    ):
        check_index(index, items, items[:30], 0.9)
