"""`simulator compare` from the command line: two cheap contenders from end to end, and what it refuses."""

import json
from pathlib import Path

import pytest

from feature_store.errors import DataError, SettingsError
from simulators.__main__ import main
from simulators.synthetic import generate


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("generated")
    generate(folder, 300, 80, 4_000, num_categories=5, seed=1)
    return folder


def test_the_command_from_end_to_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compare", "--data", str(data), "--models", "popularity,random", "--seeds", "2"]
    command += ["--out", str(tmp_path), "--against", "random"]
    assert main(command) == 0
    shown = capsys.readouterr()
    assert "Popularity" in shown.out
    assert "comparing 4/4" in shown.err
    result = json.loads((tmp_path / "compare.json").read_text())
    assert {"data", "seeds", "commit", "command", "rows", "differences", "failures", "code"} <= set(result)
    popularity, random = result["rows"]
    assert random["figures"]["hr@50"]["mean"] == pytest.approx(50 / 68, abs=0.06)  # 12 of 80 are had already
    assert popularity["figures"]["hr@50"]["mean"] > random["figures"]["hr@50"]["mean"]
    assert popularity["peak_mib"] > 10
    for name in ("compare.md", "compare.tex", "compare.png", "compare-differences.png"):
        assert (tmp_path / name).stat().st_size > 200
    assert main(command) == 0
    assert "4 of 4 trials are there already" in capsys.readouterr().err


def test_the_commands_refusals(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--data", str(tmp_path / "nowhere")]) == DataError.exit_code
    assert "nowhere" in capsys.readouterr().err
    assert main(["compare", "--data", str(data), "--models", "datt"]) == SettingsError.exit_code
    assert "two_tower" in capsys.readouterr().err
    assert main(["compare", "--data", str(data), "--sweep", "nonsense=1,2"]) == SettingsError.exit_code
    assert "nonsense" in capsys.readouterr().err
    short = ["compare", "--data", str(data), "--bootstrap", "2", "--sample-share", "0.005"]
    assert main([*short, "--out", str(tmp_path)]) == DataError.exit_code
    assert "would do" in capsys.readouterr().err
