"""Figures of an online pass where there is nothing to divide by: said as none, in JSON and in the tables."""

import json

import numpy as np

from simulators.online import FROZEN, ONLINE, RETRAINED, PassResult
from simulators.online_figures import ratio
from simulators.online_report import grids


def test_a_ratio_to_next_to_nothing_has_no_interval_and_to_nothing_no_value():
    num = 40
    ranks = {
        ONLINE: np.full(num, 3.0),
        FROZEN: np.where(np.arange(num) == 0, 2.0, np.inf),  # one hit: many resamples have none
        RETRAINED: np.full(num, np.inf),
    }
    result = PassResult(np.arange(num), np.zeros(num, np.int64), ranks, num, 1, 1.0, [])
    users, everything = np.arange(num), np.ones(num, np.bool_)
    ratios = {
        name: {"at the end": ratio([result], ONLINE, name, everything, users)} for name in (RETRAINED, FROZEN)
    }
    assert ratios[FROZEN]["at the end"]["hr@50"]["ratio"] == 40
    assert ratios[FROZEN]["at the end"]["hr@50"]["low"] is None
    assert ratios[RETRAINED]["at the end"]["hr@50"]["ratio"] is None
    assert "NaN" not in json.dumps(ratios)
    empty = {"ratios": ratios, "refresh": [], "negatives": [], "rehearsal": [], "varied": []}
    cells = [grid.body[0][4] for grid in grids(empty)[:2]]
    assert cells == ["–", "40.000"]
