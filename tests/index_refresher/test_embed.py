"""What is served equals what was learned: embeddings of the store's rows against the learner's own."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from learning import Shop, configuration, shop_events

from feature_store.configuration import RefreshSettings
from feature_store.errors import StoreError
from feature_store.schema import Click, Deleted, EventKind, Impression, ItemFeatures, UserFeatures
from feature_store.store import FeatureStore
from feature_store.store_reader import FeatureStoreReader
from index_refresher.embed import QueryEmbedder, embed_corpus
from index_refresher.names import StoreNames
from index_refresher.refresher import check_queries, make_draft
from stream_trainer.examples import UserOp, UserOps, fold_users
from stream_trainer.models.retrieval import best_scores

SETTINGS = (
    "model.hidden=[16]",
    "model.embedding_dim=8",
    "model.output_dim=8",
    "model.augmented_dim=8",
    "model.history_length=4",
    "learning.batch_size=16",
    "learning.shared_negatives=16",
    "learning.rehearsal_ratio=2",
    "learning.frequency_half_life=100",
    "features.item_categorical={colour=2, category=1}",  # not in order of names: theirs counts
    'features.item_numeric=["price"]',
    "features.user_categorical={country=1}",
    'features.user_numeric=["age"]',
)
PAPER = (*SETTINGS, "model.preset=paper", "model.last_relu=false", "model.history_length=0")
PRESETS = {
    "default": SETTINGS,
    "paper": PAPER,
    "two-tower": (*SETTINGS, "model.name=two_tower", "model.use_user_id=true"),
    "youtube-dnn": (*SETTINGS, "model.name=youtube_dnn"),
    "fm": (*SETTINGS, "model.name=fm", "model.use_user_id=true", "model.history_length=0"),
    "mind": (*SETTINGS, "model.name=mind", "model.num_interests=3"),
    "learned": (*SETTINGS, "model.user_augmented=learned", "model.item_augmented=learned"),
}
USERS = [f"u{n}" for n in range(12)]


@pytest.fixture(params=PRESETS)
def shop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shop]:
    """A trained and committed shop: items with and without features, some of them deleted."""
    opened = Shop(configuration(*PRESETS[request.param]), tmp_path)
    opened.apply(shop_events(8, num_clicks=120))
    opened.apply([ItemFeatures(id="i3", ts_ms=9000, features={"colour": ["red", "blue"], "price": 7.0})])
    opened.apply([UserFeatures(id=user, ts_ms=9001, features={"country": f"n{user}"}) for user in USERS[:6]])
    opened.apply([ItemFeatures(id="new", ts_ms=9002), Deleted(kind=EventKind.ITEM, id="i5", ts_ms=9003)])
    opened.session.flush()
    opened.commit()
    yield opened
    opened.close()


@pytest.fixture
def reader(shop: Shop, tmp_path: Path) -> Iterator[FeatureStoreReader]:
    opened = FeatureStoreReader(tmp_path)
    opened.catch_up()
    yield opened
    opened.close()


def learner_items(shop: Shop) -> np.ndarray:
    shop.state.tables.item.begin_batch()
    return shop.state.learner.embed_items(shop.state.corpus.numbers.copy()).numpy()


def learner_queries(shop: Shop, users: list[str]) -> np.ndarray:
    """Return p_u of users' next examples. Changes their rows in memory: nothing is committed after it."""
    state = shop.state
    for table in state.tables:
        table.begin_batch()
    item = int(state.corpus.numbers[0])
    examples = fold_users(state.tables.user, UserOps(UserOp(user, item) for user in users), state.widths)
    return state.learner.embed_examples(examples).numpy()


def test_items_are_embedded_as_the_learner_does(shop: Shop, reader: FeatureStoreReader) -> None:
    corpus = embed_corpus(reader, batch_size=7)
    ids = [shop.state.item_numbers.name(number) for number in shop.state.corpus.numbers.tolist()]
    assert corpus.item_ids == ids
    assert corpus.commit == shop.state.last_commit
    items = learner_items(shop)
    np.testing.assert_allclose(corpus.embeddings_ND[:, : items.shape[1]], items, atol=1e-6)
    once = embed_corpus(reader).embeddings_ND
    np.testing.assert_allclose(corpus.embeddings_ND, once, atol=1e-6)


def test_popularity_is_the_last_column(shop: Shop, reader: FeatureStoreReader) -> None:
    """weight × log of (decayed count + 1), over its mean. Counts are worked out again from the rows."""
    corpus, state = embed_corpus(reader), shop.state
    table, numbers = state.tables.item, state.corpus.numbers.copy()
    table.begin_batch()
    slots = table.slots(numbers)
    counts = []
    for count, at in zip(
        table.floats(slots, "frequency")[:, 0], table.ints(slots, "frequency_at")[:, 0], strict=True
    ):
        counts.append(float(count) * 2.0 ** ((int(at) - state.num_positives) / 100))
    assert corpus.popularity_N.tolist() == pytest.approx(counts, rel=1e-5)
    assert max(counts) > 1
    weight = state.config.model.popularity_weight * math.sqrt(state.config.model.temperature)
    assert corpus.embeddings_ND.shape[1] == learner_items(shop).shape[1] + bool(weight)
    if weight:
        mean = (sum(counts) + len(counts)) / len(counts)
        expected = [weight * math.log((count + 1) / mean) for count in counts]
        assert corpus.embeddings_ND[:, -1].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_deleted_items_are_absent(shop: Shop, reader: FeatureStoreReader) -> None:
    corpus = embed_corpus(reader)
    assert "new" in corpus.item_ids
    assert "i5" not in corpus.item_ids
    assert len(set(corpus.item_ids)) == len(corpus.item_ids) == len(shop.state.corpus)


def test_queries_are_embedded_as_the_learner_does(shop: Shop, reader: FeatureStoreReader) -> None:
    """Also those of a user never heard of. A query is divided by the temperature, and asks for popularity."""
    corpus = embed_corpus(reader)
    users = [*USERS, "stranger"]
    queries = QueryEmbedder(corpus.trained, StoreNames(reader)).embed(users)
    model = shop.state.config.model
    expected = learner_queries(shop, users)
    scaled = queries.embeddings_QD[..., : expected.shape[-1]] * model.temperature
    np.testing.assert_allclose(scaled, expected, atol=1e-6)
    if model.popularity_weight:
        half = model.popularity_history
        root = math.sqrt(model.temperature)
        counts = [half / (half + len(items)) / root for items in queries.history]
        asked = queries.embeddings_QD[..., -1].reshape(len(users), -1)
        np.testing.assert_allclose(asked, np.tile(counts, (asked.shape[1], 1)).T, rtol=1e-6)
    assert not queries.known_Q[-1]
    assert queries.known_Q[:-1].any()


def test_a_score_is_the_inner_product_over_temperature_plus_popularity(
    shop: Shop, reader: FeatureStoreReader
) -> None:
    corpus = embed_corpus(reader)
    queries = QueryEmbedder(corpus.trained, StoreNames(reader)).embed(USERS).embeddings_QD
    scores = best_scores(queries, corpus.embeddings_ND)
    model = shop.state.config.model
    rows = shop.state.tables.user
    rows.begin_batch()
    num_learned_Q = (rows.ints(rows.slots(USERS), "history") >= 0).sum(1)
    weight_Q = model.popularity_weight * 4 / (4 + num_learned_Q)  # half of it after four positives
    popularity = np.log((corpus.popularity_N + 1) / (corpus.popularity_N + 1).mean())
    expected = best_scores(learner_queries(shop, USERS), learner_items(shop)) / model.temperature
    np.testing.assert_allclose(scores, expected + weight_Q[:, None] * popularity, atol=2e-5)


def test_a_history_is_the_users_newest_clicks(shop: Shop, reader: FeatureStoreReader) -> None:
    corpus = embed_corpus(reader)
    length = shop.state.config.model.history_length
    items = ["i7", "new", "i9", "i11", "i13"]
    for n, item in enumerate(items):
        ts_ms = 10_000 + n
        shop.apply(
            [
                Impression(impression_id=f"last{n}", user_id="u1", ts_ms=ts_ms, items=[item]),
                Click(impression_id=f"last{n}", user_id="u1", item_id=item, ts_ms=ts_ms),
            ]
        )
    shop.session.flush()
    shop.commit()
    reader.catch_up()
    embedder = QueryEmbedder(corpus.trained, StoreNames(reader))
    queries = embedder.embed(["u1", "stranger"])
    assert queries.history == ([items[-length:], []] if length else [[], []])
    assert queries.known_Q.tolist() == [True, False]


def test_queries_keep_the_towers_of_their_generation(shop: Shop, reader: FeatureStoreReader) -> None:
    """Rows move on with the commits; the towers stay those that the items were embedded under."""
    corpus = embed_corpus(reader)
    embedder = QueryEmbedder(corpus.trained, StoreNames(reader))
    stranger = embedder.embed(["stranger"]).embeddings_QD
    shop.apply(shop_events(9, num_clicks=60)[40:])
    shop.session.flush()
    shop.commit()
    reader.catch_up()
    assert embed_corpus(reader).trained.towers != corpus.trained.towers
    np.testing.assert_array_equal(embedder.embed(["stranger"]).embeddings_QD, stranger)
    newer = QueryEmbedder(embed_corpus(reader).trained, StoreNames(reader))
    assert (newer.embed(["stranger"]).embeddings_QD != stranger).any()


def test_a_value_newer_than_the_view_is_missing_until_caught_up(
    shop: Shop, reader: FeatureStoreReader
) -> None:
    """A query may name feature values and items that came after the embedder was made."""
    corpus = embed_corpus(reader)
    embedder = QueryEmbedder(corpus.trained, StoreNames(reader))
    embedder.embed(USERS)
    shop.apply([UserFeatures(id="u2", ts_ms=10_000, features={"country": "unheard of"})])
    shop.session.flush()
    shop.commit()
    reader.catch_up()
    expected = learner_queries(shop, ["u2"])
    found = embedder.embed(["u2"]).embeddings_QD[..., : expected.shape[-1]]
    np.testing.assert_allclose(found * shop.state.config.model.temperature, expected, atol=1e-6)


def test_a_generation_of_any_model_passes_its_checks(shop: Shop, reader: FeatureStoreReader) -> None:
    """Each interest of a user is a query by itself."""
    corpus = embed_corpus(reader)
    queries = check_queries(corpus, reader)
    users = list(reader.items("user"))
    num_interests = 3 if shop.state.config.model.name == "mind" else 1
    assert queries.shape == (len(users) * num_interests, corpus.embeddings_ND.shape[1])
    assert make_draft(corpus, queries, RefreshSettings()).checks.recall == 1


def test_a_store_without_a_model_says_what_to_start(tmp_path: Path) -> None:
    FeatureStore(tmp_path).close()
    reader = FeatureStoreReader(tmp_path)
    with pytest.raises(StoreError, match="stream-trainer commit first"):
        embed_corpus(reader)
    reader.close()


def test_an_empty_corpus_is_empty(tmp_path: Path) -> None:
    shop = Shop(configuration(*SETTINGS), tmp_path)
    shop.commit()
    reader = FeatureStoreReader(tmp_path)
    reader.catch_up()
    corpus = embed_corpus(reader)
    assert (corpus.item_ids, len(corpus.embeddings_ND), len(corpus.popularity_N)) == ([], 0, 0)
    queries = QueryEmbedder(corpus.trained, StoreNames(reader)).embed(["stranger"])
    assert bool(np.isfinite(queries.embeddings_QD).all())
    assert not queries.known_Q.any()
    reader.close()
    shop.close()
