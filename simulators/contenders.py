"""Who takes part in a comparison: each contender's settings, how it learns, and what is tried to tune it.

Owns the names that `--models` knows. Never trains or ranks: `trials.py` does.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

from simulators.processor import fastest_precision

How = Literal["epochs", "stream", "als", "popularity", "random"]
Overrides = tuple[str, ...]


class Contender(NamedTuple):
    """One row of the comparison.

    `overrides` are settings `section.key=value`; those of the sections `epochs` and `als` are the trial's own
    (`trials.py`), the others the configuration's. `grid` holds what is tried on the validation items: the
    same number of candidates for each contender that is tuned, none for those that stay as they are. An
    ablation takes what tuning finds for another contender, `settings_of`, which it is but for what it lacks.
    """

    title: str
    source: str
    how: How
    overrides: Overrides = ()
    grid: tuple[Overrides, ...] = ()
    settings_of: str | None = None


# bfloat16 is no worse here than float32, and half again as fast where the processor has it.
_PRECISION = f"learning.precision={fastest_precision()}"
_EPOCHS: Overrides = ("learning.rehearsal_ratio=0", _PRECISION)
_PAPER_RATES: Overrides = ("learning.rows_learning_rate=1e-2", "learning.dense_learning_rate=1e-3")
_AS_PAPER: Overrides = (*_EPOCHS, *_PAPER_RATES, "learning.batch_size=256", "epochs.count=8")
_PAPER: Overrides = ("model.preset=paper_mended", *_AS_PAPER)
_DEFAULT: Overrides = (*_EPOCHS, "learning.batch_size=1024", "epochs.count=8")
# Popularity as of the whole log: what leave-last-out holds out is of any time.
_OF_ANY_TIME: Overrides = ("learning.frequency_half_life=200000", "model.popularity_weight=0.6")
_STREAMED: Overrides = (_PRECISION,)
_PAPER_GRID: tuple[Overrides, ...] = (
    (),
    ("learning.rows_learning_rate=3e-2",),
    ("learning.rows_learning_rate=3e-3",),
    ("learning.rows_learning_rate=1e-1",),
)
# The paper's mimic losses, weighed 0.5, stand beside scores that no temperature divides; beside ours they say
# little. Searched on the validation reviews of Beauty and Toys, all users. They do not tell apart how much of
# CAL is best, from 0.1 to 1.
_MENDED_WEIGHTS: Overrides = ("model.lambda_user=20", "model.lambda_item=20", "model.lambda_cal=0.3")
_DAT: Overrides = (*_PAPER, *_MENDED_WEIGHTS, "learning.rows_learning_rate=3e-2")
_STRONGER_MIMIC: Overrides = ("model.lambda_user=100", "model.lambda_item=100")
_WEAKER_CAL: Overrides = ("model.lambda_cal=0.1",)
_DAT_GRID: tuple[Overrides, ...] = ((), _STRONGER_MIMIC, _WEAKER_CAL, (*_STRONGER_MIMIC, *_WEAKER_CAL))
_WITHOUT_CAL_GRID: tuple[Overrides, ...] = (
    (),
    _STRONGER_MIMIC,
    ("learning.rows_learning_rate=1e-2",),
    (*_STRONGER_MIMIC, "learning.rows_learning_rate=1e-2"),
)
_LONGER: Overrides = ("learning.rows_learning_rate=3e-2", "epochs.count=10")
_DEFAULT_GRID: tuple[Overrides, ...] = (
    (),
    _LONGER,
    (*_LONGER, *_OF_ANY_TIME),
    ("learning.rows_learning_rate=1e-1", "epochs.count=6", *_OF_ANY_TIME),
)
# The default is for what comes next; the others remember more.
_LESS_OF_NOW: Overrides = ("learning.batch_size=128", "learning.rehearsal_half_life=2000", *_OF_ANY_TIME)
_STREAM_GRID: tuple[Overrides, ...] = (
    (),
    _LESS_OF_NOW,
    (*_LESS_OF_NOW, "learning.rehearsal_ratio=8", "learning.rehearsal_recent_share=0.25"),
    (*_LESS_OF_NOW, "learning.rehearsal_ratio=0"),
)
_ALS_GRID: tuple[Overrides, ...] = (
    ("als.regularization=100", "als.alpha=100"),
    ("als.regularization=10", "als.alpha=20"),
    ("als.regularization=10", "als.alpha=40", "als.factors=32"),
    ("als.regularization=10", "als.alpha=40"),
)

_YU = "Yu et al., A Dual Augmented Two-tower Model for Online Large-scale Recommendation, DLP-KDD 2021"

CONTENDERS: Mapping[str, Contender] = {
    "dat": Contender("DAT", _YU, "epochs", _DAT, _DAT_GRID),
    "dat_without_cal": Contender(
        "DAT without CAL", _YU, "epochs", (*_DAT, "model.lambda_cal=0"), _WITHOUT_CAL_GRID
    ),
    "dat_own_tower": Contender(
        "DAT, own-tower mimic", _YU, "epochs", (*_DAT, "model.own_tower_mimic=true"), _DAT_GRID
    ),
    "dat_paper_weights": Contender(
        "DAT, the paper's weights", _YU, "epochs", (*_PAPER, "learning.rows_learning_rate=3e-2")
    ),
    "two_tower": Contender(
        "Two-tower",
        "Yi et al., Sampling-Bias-Corrected Neural Modeling, RecSys 2019",
        "epochs",
        (*_PAPER, "model.name=two_tower", "model.lambda_cal=0"),
        _PAPER_GRID,
    ),
    "youtube_dnn": Contender(
        "YouTubeDNN",
        "Covington et al., Deep Neural Networks for YouTube Recommendations, RecSys 2016",
        "epochs",
        ("model.preset=youtube_dnn", *_AS_PAPER),
        _PAPER_GRID,
    ),
    "fm": Contender(
        "FM",
        "Rendle, Factorization Machines, ICDM 2010",
        "epochs",
        ("model.preset=fm", *_AS_PAPER),
        _PAPER_GRID,
    ),
    "mind": Contender(
        "MIND",
        "Li et al., Multi-Interest Network with Dynamic Routing, CIKM 2019",
        "epochs",
        ("model.preset=mind", *_AS_PAPER),
        _PAPER_GRID,
    ),
    "wals": Contender(
        "WALS (implicit ALS)",
        "Hu, Koren and Volinsky, Collaborative Filtering for Implicit Feedback Datasets, ICDM 2008",
        "als",
        (),
        _ALS_GRID,
    ),
    "popularity": Contender("Popularity", "reviews in training", "popularity"),
    "random": Contender("Random", "chance", "random"),
    "default": Contender("Dualstream default, epochs", "this project", "epochs", _DEFAULT, _DEFAULT_GRID),
    "default_without_augmented": Contender(
        "Dualstream default, epochs, no augmented vectors",
        "this project",
        "epochs",
        (*_DEFAULT, "model.augmented_dim=0"),
        settings_of="default",
    ),
    "default_streamed": Contender(
        "Dualstream default, one streaming pass", "this project", "stream", _STREAMED, _STREAM_GRID
    ),
    "default_without_augmented_streamed": Contender(
        "Dualstream default, one streaming pass, no augmented vectors",
        "this project",
        "stream",
        (*_STREAMED, "model.augmented_dim=0"),
        settings_of="default_streamed",
    ),
}
