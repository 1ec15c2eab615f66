"""Features as arrays: order, truncation, and unknown, missing and mistyped values."""

import math

import numpy as np
import pytest

from feature_store.numbering import Numbering
from stream_trainer.features import FeatureEncoder


@pytest.fixture
def encoder() -> FeatureEncoder:
    return FeatureEncoder({"category": 1, "tags": 3}, ["price", "rating"], Numbering())


def test_widths_are_those_of_the_settings(encoder: FeatureEncoder) -> None:
    assert (encoder.num_values, encoder.num_numbers) == (4, 2)
    codes, numbers = encoder.encode({})
    assert (codes.dtype, numbers.dtype) == (np.int32, np.float32)
    assert codes.tolist() == [-1, -1, -1, -1]
    assert np.isnan(numbers).all()


def test_values_get_numbers_in_order_of_appearance_per_feature(encoder: FeatureEncoder) -> None:
    assert encoder.encode({"category": "toys", "tags": ["red", "toys"]})[0].tolist() == [0, 1, 2, -1]
    assert encoder.encode({"tags": ["toys", "red"], "category": "red"})[0].tolist() == [3, 2, 1, -1]
    assert encoder.encode({"category": "toys", "unheard": "x"})[0].tolist() == [0, -1, -1, -1]


def test_long_lists_are_cut_and_empty_texts_left_out() -> None:
    values = Numbering()
    encoder = FeatureEncoder({"tags": 2}, [], values)
    assert encoder.encode({"tags": ["a", "b", "c"]})[0].tolist() == [0, 1]
    assert values.keys == [b"tags\0a", b"tags\0b"]
    assert encoder.encode({"tags": ["", "b"]})[0].tolist() == [1, -1]
    assert encoder.encode({"tags": ""})[0].tolist() == [-1, -1]
    assert encoder.encode({"tags": []})[0].tolist() == [-1, -1]
    assert len(values) == 2


def test_a_number_may_be_a_category(encoder: FeatureEncoder) -> None:
    first = encoder.encode({"category": 3.0})[0][0]
    assert encoder.encode({"category": "3.0"})[0][0] == first


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0.0),
        (1, math.log(2)),
        (-1, -math.log(2)),
        (math.e - 1, 1.0),
        (1e30, 30 * math.log(10)),
        ("12", math.nan),
        (["12"], math.nan),
        (True, math.nan),
    ],
)
def test_numbers_are_squashed_and_other_kinds_are_missing(value: float | str, expected: float) -> None:
    numbers = FeatureEncoder({}, ["price"], Numbering()).encode({"price": value})[1]
    assert numbers.tolist() == pytest.approx([expected], rel=1e-6, nan_ok=True)


def test_the_first_value_of_the_wrong_kind_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    encoder = FeatureEncoder({}, ["price", "rating"], Numbering())
    for price in (None, 3, "12.50", "9.99"):
        encoder.encode({} if price is None else {"price": price})
    assert [record.getMessage() for record in caplog.records] == [
        "feature 'price' is no number but '12.50': it counts as missing"
    ]
