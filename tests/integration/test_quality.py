"""The promise of the default preset: one pass over real reviews beats what is easily had elsewhere.

Each data set is learned once, by the command a user would type. Needs the real data: `DATA_ROOT`, else the
folder beside the repository.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_runs import ROOT

LIMIT_S = 280


def _evaluate(name: str, out: Path, *flags: str) -> dict[str, dict[str, float]]:
    folder = Path(os.environ.get("DATA_ROOT", ROOT.parent / "shared" / "data")) / name
    if not folder.is_dir():
        reason = f"no real Amazon data in {folder}: set DATA_ROOT to the folder of the data sets"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    command = [sys.executable, "-m", "simulators", "evaluate", "--data", str(folder), "--json", str(out)]
    done = subprocess.run(
        [*command, *flags], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    figures: dict[str, dict[str, float]] = json.loads(out.read_text())["figures"]
    return figures


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("toys_2014", 0.14),  # implicit ALS: .140
        ("beauty_2014", 0.15),  # implicit ALS: .145
    ],
)
def test_one_pass_reaches_the_promised_hit_rate(name: str, least: float, tmp_path: Path) -> None:
    figures = _evaluate(name, tmp_path / "figures.json")
    assert figures["dat"]["hr@50"] >= least
    assert figures["dat"]["hr@50"] > 2 * figures["popularity"]["hr@50"]


def test_one_pass_beats_popularity_on_sparse_reviews_by_their_publishers_rules(tmp_path: Path) -> None:
    times = ("--train-end-ms", "1653679273178", "--test-start-ms", "1662173626869")
    figures = _evaluate("electronics_2023", tmp_path / "figures.json", *times)
    assert figures["dat"]["recall@50"] > figures["popularity"]["recall@50"]
