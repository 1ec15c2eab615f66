"""Every setting of every daemon, in one tree: the TOML file's sections and keys, their bounds and their
reasons.

Owns names, defaults and checks. Never reads a file or the environment: that is `settings.py`. One tree for
all programs, so that one file configures the whole system and a misspelt key is an error whichever program
reads it first.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from feature_store.schema import EventKind


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class StoreSettings(_Section):
    """Where the trainer's state lives."""

    path: Path = Field(Path("build/store"), description="folder of the RocksDB feature store")
    row_memory_mib: int = Field(1024, ge=1, description="memory for rows; colder rows are read from RocksDB")
    own_process: bool = Field(True, description="write commits and read ahead in a process of its own")


class LogSettings(_Section):
    """Where events come from."""

    kind: Literal["file", "kafka"] = Field("file", description="embedded file log, or Apache Kafka")
    path: Path = Field(Path("build/log"), description="folder of the embedded log (kind = file)")
    bootstrap_servers: str = Field(
        "127.0.0.1:9092", description="Kafka brokers, comma separated (kind = kafka)"
    )
    client: dict[str, str | int | float | bool] = Field(
        default_factory=dict,
        description="passed to kafka-python as it is: security_protocol, sasl_mechanism, ssl_cafile, …",
    )
    group_id: str = Field("dualstream-trainer", description="group under which progress is reported to Kafka")


class TopicSettings(_Section):
    """The topics' names."""

    items: str = Field("items", min_length=1, description="item upserts and deletes (compacted)")
    users: str = Field("users", min_length=1, description="user upserts and deletes (compacted)")
    impressions: str = Field("impressions", min_length=1, description="slates shown")
    clicks: str = Field("clicks", min_length=1, description="clicks on slates")
    dead_letters: str = Field("dead-letters", min_length=1, description="where bad messages go")

    def kinds(self) -> dict[str, EventKind]:
        """Return the kind of event that each topic carries."""
        return {
            self.items: EventKind.ITEM,
            self.users: EventKind.USER,
            self.impressions: EventKind.IMPRESSION,
            self.clicks: EventKind.CLICK,
        }

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len({*self.kinds(), self.dead_letters}) != 5:
            raise ValueError("the five topic names must differ")
        return self


class JoinSettings(_Section):
    """How impressions and clicks become examples."""

    attribution_window_seconds: float = Field(
        3600, gt=0, description="how long an impression waits for clicks"
    )
    allowed_lateness_seconds: float = Field(60, ge=0, description="how far events may be out of order")
    max_ahead_seconds: float = Field(3600, gt=0, description="so much later than its record is refused")
    emit: Literal["on_click", "at_close"] = Field("on_click", description="when a positive is emitted")
    late: Literal["train", "drop"] = Field("drop", description="clicks after the window")
    unmatched: Literal["train", "drop"] = Field("drop", description="clicks without an impression")
    max_waiting_impressions: int = Field(
        200_000, ge=1, description="buffer bound; beyond it the oldest close early"
    )
    max_waiting_clicks: int = Field(50_000, ge=1, description="bound; beyond it the oldest are unmatched")
    idle_timeout_seconds: float = Field(2.0, gt=0, description="live: how long a silent partition holds all")
    own_process: bool = Field(True, description="read and join in a process beside the one that learns")


class FeatureSettings(_Section):
    """Which features of the events the model sees. Others are ignored."""

    item_categorical: dict[str, int] = Field(
        {"category": 1}, description="name = how many values of a list are kept"
    )
    item_numeric: list[str] = Field([], description="numbers of an item, e.g. price")
    user_categorical: dict[str, int] = Field({}, description="as item_categorical")
    user_numeric: list[str] = Field([], description="numbers of a user, e.g. num_reviews")
    category: str = Field(
        "category", description="the item feature that Category Alignment Loss groups by; '' = none"
    )

    @field_validator("item_categorical", "user_categorical")
    @classmethod
    def _in_order_of_names(cls, counts: dict[str, int]) -> dict[str, int]:
        """Columns of rows stand in this order, for all who read a store: a file may list its keys in any."""
        for name, count in counts.items():
            if not 1 <= count <= 32:
                raise ValueError(f"feature '{name}' keeps {count} values; 1 to 32 are possible")
        return dict(sorted(counts.items()))


class ModelSettings(_Section):
    """The model and its losses (Yu et al. 2021). Presets set these together: `feature_store/presets.py`."""

    preset: str = Field(
        "default",
        description="default | paper | paper_mended | reproduction | youtube_dnn | fm | mind: "
        "starting values of [model] and [learning]",
    )
    name: Literal["dat", "two_tower", "youtube_dnn", "fm", "mind"] = Field("dat", description="which model")
    embedding_dim: int = Field(32, ge=1, le=1024, description="K, width of ID and category embeddings")
    augmented_dim: int = Field(32, ge=0, le=1024, description="d, width of the augmented vectors; 0 = none")
    init_scale: float = Field(
        0.02, gt=0, le=1, description="new embeddings are uniform in ± this, by the hash of the ID"
    )
    numeric_dim: int = Field(8, ge=1, le=256, description="width of the layer over a numeric feature")
    hidden: list[int] = Field([256, 128], description="widths of the towers' hidden layers")
    output_dim: int = Field(32, ge=1, le=1024, description="width of the towers' output")
    last_relu: bool = Field(False, description="ReLU after the last layer (the paper; collapses)")
    normalise: bool = Field(True, description="embeddings of length one, so that scores are cosines")
    residual: bool = Field(
        True, description="add the ID (items) or pooled history (users) embedding to the output"
    )
    dropout: float = Field(0.3, ge=0, lt=1, description="on the towers' inputs")
    use_user_id: bool = Field(False, description="the user's ID as a feature")
    history_length: int = Field(
        20, ge=0, le=200, description="newest past positives pooled in the user tower"
    )
    history_decay: float = Field(
        0.6, gt=0, le=1, description="weight of a past positive ÷ the next newer one's at the start; learned"
    )
    user_augmented: Literal["learned", "running_mean"] = Field(
        "running_mean", description="a_u by gradient and mimic loss (paper), or as the leak-free mean of p_v"
    )
    augmented_memory: float = Field(
        4.0, ge=1, description="positives that the running mean looks back over; 1e9 = all of them alike"
    )
    item_augmented: Literal["learned", "mimic_only"] = Field(
        "mimic_only", description="a_v by both losses (paper), or by the mimic loss alone, its input detached"
    )
    augmented_dropout: float = Field(
        0.5, ge=0, le=1, description="share of items whose a_v stays out of the residual in training; 1 = all"
    )
    num_interests: int = Field(
        5, ge=1, le=32, description="mind: most capsules of a user; log2 of the history"
    )
    routing_iterations: int = Field(3, ge=1, le=10, description="mind: R of the dynamic routing")
    label_attention_power: float = Field(
        1.0, ge=1, le=8, description="mind: p; larger trains the interest nearest to the positive alone"
    )
    own_tower_mimic: bool = Field(
        False, description="the reproduction's equation: a_u mimics p_u, a_v mimics p_v"
    )
    lambda_user: float = Field(0.5, ge=0, description="λ1, weight of loss_u")
    lambda_item: float = Field(0.5, ge=0, description="λ2, weight of loss_v")
    lambda_cal: float = Field(0.0, ge=0, description="λ3, weight of the Category Alignment Loss")
    loss: Literal["bce", "sampled_softmax"] = Field("sampled_softmax", description="the main loss")
    temperature: float = Field(0.1, gt=0, description="scores are divided by it")
    logq: bool = Field(False, description="subtract log of each candidate's expected count from its score")
    popularity_weight: float = Field(1.6, ge=0, description="times log frequency, added to the scores served")
    popularity_history: float = Field(4.0, gt=0, description="as many in a history halve that weight")


class LearningSettings(_Section):
    """Batches, negatives, rehearsal and optimisers."""

    seed: int = Field(0, ge=0, description="of initial rows and weights, draws and dropout")
    batch_size: int = Field(64, ge=1, le=65_536, description="new positives in a step")
    max_wait_seconds: float = Field(1.0, gt=0, description="live: a batch not full learns after this")
    negatives_per_positive: int = Field(
        0, ge=0, le=1000, description="S, uniform over the corpus, own to each positive"
    )
    shared_negatives: int = Field(
        2048, ge=0, le=65_536, description="uniform over the corpus, shared by the batch"
    )
    in_batch_negatives: bool = Field(False, description="the other positives' items of the batch")
    shown_negatives: int = Field(
        0, ge=0, le=200, description="shown, not clicked (needs join.emit = at_close)"
    )
    rehearsal_ratio: int = Field(2, ge=0, le=64, description="learned examples drawn per new one")
    rehearsal_recent_share: float = Field(0.5, ge=0, le=1, description="those that favour the newest")
    rehearsal_half_life: float = Field(500, gt=0, description="in examples: so much older, half as likely")
    rehearsal_capacity: int = Field(200_000, ge=0, description="newest learned examples kept for it")
    frequency_half_life: float = Field(
        5_000, gt=0, description="positives after which a past positive counts half in an item's frequency"
    )
    rows_optimiser: Literal["adam", "rowwise_adam", "adagrad"] = Field(
        "adagrad", description="its state: two numbers a weight (adam), one a weight, or one a row"
    )
    rows_learning_rate: float = Field(0.05, gt=0, description="of per-ID rows")
    dense_learning_rate: float = Field(1e-3, gt=0, description="of tower weights (Adam)")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="of the towers' layers when learning; all else, and serving, is float32"
    )
    num_threads: int = Field(1, ge=1, le=256, description="of torch; bits are the same only at the same")
    gradient_thread: bool = Field(True, description="with num_threads = 1: another for weights' gradients")
    commit_interval_seconds: float = Field(10.0, ge=0, description="time between commits")
    commit_every_batches: int = Field(0, ge=0, description="commit by count instead; 0 = by time")
    prequential_every: int = Field(
        25, ge=0, description="rank one batch in this many over the corpus first; 0 = never"
    )
    prequential_max_items: int = Field(50_000, ge=1, description="larger corpora are thinned evenly for that")


class RefreshSettings(_Section):
    """When and how generations are made."""

    path: Path = Field(Path("build/generations"), description="folder of published generations")
    full_cron: str = Field("*/5 * * * *", description="cron expression of full refreshes; '' = none")
    interval_seconds: float = Field(
        0, ge=0, description="instead of cron: a full refresh this often; 0 = use cron"
    )
    keep: int = Field(3, ge=1, description="generations kept for rollback")
    ivf_from_items: int = Field(50_000, ge=1, description="flat index below, IVF from here")
    ivf_nprobe: int = Field(64, ge=1, description="lists probed per query")
    min_recall: float = Field(
        0.9, ge=0, le=1, description="against exact search, or the generation is refused"
    )
    num_threads: int = Field(1, ge=1, le=256, description="of torch and Faiss")


class ServeSettings(_Section):
    """The HTTP server."""

    host: str = Field("127.0.0.1", description="address to bind; put a proxy in front for others")
    port: int = Field(8080, ge=0, le=65_535, description="0 = any free port")
    max_k: int = Field(500, ge=1, le=10_000, description="most items in one answer")
    default_k: int = Field(50, ge=1, description="items when k is not given")
    max_batch_users: int = Field(256, ge=1, description="most users in one POST")
    max_body_bytes: int = Field(65_536, ge=64, description="larger bodies are refused with 413")
    reload_seconds: float = Field(
        1.0, gt=0, description="how often to look for a new generation and catch up with the store"
    )
    exclude_history: bool = Field(True, description="leave out what stands in the user's stored history")


class MetricsSettings(_Section):
    """Prometheus endpoints, on loopback; 0 = any free port, -1 = none."""

    trainer_port: int = Field(9101, ge=-1, le=65_535, description="stream-trainer run")
    refresher_port: int = Field(
        9102, ge=-1, le=65_535, description="index-refresher run (serve answers /metrics itself)"
    )


class Configuration(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    store: StoreSettings = StoreSettings()
    log: LogSettings = LogSettings()
    topics: TopicSettings = TopicSettings()
    join: JoinSettings = JoinSettings()
    features: FeatureSettings = FeatureSettings()
    model: ModelSettings = ModelSettings()
    learning: LearningSettings = LearningSettings()
    refresh: RefreshSettings = RefreshSettings()
    serve: ServeSettings = ServeSettings()
    metrics: MetricsSettings = MetricsSettings()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        learning, model, features = self.learning, self.model, self.features
        if learning.shown_negatives and self.join.emit != "at_close":
            raise ValueError("learning.shown_negatives needs join.emit = 'at_close'")
        uniform = learning.negatives_per_positive or learning.shared_negatives
        if not (uniform or learning.in_batch_negatives or learning.shown_negatives):
            raise ValueError("learning: no kind of negatives is on")
        if model.residual and model.output_dim != model.embedding_dim:
            raise ValueError("model.residual needs model.output_dim = model.embedding_dim")
        if model.name == "dat" and model.augmented_dim not in (0, model.output_dim):
            raise ValueError("model.augmented_dim must be 0 or model.output_dim: they imitate embeddings")
        if model.name in ("youtube_dnn", "fm", "mind") and model.output_dim != model.embedding_dim:
            raise ValueError(f"model.name = '{model.name}' needs model.output_dim = model.embedding_dim")
        if model.name in ("youtube_dnn", "mind") and not model.history_length:
            raise ValueError(f"model.name = '{model.name}' needs model.history_length")
        of_users = (model.use_user_id, model.history_length, features.user_categorical, features.user_numeric)
        if not any(of_users) and not (model.name == "dat" and model.augmented_dim):
            raise ValueError(
                f"model.name = '{model.name}' needs something of users: model.use_user_id, for example"
            )
        if features.category and features.category not in features.item_categorical:
            raise ValueError(f"features.category '{features.category}' is not in item_categorical; '' = none")
        return self
