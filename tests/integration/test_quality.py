"""The promise of the default preset: one pass over real reviews beats what is easily had elsewhere.

Each data set is learned once, by the command a user would type, all three at the same time. Needs the real
data: `DATA_ROOT`, else the folder beside the repository.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainer_runs import ROOT

LIMIT_S = 800
BY_TIME = ("--train-end-ms", "1653679273178", "--test-start-ms", "1662173626869")  # the publisher's
RUNS: dict[str, tuple[str, ...]] = {"toys_2014": (), "beauty_2014": (), "electronics_2023": BY_TIME}
SIDE_BY_SIDE = [
    f"--set={key}" for key in ("learning.num_threads=1", "join.own_process=false", "store.own_process=false")
]

pytestmark = pytest.mark.timeout(LIMIT_S + 60)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with NAME.json for each data set, and NAME.err for what was said."""
    data = Path(os.environ.get("DATA_ROOT", ROOT.parent / "shared" / "data"))
    missing = [name for name in RUNS if not (data / name).is_dir()]
    if missing:
        reason = f"no {' and '.join(missing)} in {data}: set DATA_ROOT to the folder of the data sets"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    out = tmp_path_factory.mktemp("quality")
    processes = []
    for name, flags in RUNS.items():
        command = [sys.executable, "-m", "simulators", "evaluate", "--data", str(data / name), *flags]
        command += [*SIDE_BY_SIDE, "--json", str(out / f"{name}.json")]
        with (out / f"{name}.err").open("wb") as said:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                )
            )
    try:
        for process in processes:
            process.wait(LIMIT_S)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return out


def _figures(evaluated: Path, name: str) -> dict[str, dict[str, float]]:
    path = evaluated / f"{name}.json"
    assert path.exists(), (evaluated / f"{name}.err").read_text()[-3000:]
    figures: dict[str, dict[str, float]] = json.loads(path.read_text())["figures"]
    return figures


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("toys_2014", 0.14),  # implicit ALS: .140
        ("beauty_2014", 0.15),  # implicit ALS: .145
    ],
)
def test_one_pass_reaches_the_promised_hit_rate(evaluated: Path, name: str, least: float) -> None:
    figures = _figures(evaluated, name)
    assert figures["dat"]["hr@50"] >= least
    assert figures["dat"]["hr@50"] > 2 * figures["popularity"]["hr@50"]


def test_one_pass_beats_popularity_on_sparse_reviews_by_their_publishers_rules(evaluated: Path) -> None:
    figures = _figures(evaluated, "electronics_2023")
    assert figures["dat"]["recall@50"] > figures["popularity"]["recall@50"]
