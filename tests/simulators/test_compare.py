"""Comparisons with a runner that is quick and known: what is run, kept, fails and is written."""

import io
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from known_trials import Counted, dies, known_ranks, slow, trials_in
from rich.console import Console

from feature_store.errors import SettingsError
from simulators.compare import Options, compare
from simulators.compare_trials import Trials
from simulators.comparison_pictures import draw
from simulators.comparison_report import about, grids, latex, markdown, rich_table
from simulators.contenders import CONTENDERS
from simulators.dataset import Dataset, load_dataset
from simulators.evaluate import figures_of, hold_out
from simulators.synthetic import generate
from simulators.trials import Trial

THREE, BUDGET = "dat,wals,random", len(CONTENDERS["dat"].grid)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("generated")
    generate(folder, 300, 80, 4_000, num_categories=5, seed=1)
    return load_dataset(folder)


def test_every_candidate_is_tried_once_and_the_best_runs_with_every_seed(
    dataset: Dataset, tmp_path: Path
) -> None:
    runner = Counted()
    result = compare(dataset, Options(THREE, num_seeds=3), trials_in(tmp_path, runner))
    tuning = [held for held in runner.helds if held.test is not runner.helds[-1].test]
    assert len(tuning) == 2 * BUDGET
    assert len(runner.ran) == 2 * BUDGET + 3 * 3 - 2  # what was chosen ran on both parts with seed 0
    assert len(runner.helds) - len(tuning) == 3 * 3
    last = hold_out(dataset, None, None).test.reviews
    test = set(zip(last.users.tolist(), last.items.tolist(), strict=True))
    for held in tuning:
        for part in held:
            assert not test & set(zip(part.reviews.users.tolist(), part.reviews.items.tolist(), strict=True))
    assert {name: len(tried) for name, tried in result["tuning"].items()} == {"dat": BUDGET, "wals": BUDGET}
    rows = {row["name"]: row for row in result["rows"]}
    for name in ("dat", "wals"):
        assert set(CONTENDERS[name].grid[-1]) <= set(rows[name]["overrides"])
    assert result["seeds"] == [0, 1, 2]
    assert len(rows["dat"]["figures"]["hr@50"]["values"]) == 3


@pytest.mark.parametrize("models", ["default,default_without_augmented", "default_without_augmented"])
def test_an_ablation_takes_what_is_tuned_for_the_whole(models: str, dataset: Dataset, tmp_path: Path) -> None:
    runner = Counted()
    options = Options(models, num_seeds=1, against="default_without_augmented")
    result = compare(dataset, options, trials_in(tmp_path, runner))
    assert {name: len(tried) for name, tried in result["tuning"].items()} == {"default": BUDGET}
    assert len(runner.ran) == BUDGET + len(models.split(",")) - ("default," in models)
    for row in result["rows"]:
        assert set(CONTENDERS["default"].grid[-1]) <= set(row["overrides"])
    told = "no augmented vectors: with what was tuned for Dualstream default, epochs"
    assert told in "\n".join(about(result))


def test_what_is_not_tuned_is_told(dataset: Dataset, tmp_path: Path) -> None:
    options = Options("dat,dat_paper_weights,random", num_seeds=1)
    result = compare(dataset, options, trials_in(tmp_path, Counted()))
    told = [line for line in about(result) if "not tuned" in line]
    assert told == ["DAT, the paper's weights: as it is, not tuned"]


def test_figures_are_those_of_the_evaluator_and_differences_are_between_them(
    dataset: Dataset, tmp_path: Path
) -> None:
    result = compare(dataset, Options(THREE, num_seeds=2, tune=False), trials_in(tmp_path, known_ranks))
    held = hold_out(dataset, None, None)
    rows = {row["name"]: row["figures"] for row in result["rows"]}
    for name in ("dat", "wals", "random"):
        runs = [figures_of(known_ranks(Trial(name, (), seed), held, tmp_path).ranks, held) for seed in (0, 1)]
        for metric, found in rows[name].items():
            assert found["values"] == pytest.approx([run[metric] for run in runs])
            assert found["mean"] == pytest.approx(np.mean(found["values"]))
            assert found["sd"] == pytest.approx(np.std(found["values"], ddof=1))
            assert found["low"] <= found["mean"] <= found["high"]
    pairs = {(pair["first"], pair["second"]): pair["metrics"] for pair in result["differences"]}
    assert set(pairs) == {("wals", "dat"), ("random", "dat")}
    worse = pairs["random", "dat"]["hr@10"]
    assert worse["difference"] == pytest.approx(
        rows["random"]["hr@10"]["mean"] - rows["dat"]["hr@10"]["mean"]
    )
    assert worse["low"] < worse["difference"] < worse["high"] < 0


def test_what_is_finished_is_not_run_again_and_anything_else_is(dataset: Dataset, tmp_path: Path) -> None:
    first, again, other = Counted(), Counted(), Counted()
    options = Options("dat,random", num_seeds=2)
    result = compare(dataset, options, trials_in(tmp_path, first))
    assert sum(first.ran.values()) == BUDGET + 2 * 2
    repeated = compare(dataset, options, trials_in(tmp_path, again, code="later code"))
    assert sum(again.ran.values()) == 0
    assert repeated == result
    longer = compare(dataset, options._replace(num_seeds=3), trials_in(tmp_path, other, code="later code"))
    assert {trial.seed for trial in other.ran} == {2}
    assert longer["code"] == ["code", "later code"]  # and the report says so
    assert "MIXED" in markdown(longer)
    changed = Counted()
    fewer = dataset.take(np.arange(len(dataset.reviews) - 1))
    compare(fewer, options, trials_in(tmp_path, changed))
    assert sum(changed.ran.values()) == BUDGET + 2 * 2


def test_a_half_written_result_is_no_result(dataset: Dataset, tmp_path: Path) -> None:
    options = Options("random", num_seeds=1)
    compare(dataset, options, trials_in(tmp_path, known_ranks))
    (finished,) = tmp_path.glob("*.npz")
    finished.rename(finished.with_suffix(".part"))
    runner = Counted()
    assert compare(dataset, options, trials_in(tmp_path, runner))["rows"]
    assert sum(runner.ran.values()) == 1


def test_a_trial_that_fails_names_itself_and_the_others_go_on(dataset: Dataset, tmp_path: Path) -> None:
    runner = Counted(fail="wals")
    trials = trials_in(tmp_path, runner)
    result = compare(dataset, Options(THREE, num_seeds=1), trials)
    assert [row["name"] for row in result["rows"]] == ["dat", "random"]
    assert {failure["trial"]["contender"] for failure in result["failures"]} == {"wals"}
    assert result["failures"][0]["error"] == "DataError: no wals today"
    assert "no wals today" in markdown(result)
    mended = compare(dataset, Options(THREE, num_seeds=1), trials_in(tmp_path, known_ranks))
    assert len(mended["rows"]) == 3


def test_a_row_with_a_failed_seed_has_no_figures(dataset: Dataset, tmp_path: Path) -> None:
    trials = trials_in(tmp_path / "trials", Counted(fail="seed=1"))
    result = compare(dataset, Options(THREE, num_seeds=2, tune=False), trials)
    assert result["rows"] == []
    assert len(result["failures"]) == 3
    assert draw(result, tmp_path, "compare") == []
    assert "no seed=1 today" in markdown(result)


def test_a_process_that_is_killed_takes_no_other_with_it(dataset: Dataset, tmp_path: Path) -> None:
    options = Options("wals,random", num_seeds=1, tune=False)
    result = compare(dataset, options, trials_in(tmp_path, dies, num_jobs=2))
    assert [row["name"] for row in result["rows"]] == ["random"]
    assert result["failures"][0]["error"] == "its process ended with code -9"


def test_ctrl_c_ends_what_runs_and_keeps_what_is_finished(dataset: Dataset, tmp_path: Path) -> None:
    told = io.StringIO()
    trials = Trials(tmp_path, 2, Console(file=told), slow, "code")
    done = threading.Event()

    def interrupt() -> None:
        while not list(tmp_path.glob("*.npz")) and not done.wait(0.05):
            pass
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        compare(dataset, Options("random", num_seeds=2), trials)
    done.set()
    assert time.monotonic() - started < 50
    assert "1 of 2 trials of 'comparing' are kept" in told.getvalue()
    assert len(list(tmp_path.glob("*.npz"))) == 1


def test_a_sweep_compares_every_value_with_the_first(dataset: Dataset, tmp_path: Path) -> None:
    options = Options("dat", num_seeds=2, sweep="dropout=0.0,0.1,0.3", tune=False)
    result = compare(dataset, options, trials_in(tmp_path / "trials", known_ranks))
    assert result["sweep"] == {"key": "model.dropout", "values": ("0.0", "0.1", "0.3")}
    assert [row["value"] for row in result["rows"]] == ["0.0", "0.1", "0.3"]
    assert {pair["second"] for pair in result["differences"]} == {"dat dropout = 0.0"}
    assert [path.name for path in draw(result, tmp_path, "sweep")] == ["sweep.png"]
    assert "first value" in markdown(result)


def test_users_of_few_reviews_stand_apart_from_those_of_many(dataset: Dataset, tmp_path: Path) -> None:
    options = Options("dat,youtube_dnn", by="history", num_seeds=2, tune=False)
    result = compare(dataset, options, trials_in(tmp_path / "trials", known_ranks))
    learned = Counter(hold_out(dataset, None, None).train.reviews.users.tolist())
    for entry in result["groups"]:
        low, high = map(int, ["0", *re.findall(r"\d+", entry["group"])][-2:])
        members = [num for num in learned.values() if low <= num <= high]
        assert (entry["num_test_users"], entry["num_train"]) == (len(members), sum(members))
    assert sum(entry["num_train"] for entry in result["groups"]) == learned.total()
    assert "By reviews of the user that were learned" in markdown(result)


def test_categories_add_up_and_small_ones_stand_apart(dataset: Dataset, tmp_path: Path) -> None:
    options = Options(by="category", num_seeds=2, tune=False)
    result = compare(dataset, options, trials_in(tmp_path / "trials", known_ranks))
    held = hold_out(dataset, None, None)
    entries = [entry for entry in result["groups"] if not entry["pooled"]]
    train = Counter(
        held.train.items[held.train.reviews.item_ids[item]].category for item in held.train.reviews.items
    )
    assert {entry["group"]: entry["num_train"] for entry in entries} == train
    small = {category for category, count in train.items() if count < np.median(list(train.values()))}
    assert {entry["group"] for entry in entries if entry["small"]} == small
    assert sum(entry["num_test_users"] for entry in entries) == len(held.test.reviews)
    few, others = (entry for entry in result["groups"] if entry["pooled"])
    assert few["num_train"] + others["num_train"] == len(held.train.reviews)
    measured = [entry for entry in entries if "figures" in entry]
    overall = len(held.test.reviews) * result["rows"][0]["figures"]["hr@10"]["mean"]
    hits = sum(entry["figures"]["dat"]["hr@10"] * entry["num_test_users"] for entry in measured)
    assert hits == pytest.approx(overall)
    found = others["differences"]["hr@10"]
    assert found["low"] <= found["difference"] <= found["high"]
    assert "all small categories" in markdown(result)
    assert "compare-groups.png" in [path.name for path in draw(result, tmp_path, "compare")]


def test_a_bootstrap_runs_once_on_each_sample_and_counts_samples(dataset: Dataset, tmp_path: Path) -> None:
    runner = Counted()
    result = compare(
        dataset, Options("dat,random", num_samples=4, sample_share=0.5), trials_in(tmp_path, runner)
    )
    sizes = [len(held.train.items) for held in runner.helds]
    assert len(runner.helds) == BUDGET + 2 * 4
    assert len({id(held.test) for held in runner.helds}) == 1 + 4  # one to tune on, four samples
    assert result["num_items"] == round(np.mean(sizes[-4:]))
    (row, _) = result["rows"]
    assert row["published"]["reproduction"]["hr@50"] == {"mean": 0.0470, "sd": 0.0066}
    assert len(row["figures"]["hr@50"]["values"]) == 4
    assert "0.0470 ± 0.0066" in markdown(result)


def test_what_is_written_can_be_read(dataset: Dataset, tmp_path: Path) -> None:
    result = compare(dataset, Options(THREE, num_seeds=2), trials_in(tmp_path / "trials", known_ranks))
    assert json.loads(json.dumps(result, allow_nan=False))["data"] == dataset.name
    lines = markdown(result).splitlines()
    assert "| DAT | 25.0% | 50.0% |" in lines
    widths = {len(re.findall(r"(?<!\\)\|", line)) for line in lines if line.startswith("| DAT")}
    header = next(line for line in lines if line.startswith("| Model"))
    assert "paper: HR@50" in header
    assert len(re.findall(r"(?<!\\)\|", header)) in widths
    text = latex(result)
    assert text.count(r"\begin{table}") == text.count(r"\end{table}") == len(grids(result))
    for table in text.split(r"\begin{tabular}")[1:]:
        columns = len(re.match(r"\{(\w+)\}", table)[1])  # type: ignore[index]
        body = [line for line in table.split(r"\bottomrule")[0].splitlines() if line.endswith(r"\\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {columns - 1}
    assert not re.search(r"(?<!\\)[_%#]", text.split(r"\begin{table}", 1)[1])
    console = Console(file=io.StringIO(), width=170)
    for grid in grids(result, published=False):
        console.print(rich_table(grid))
    pictures = [path.read_bytes() for path in draw(result, tmp_path, "compare")]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (Options("dat", by="category"), "two contenders"),
        (Options(by="category", sweep="dropout=0,0.1"), "neither"),
        (Options(num_samples=2, sample_share=2.0), "sample-share"),
        (Options(num_seeds=0), "at least 1"),
        (Options("random", against="dat"), "not among the models"),
        (Options(asked=("model.dropuot=1",)), "dropout"),
    ],
)
def test_contradictions_are_refused_before_anything_runs(
    dataset: Dataset, tmp_path: Path, options: Options, why: str
) -> None:
    runner = Counted()
    with pytest.raises(SettingsError, match=why):
        compare(dataset, options, trials_in(tmp_path, runner))
    assert not runner.ran
