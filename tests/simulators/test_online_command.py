"""`simulator online` from end to end on a small generated log: files, figures, resuming, refusals."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_runs import ROOT

from simulators.synthetic import generate

SMALL = ("model.hidden=[16]", "learning.batch_size=32", "learning.shared_negatives=32")


def online(data: Path, out: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    settings = [flag for setting in SMALL for flag in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "simulators", "online", "--data", data, "--out", out, *settings, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def test_a_small_log_from_end_to_end(tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    generate(data, num_users=150, num_items=80, num_interactions=2500, num_categories=4, seed=2)
    flags = ("--windows", "5", "--window-size", "150", "--retrain-points", "2", "--epochs", "2")
    flags += ("--refresh", "60,604800", "--negatives", "shown", "--rehearsal", "0,2", "--jobs", "2", "--als")
    flags += ("--vary", "model.augmented_dim=0 learning.batch_size=64")
    done = online(data, out, *flags)
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "online.json").read_text())
    assert [entry["seconds"] for entry in result["refresh"]] == [0, 60, 604800, None]
    assert [entry["name"] for entry in result["rehearsal"]] == ["0", "2"]
    assert [entry["name"] for entry in result["negatives"]] == ["shown"]
    assert all(entry["learn_seconds"] > 0 for entry in result["rehearsal"])  # a cost to print; never a race
    end = result["ratios"]["retrained"]["end"]["hr@50"]
    assert end["ratio"] == end["online"] / end["retrained"]
    assert end["low"] <= end["ratio"] <= end["high"]
    assert result["rehearsal"][1]["hr@50"] == result["refresh"][0]["hr@50"]  # 2 is the default: the main pass
    to_itself = result["rehearsal"][1]["to_main"]["hr@50"]
    assert [to_itself[key] for key in ("ratio", "low", "high")] == [1, 1, 1]
    (varied,) = result["varied"]
    assert varied["name"] == "model.augmented_dim=0 learning.batch_size=64"
    by_hand = varied["mrr10"] / result["refresh"][0]["mrr10"]
    assert varied["to_main"]["mrr10"]["ratio"] == pytest.approx(by_hand, rel=1e-9)
    assert varied["to_main"]["mrr10"]["low"] < by_hand < varied["to_main"]["mrr10"]["high"]
    assert len(list((out / "trials").glob("*.npz"))) == 5
    assert result["ratios"]["nightly ALS"]["all"]["num_questions"] == 750
    assert result["als"][0]["chosen"].startswith("als.regularization=")
    assert "Online beside nightly ALS" in (out / "online.md").read_text()
    assert "Online beside retrained" in (out / "online.md").read_text()
    for picture in ("over_time", "refresh", "rehearsal"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    again = online(data, out, *flags)
    assert "5 of 5 passes are there already" in again.stderr
    assert json.loads((out / "online.json").read_text())["windows"] == result["windows"]
    refused = online(data, out, "--negatives", "nice")
    assert refused.returncode != 0
    assert "no kind 'nice'" in refused.stderr
    assert "Traceback" not in refused.stderr
