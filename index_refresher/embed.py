"""From the feature store to embeddings: all live items under one commit's towers, and queries under a
generation's.

Owns the reading of rows for serving. Never writes anything, and never trains: no dropout, no gradient. What
is searched by inner product is the model's output, the queries' over the temperature, with one column more:
weight × log popularity for items, how much it counts for queries. The items' is multiplied and the queries'
divided by the temperature's root: an IVF index, which groups items by all their columns, finds most so.
Legend: N items, Q queries, I interests, D embedding width (one more than the model's where popularity
counts), W row width, L history length.
"""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import msgpack
import numpy as np
import numpy.typing as npt
import safetensors.torch
import torch
from torch import Tensor

from feature_store.configuration import FeatureSettings, ModelSettings
from feature_store.errors import StoreError
from feature_store.item_changes import KEY, ItemChanges
from feature_store.row_layout import RowLayout
from feature_store.store import CommitInfo
from feature_store.store_reader import StoreReader
from index_refresher.contents import Trained
from index_refresher.names import StoreNames
from stream_trainer.models import frequency
from stream_trainer.models.factory import make_model, row_layouts
from stream_trainer.models.loops import pool_values
from stream_trainer.models.retrieval import History, ItemInputs, UserInputs

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]


class EmbeddedCorpus(NamedTuple):
    """All items that may be recommended, under the towers of one commit."""

    commit: CommitInfo
    item_ids: list[str]
    embeddings_ND: F32
    popularity_N: F32
    trained: Trained
    num_item_changes: int = 0
    """How many changes of items there were up to this commit."""


class QueryEmbeddings(NamedTuple):
    """Queries to be searched. `known_Q`: the user has a history; `history`: item IDs, the newest last."""

    embeddings_QD: F32
    """(Q, D), or (Q, I, D) of a model with several interests."""
    known_Q: npt.NDArray[np.bool_]
    history: list[list[str]]


class Rows(NamedTuple):
    """Rows (n, W) of one table, as they are stored."""

    layout: RowLayout
    data_nW: F32

    def floats(self, name: str) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(self.data_nW[:, self.layout.span(name)]))

    def floats_or_none(self, name: str) -> Tensor | None:
        """Return a field, None if the model's rows have no such field."""
        return self.floats(name) if any(field.name == name for field in self.layout.fields) else None

    def ints(self, name: str) -> Tensor:
        return torch.from_numpy(
            np.ascontiguousarray(self.data_nW.view(np.int32)[:, self.layout.span(name)])
        ).long()


class Scorer:
    """The model of one commit over rows as they are read: what corpus and queries have in common."""

    def __init__(self, trained: Trained, names: StoreNames) -> None:
        stored = json.loads(trained.model)
        self.settings = ModelSettings(**stored["model"])
        self.features = FeatureSettings(**stored["features"])
        self._half_life = float(stored["learning"]["frequency_half_life"])
        self.reader = names.reader
        self._store = trained.store
        self._seed = int(stored["learning"]["seed"])
        self._layouts = row_layouts(self.settings, self.features, stored["learning"]["rows_optimiser"])
        self._value_names = names.values
        self.model = make_model(self.settings, self.features)
        self.model.load_state_dict(safetensors.torch.load(trained.towers))
        self.model.eval()

    @property
    def fits(self) -> bool:
        """Whether the reader shows the store that the model is of: other rows mean nothing to it, and may
        have another width.
        """
        return self.reader.identity == self._store

    def rows(self, table: str, keys: list[bytes]) -> tuple[Rows, npt.NDArray[np.bool_]]:
        """Read rows; IDs that have none get those of new IDs, and False."""
        layout = self._layouts[table]
        values = self.reader.get(table, keys)
        known = np.array([value is not None for value in values], bool)
        data = layout.new_rows(self._seed, keys)
        if known.any():
            stored = b"".join(value for value in values if value is not None)
            data[known] = np.frombuffer(stored, np.float32).reshape(-1, layout.width)
        return Rows(layout, data), known

    def pooled_values(self, codes_nC: Tensor, counts: list[int]) -> Tensor | None:
        """Return the embeddings of categorical values, pooled per feature; values newer than this view count
        as missing.
        """
        if not counts:
            return None
        names = self._value_names.up_to(int(codes_nC.max()))
        codes_nC = codes_nC.masked_fill(codes_nC >= len(names), -1)
        unique, inverse = np.unique(codes_nC.numpy(), return_inverse=True)
        missing = int(unique[0] < 0)
        rows, _ = self.rows("value", [names[code] for code in unique[missing:].tolist()])
        places = torch.from_numpy(inverse.reshape(codes_nC.shape) - missing)
        return pool_values(rows.floats("embedding"), places, counts)

    def popularity(self, rows: Rows, num_positives: int) -> F32:
        """Return the decayed counts of positives (n,) of items, as of so many positives."""
        count_n, at_n = rows.floats("frequency")[:, 0].numpy(), rows.ints("frequency_at")[:, 0].numpy()
        return frequency.decayed(count_n, at_n, num_positives, self._half_life)

    def item_embeddings(self, rows: Rows) -> F32:
        """Return p_v of rows (n, D of the tower)."""
        counts = list(self.features.item_categorical.values())
        inputs = ItemInputs(
            rows.floats("embedding"),
            rows.floats_or_none("augmented"),
            self.pooled_values(rows.ints("values"), counts),
            rows.floats("numbers"),
            rows.floats_or_none("weight"),
        )
        with torch.no_grad():
            embedded: F32 = self.model.embed_items(inputs).numpy()
        return embedded


def embed_corpus(reader: StoreReader, batch_size: int = 8192) -> EmbeddedCorpus:
    """Embed every live item under the towers of the commit that the reader shows.

    Raises:
        StoreError: nothing is committed yet.
    """
    meta = dict(reader.items("meta"))
    towers = reader.get("dense", [b"weights"])[0]
    if towers is None or b"config" not in meta:
        raise StoreError(
            "the feature store holds no commit with a model yet; let stream-trainer commit first"
        )
    trained = Trained(towers, meta[b"config"].decode(), reader.identity)
    progress = msgpack.unpackb(meta[b"progress"])
    scorer = Scorer(trained, StoreNames(reader))
    ids_of = [value for _, value in reader.items("item_number")]
    places = {
        int.from_bytes(value, "big", signed=True): int.from_bytes(key, "big")
        for key, value in reader.items("corpus")
    }
    keys = [ids_of[places[place]] for place in sorted(places) if place >= 0]
    embedded, popularity = [], []
    for start in range(0, len(keys), batch_size):
        rows, _ = scorer.rows("item", keys[start : start + batch_size])
        embedded.append(scorer.item_embeddings(rows))
        popularity.append(scorer.popularity(rows, progress["num_positives"]))
    width = scorer.settings.output_dim
    p_ND = np.concatenate(embedded) if embedded else np.zeros((0, width), np.float32)
    popularity_N = np.concatenate(popularity) if popularity else np.zeros(0, np.float32)
    return EmbeddedCorpus(
        reader.commit_info,
        [key.decode() for key in keys],
        with_popularity(p_ND, popularity_N, popularity_N.sum(), len(popularity_N), scorer.settings),
        popularity_N,
        trained,
        ItemChanges(meta.get(KEY)).total,
    )


def with_popularity(
    p_nD: F32, popularity_n: F32, total: float, num_items: int, settings: ModelSettings
) -> F32:
    """Append the column that adds weight × log frequency to every score; one pseudo-count an item, so that
    none is -inf. `total` and `num_items` are the whole corpus', which the n items may be a part of.
    """
    if not settings.popularity_weight or not len(p_nD):
        return p_nD
    shares_n = (popularity_n + 1) / (total + num_items)
    weight = settings.popularity_weight * math.sqrt(settings.temperature)
    column_n1 = (weight * np.log(shares_n * num_items)).astype(np.float32)[:, None]
    return np.concatenate([p_nD, column_n1], axis=1)


def _asking_for_popularity(p_QD: F32, num_positives_Q: I64, settings: ModelSettings) -> F32:
    """Append the column by which popularity counts: h / (h + n) for n positives in the history. The more is
    known of somebody, the less is to be learned from what all others want.
    """
    half = settings.popularity_history
    counts_Q = (half / (half + num_positives_Q) / math.sqrt(settings.temperature)).astype(np.float32)
    column = np.broadcast_to(counts_Q.reshape(-1, *[1] * (p_QD.ndim - 1)), (*p_QD.shape[:-1], 1))
    return np.concatenate([p_QD, column], axis=-1)


class QueryEmbedder:
    """The user tower of one generation over the newest committed rows. For one thread at a time, as its
    reader.
    """

    def __init__(self, trained: Trained, names: StoreNames) -> None:
        self._scorer = Scorer(trained, names)
        self._item_names = names.items

    def embed(self, user_ids: Sequence[str]) -> QueryEmbeddings:
        """Embed users as they stand in the reader's commit; unknown users get the embedding of an empty
        history. Where the reader shows another store, all are unknown.
        """
        scorer = self._scorer
        if not scorer.fits:
            width = scorer.settings.output_dim + bool(scorer.settings.popularity_weight)
            none_QD = np.zeros((len(user_ids), width), np.float32)
            return QueryEmbeddings(none_QD, np.zeros(len(user_ids), bool), [[] for _ in user_ids])
        rows, known_Q = scorer.rows("user", [user.encode() for user in user_ids])
        codes_QL = rows.ints("history").numpy()
        settings = scorer.settings
        mean = rows.floats_or_none("mean")
        inputs = UserInputs(
            rows.floats_or_none("embedding"),
            self._history(codes_QL) if settings.history_length else None,
            rows.floats_or_none("augmented") if mean is None else mean,
            scorer.pooled_values(rows.ints("values"), list(scorer.features.user_categorical.values())),
            rows.floats("numbers"),
        )
        with torch.no_grad():
            p_QD: F32 = (scorer.model.embed_users(inputs) / settings.temperature).numpy()
        if settings.popularity_weight:
            p_QD = _asking_for_popularity(p_QD, (codes_QL >= 0).sum(1), settings)
        history = [self._ids(codes[codes >= 0]) for codes in codes_QL]
        if settings.history_length:
            known_Q = known_Q & (codes_QL >= 0).any(1)
        return QueryEmbeddings(p_QD, known_Q, history)

    def _history(self, codes_QL: npt.NDArray[np.int64]) -> History:
        unique, inverse = np.unique(codes_QL, return_inverse=True)
        missing = int(len(unique) > 0 and unique[0] < 0)
        rows, _ = self._scorer.rows("item", [key.encode() for key in self._ids(unique[missing:])])
        places = torch.from_numpy(inverse.reshape(codes_QL.shape) - missing)
        return History(rows.floats("embedding"), places)

    def _ids(self, codes: npt.NDArray[np.int64]) -> list[str]:
        names = self._item_names.up_to(int(codes.max(initial=-1)))
        return [names[code].decode() for code in codes.tolist()]
