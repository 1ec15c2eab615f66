"""What both kinds of index promise: the answers of exact search, or nearly so, and whole."""

import math
import threading

import faiss
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_store.configuration import RefreshSettings
from index_refresher.index import ItemIndex

F32 = npt.NDArray[np.float32]
WIDTH = 17
NUM_ITEMS = 3_000
FLAT = RefreshSettings(ivf_from_items=10**9)
IVF = RefreshSettings(ivf_from_items=1, ivf_nprobe=24)


def _clustered(num_items: int, seed: int) -> F32:
    """Items around 40 centres, of unequal length, with a popularity column that a few of them dominate."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(40, WIDTH - 1))
    towers = centres[rng.integers(40, size=num_items)] * 0.7 + rng.normal(size=(num_items, WIDTH - 1)) * 0.5
    towers /= np.linalg.norm(towers, axis=1, keepdims=True)
    popularity = 1.6 * math.sqrt(0.1) * np.log(rng.zipf(1.5, size=num_items).clip(max=10_000))
    return np.concatenate([towers, popularity[:, None]], axis=1).astype(np.float32)


def _queries(num_queries: int) -> F32:
    """Of users with histories of 0 to 20 positives: as `embed.py` makes them by default."""
    queries = _clustered(num_queries, seed=2) * 10
    queries[:, -1] = 4 / (4 + np.arange(num_queries) % 21) / math.sqrt(0.1)
    return queries


def _ids(num_items: int) -> list[str]:
    return [f"item-{i}" for i in range(num_items)]


@pytest.fixture(scope="module", params=["flat", "ivf"])
def index(request: pytest.FixtureRequest) -> ItemIndex:
    return ItemIndex.build(
        _ids(NUM_ITEMS), _clustered(NUM_ITEMS, 1), FLAT if request.param == "flat" else IVF
    )


def test_finds_what_exact_search_finds(index: ItemIndex) -> None:
    queries, k = _queries(64), 50
    exact = queries @ _clustered(NUM_ITEMS, 1).T
    best = np.argsort(-exact, axis=1)[:, :k]
    found = index.search(queries, k)
    recalls = [
        len({f"item-{i}" for i in row} & set(ids)) / k for row, ids in zip(best, found.item_ids, strict=True)
    ]
    assert np.mean(recalls) >= (1.0 if index.kind == "flat" else 0.95)


def test_scores_are_the_inner_products_in_descending_order(index: ItemIndex) -> None:
    items, queries = _clustered(NUM_ITEMS, 1), _queries(8)
    found = index.search(queries, 20)
    for query, ids, scores in zip(queries, found.item_ids, found.scores, strict=True):
        assert scores == sorted(scores, reverse=True)
        expected = [float(items[int(item_id.removeprefix("item-"))] @ query) for item_id in ids]
        assert scores == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_gives_every_item_once_when_k_exceeds_them(index: ItemIndex) -> None:
    """The probed lists of an IVF index hold too few for that; -1 must never name an item."""
    found = index.search(_queries(3), NUM_ITEMS + 100)
    for ids, scores in zip(found.item_ids, found.scores, strict=True):
        assert sorted(ids) == sorted(_ids(NUM_ITEMS))
        assert np.isfinite(scores).all()


def test_refuses_queries_that_are_not_finite(index: ItemIndex) -> None:
    queries = _queries(3)
    queries[1, 4] = np.nan
    with pytest.raises(ValueError, match="1 of 3 queries are not finite, first number 1"):
        index.search(queries, 5)


@pytest.mark.parametrize(("width", "k"), [(WIDTH - 1, 5), (WIDTH + 1, 5), (WIDTH, 0), (WIDTH, -1)])
def test_refuses_other_widths_and_senseless_k(index: ItemIndex, width: int, k: int) -> None:
    with pytest.raises(ValueError, match="cannot search"):
        index.search(np.ones((2, width), np.float32), k)


def test_answers_a_zero_query_and_no_query(index: ItemIndex) -> None:
    found = index.search(np.zeros((1, WIDTH), np.float32), 4)
    assert found.scores == [[0.0] * 4]
    assert len(set(found.item_ids[0])) == 4
    assert index.search(np.zeros((0, WIDTH), np.float32), 4) == ([], [])


def test_answers_the_same_after_a_round_trip(index: ItemIndex) -> None:
    again = ItemIndex.decode(*index.encode(), num_threads=1)
    assert again.search(_queries(5), 30) == index.search(_queries(5), 30)
    assert (again.kind, again.item_ids) == (index.kind, index.item_ids)


def test_the_same_items_make_the_same_bytes(index: ItemIndex) -> None:
    same = FLAT if index.kind == "flat" else IVF
    assert ItemIndex.build(_ids(NUM_ITEMS), _clustered(NUM_ITEMS, 1), same).encode() == index.encode()


def test_searches_with_the_set_number_of_threads_in_every_thread(index: ItemIndex) -> None:
    """OpenMP keeps the number per thread: one set in the main thread says nothing of a server's workers."""
    seen: list[int] = []

    def work() -> None:
        faiss.omp_set_num_threads(3)
        index.search(_queries(1), 1)
        seen.append(faiss.omp_get_max_threads())

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    assert seen == [1]


@pytest.mark.parametrize("kind", [FLAT, IVF])
def test_refuses_repeated_ids(kind: RefreshSettings) -> None:
    with pytest.raises(ValueError, match="item IDs repeat"):
        ItemIndex.build(["a", "b", "a"], np.eye(3, dtype=np.float32), kind)


def test_refuses_bytes_that_do_not_fit_together() -> None:
    vectors, items = ItemIndex.build(["a", "b"], np.eye(2, dtype=np.float32), FLAT).encode()
    _, others = ItemIndex.build(["a", "b", "c"], np.eye(3, dtype=np.float32), FLAT).encode()
    for index, ids in ((vectors, others), (vectors[:20], items), (b"", items), (vectors, b"\xc1")):
        with pytest.raises(ValueError, match=r"does not parse|vectors of width"):
            ItemIndex.decode(index, ids, num_threads=1)


def test_nprobe_never_exceeds_the_lists() -> None:
    """40 items make one list: the index is exact then."""
    items = _clustered(40, 1)
    index = ItemIndex.build(_ids(40), items, RefreshSettings(ivf_from_items=1, ivf_nprobe=64))
    best = np.argmax(_queries(6) @ items.T, axis=1)
    assert index.kind == "ivf"
    assert [ids[0] for ids in index.search(_queries(6), 1).item_ids] == [f"item-{i}" for i in best]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_small_indexes_of_both_kinds_equal_brute_force(data: st.DataObject) -> None:
    """Small whole numbers: inner products are exact, and ties are many."""
    num_items = data.draw(st.integers(1, 12))
    numbers = st.integers(-3, 3)
    items = np.array(data.draw(st.lists(st.tuples(numbers, numbers), min_size=num_items, max_size=num_items)))
    query = np.array([data.draw(st.tuples(numbers, numbers))], np.float32)
    k = data.draw(st.integers(1, 15))
    expected = sorted((items @ query[0]).tolist(), reverse=True)[:k]
    for kind in (FLAT, IVF):
        found = ItemIndex.build(_ids(num_items), items.astype(np.float32), kind).search(query, k)
        assert found.scores[0] == pytest.approx(expected, abs=1e-4)
        assert len(set(found.item_ids[0])) == len(expected)
