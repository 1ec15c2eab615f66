"""The simulator's commands as processes: generate, replay, evaluate, their figures, and what they refuse."""

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from trainer_runs import ROOT

from simulators.synthetic import generate
from stream_trainer.file_log import FileEventLog

NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS = 700, 300, 9000
SMALL = ("model.hidden=[32]", "learning.num_threads=1")


def command(module: str, *arguments: object, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def simulator(*arguments: object) -> subprocess.CompletedProcess[str]:
    return command("simulators", *arguments)


def evaluate(data: Path, out: Path, *flags: object) -> dict[str, Any]:
    settings = [flag for setting in SMALL for flag in ("--set", setting)]
    done = simulator("evaluate", "--data", data, "--json", out, *settings, *flags)
    assert done.returncode == 0, done.stderr
    assert "HR@50" in done.stdout
    result: dict[str, Any] = json.loads(out.read_text())
    return result


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    sizes = ("--users", NUM_USERS, "--items", NUM_ITEMS, "--interactions", NUM_INTERACTIONS)
    done = simulator("generate", "--out", folder, *sizes, "--categories", 4, "--seed", 2)
    assert done.returncode == 0, done.stderr
    assert str(folder) in done.stdout.replace("\n", "")
    return folder


@pytest.fixture(scope="module")
def evaluated(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return evaluate(data, tmp_path_factory.mktemp("evaluated") / "deep" / "figures.json", "--seed", 4)


@pytest.fixture
def small_data(tmp_path: Path) -> Path:
    """A data set of its own, to be damaged."""
    generate(tmp_path / "data", 20, 10, 100, num_categories=4, seed=2)
    return tmp_path / "data"


def test_generate_writes_what_was_asked_for(data: Path) -> None:
    with gzip.open(data / "reviews_Generated_5.json.gz", "rt") as lines:
        reviews = [json.loads(line) for line in lines]
    assert len(reviews) == NUM_INTERACTIONS
    assert len({review["reviewerID"] for review in reviews}) == NUM_USERS
    assert len({review["asin"] for review in reviews}) == NUM_ITEMS


def test_evaluate_writes_figures_that_say_what_was_planted_was_learned(evaluated: dict[str, Any]) -> None:
    assert evaluated["num_train"] + evaluated["num_test"] == NUM_INTERACTIONS
    assert evaluated["num_test"] == NUM_USERS  # leave-last-out
    assert evaluated["num_items"] == NUM_ITEMS
    assert evaluated["seed"] == 4
    assert evaluated["configuration"]["learning"]["seed"] == 4
    figures = evaluated["figures"]
    assert set(figures) == {"dat", "popularity", "random"}
    names = {"hr@10", "hr@50", "hr@100", "mrr10", "ndcg@10", "recall@10", "recall@50"}
    for figure in figures.values():
        assert set(figure) == names | {"coverage@50", "overlap@50"}
        assert 0 < figure["hr@10"] < figure["hr@50"] < figure["hr@100"] <= 1
    assert figures["random"]["hr@50"] == pytest.approx(50 / NUM_ITEMS, abs=0.06)
    assert figures["dat"]["hr@50"] > 2 * figures["random"]["hr@50"]
    assert figures["dat"]["hr@10"] > 1.2 * figures["popularity"]["hr@10"]
    assert evaluated["prequential"][-1][1] > evaluated["prequential"][0][1]


def test_evaluate_repeats_itself(data: Path, evaluated: dict[str, Any], tmp_path: Path) -> None:
    again = evaluate(data, tmp_path / "again.json", "--seed", 4)
    assert again["figures"] == evaluated["figures"]
    assert again["prequential"] == evaluated["prequential"]


def test_evaluate_by_time_and_with_a_preset(data: Path, tmp_path: Path) -> None:
    times = ("--train-end-ms", 1_405_000_000_000, "--test-start-ms", 1_410_000_000_000)
    result = evaluate(data, tmp_path / "times.json", *times, "--preset", "paper")
    assert result["configuration"]["model"]["preset"] == "paper"
    assert result["configuration"]["model"]["loss"] == "bce"
    assert 0 < result["num_test"] < NUM_INTERACTIONS - result["num_train"]


def test_replay_keeps_to_its_speed(small_data: Path, tmp_path: Path) -> None:
    """Two years in about three seconds; once they are in the log, they are all there."""
    start = time.monotonic()
    arguments = ("--data", small_data, "--set", f"log.path={tmp_path / 'log'}")
    done = simulator("replay", *arguments, "--speed", 20_000_000)
    seconds = time.monotonic() - start
    assert done.returncode == 0, done.stderr
    assert "10 items, 100 impressions, 100 clicks, 100 users" in done.stdout
    with gzip.open(small_data / "reviews_Generated_5.json.gz", "rt") as lines:
        times = [json.loads(line)["unixReviewTime"] for line in lines]
    assert seconds >= (max(times) - min(times)) / 20_000_000
    assert _num_records(tmp_path / "log") == {"items": 10, "impressions": 100, "clicks": 100, "users": 100}


def _num_records(log: Path) -> dict[str, int]:
    reader, counts = FileEventLog(log).reader(), {}
    for topic in ("items", "impressions", "clicks", "users"):
        reader.assign(dict.fromkeys(FileEventLog(log).partitions([topic]), 0))
        counts[topic] = sum(reader.end_offsets().values())
    reader.close()
    return counts


def test_a_log_that_was_replayed_is_learned_by_the_trainer(small_data: Path, tmp_path: Path) -> None:
    settings = [f"log.path={tmp_path / 'log'}", f"store.path={tmp_path / 'store'}", *SMALL]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    assert simulator("replay", "--data", small_data, *flags).returncode == 0
    summary = tmp_path / "summary.json"
    learn = ("run", "--until-end", "--summary", summary, *flags, "--set", "metrics.trainer_port=-1")
    done = command("stream_trainer", *learn)
    assert done.returncode == 0, done.stderr
    result = json.loads(summary.read_text())
    assert result["num_events"] == 310
    assert result["num_positives"] == 100


def refusal(code: int, *arguments: object) -> str:
    """Run a command that is to be refused; return the line that says why."""
    done = simulator(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]


def test_data_that_are_missing_are_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    assert str(missing) in refusal(3, "evaluate", "--data", missing)
    missing.mkdir()
    assert "it is empty" in refusal(3, "evaluate", "--data", missing)


def test_data_that_are_cut_short_are_refused_with_file_and_line(small_data: Path) -> None:
    reviews = small_data / "reviews_Generated_5.json.gz"
    reviews.write_bytes(reviews.read_bytes()[:-100])
    why = refusal(3, "evaluate", "--data", small_data)
    assert f"{reviews}, line " in why
    assert "cut short" in why


def test_data_of_the_wrong_format_are_refused_with_file_and_line(small_data: Path, tmp_path: Path) -> None:
    reviews = small_data / "reviews_Generated_5.json.gz"
    lines = gzip.decompress(reviews.read_bytes()).splitlines(keepends=True)
    lines[6] = b"this is no review\n"
    reviews.write_bytes(gzip.compress(b"".join(lines)))
    log = tmp_path / "log"
    why = refusal(3, "replay", "--data", small_data, "--set", f"log.path={log}")
    assert f"{reviews}, line 7: not a JSON object: 'this is no review'" in why


@pytest.mark.parametrize("speed", ["0", "fast"])
def test_an_impossible_speed_is_refused(small_data: Path, speed: str) -> None:
    assert f"--speed is '{speed}'" in refusal(2, "replay", "--data", small_data, "--speed", speed)


def test_numbers_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    sizes = ("--users", 10, "--items", 10, "--interactions", 5, "--categories", 2)
    assert "5 interactions of 10 users and 10 items" in refusal(2, "generate", "--out", tmp_path, *sizes)


def test_folders_that_cannot_be_written_are_refused(small_data: Path, tmp_path: Path) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    for path in (in_the_way, in_the_way / "log"):
        why = refusal(4, "replay", "--data", small_data, "--set", f"log.path={path}")
        assert f"{path}/items: Not a directory" in why
        sizes = ("--users", 20, "--items", 20, "--interactions", 100)
        assert f"cannot write to {path}: " in refusal(2, "generate", "--out", path, *sizes)
    figures = in_the_way / "figures.json"
    why = refusal(2, "evaluate", "--data", tmp_path / "nowhere", "--json", figures)  # before any work
    assert f"--json: cannot write {figures}: " in why
    assert f"--out: cannot write {in_the_way}: " in refusal(2, "demo", "--out", in_the_way)


def test_a_demo_does_not_clear_a_folder_of_somebody_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    assert f"--out: {tmp_path} holds what no demo wrote" in refusal(2, "demo", "--out", tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_log_that_cannot_be_written_is_refused(small_data: Path, tmp_path: Path) -> None:
    replay = ("replay", "--data", small_data, "--set", f"log.path={tmp_path / 'log'}")
    assert simulator(*replay).returncode == 0
    lock = tmp_path / "log" / "items" / "lock"
    lock.unlink()
    lock.mkdir()
    assert str(lock) in refusal(4, *replay)


@pytest.mark.parametrize(
    ("module", "commands"),
    [
        ("simulators", ["replay", "evaluate", "generate", "demo"]),
        ("stream_trainer", ["run", "create-topics", "dead-letters"]),
        ("index_refresher", ["run", "once", "serve"]),
    ],
)
def test_help_lists_the_commands_and_each_has_its_own(module: str, commands: list[str]) -> None:
    done = command(module, "--help")
    assert done.returncode == 0
    for name in commands:
        assert re.search(rf"^ +{name}\s", done.stdout, re.MULTILINE)
    own = command(module, commands[0], "--help")
    assert own.returncode == 0
    assert "--set SECTION.KEY=VALUE" in own.stdout
    assert re.fullmatch(r"[a-z-]+ \d+\.\d+\.\d+\n", command(module, "--version").stdout)
