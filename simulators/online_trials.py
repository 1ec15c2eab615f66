"""Runs passes side by side, each in a process of its own on one thread, and keeps every result on disk.

Owns what is varied, and the folder `trials/`: one file per finished pass, named by a digest of all that
decides its outcome but the code, so that an interrupted run goes on where it stopped.
"""

import hashlib
import json
import multiprocessing
import os
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from pathlib import Path
from queue import Empty, Queue
from typing import NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from feature_store.configuration import Configuration
from feature_store.settings import load_configuration
from simulators.compare_trials import code_digest, part_digest
from simulators.contenders import CONTENDERS
from simulators.dataset import Dataset
from simulators.evaluate import Held, feature_overrides
from simulators.online import OnProgress, PassResult, Retraining, run_online
from simulators.online_plan import Plan
from simulators.trials import deciding

NEGATIVES: Mapping[str, tuple[str, ...]] = {
    "uniform": ("learning.negatives_per_positive=5", "learning.shared_negatives=0"),
    "shared": (),
    "in_batch": ("learning.in_batch_negatives=true", "learning.shared_negatives=0"),
    "in_batch_logq": (
        "learning.in_batch_negatives=true",
        "learning.shared_negatives=0",
        "model.logq=true",
    ),
    "shown": ("learning.shown_negatives=5", "learning.shared_negatives=0", "join.emit=at_close"),
}
"""Kinds of negatives by name, each alone: 5 own to each positive as in the paper, the usual shared, …"""

_QUIET = ("learning.num_threads=1", "learning.gradient_thread=false", "learning.prequential_every=0")
_OF_BATCHES = ("learning.batch_size", "learning.rehearsal_ratio")
_POLL_SECONDS = 0.3


class LogTrial(Protocol):
    """What runs along a log in a process of its own, and is asked the questions of a plan."""

    @property
    def name(self) -> str:
        """How its progress is called."""

    def digest(self, part: str, plan: Plan) -> str:
        """Return what the result's file is called; `part` is the digest of the data."""

    def run(self, dataset: Dataset, plan: Plan, scratch: Path, on_progress: OnProgress) -> PassResult:
        """Run, with whatever it stores in an empty scratch folder."""


class OnlineTrial(NamedTuple):
    """One pass. `retraining` is None for a pass that is compared with other passes alone."""

    name: str
    config: Configuration
    refresh_seconds: tuple[float, ...] = ()
    retraining: Retraining | None = None

    def digest(self, part: str, plan: Plan) -> str:
        """Return what the result's file is called; `part` is the digest of the data."""
        retraining = self.retraining
        told = [
            deciding(self.config),
            self.refresh_seconds,
            None if retraining is None else [deciding(retraining.config), retraining.epochs.model_dump()],
            part,
            plan,
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

    def run(self, dataset: Dataset, plan: Plan, scratch: Path, on_progress: OnProgress) -> PassResult:
        """Run the pass with its stores in an empty scratch folder."""
        retraining = self.retraining
        if retraining is not None:
            retraining = retraining._replace(config=_stored_at(retraining.config, scratch / "retrained"))
        config, seed = _stored_at(self.config, scratch / "store"), self.config.learning.seed
        return run_online(config, dataset, seed, plan, self.refresh_seconds, retraining, on_progress)


def online_configuration(
    dataset: Dataset, file: Path | None, overrides: Sequence[str], seed: int, varied: Sequence[str] = ()
) -> Configuration:
    """Return the settings of a pass: the data set's features < the user's < what is varied.

    Raises:
        SettingsError: a setting is unknown or impossible.
    """
    given = [*feature_overrides(dataset), *_QUIET, *overrides, *varied, f"learning.seed={seed}"]
    return load_configuration(file, given, os.environ)


def retraining_configuration(
    dataset: Dataset, file: Path | None, overrides: Sequence[str], seed: int, last: Sequence[str]
) -> Configuration:
    """Return the settings of the model beside: the same, but in batches as in `compare`, without rehearsal.

    Raises:
        SettingsError: a setting is unknown or impossible.
    """
    batches = [text for text in CONTENDERS["default"].overrides if text.startswith(_OF_BATCHES)]
    return online_configuration(dataset, file, overrides, seed, [*batches, *last])


def run_trials(
    trials: Sequence[LogTrial], dataset: Dataset, plan: Plan, folder: Path, num_jobs: int, console: Console
) -> list[PassResult]:
    """Return the results in order. Equal trials run once; what stands in the folder already does not run.

    Raises:
        KeyboardInterrupt: Ctrl-C; what is finished is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    part = part_digest(Held(dataset, dataset))
    files = {trial.digest(part, plan): trial for trial in trials}
    missing = {digest: trial for digest, trial in files.items() if not _file(folder, digest).exists()}
    if len(missing) < len(files):
        console.print(f"{len(files) - len(missing)} of {len(files)} passes are there already")
    if missing:
        _run_missing(missing, dataset, plan, folder, num_jobs, console)
    results = {digest: _read(_file(folder, digest)) for digest in files}
    codes = {code for _, code in results.values()}
    if codes - {code_digest()}:
        console.print("some passes were made by other sources than these; another --out makes them anew")
    return [results[trial.digest(part, plan)][0] for trial in trials]


def _run_missing(
    missing: Mapping[str, LogTrial],
    dataset: Dataset,
    plan: Plan,
    folder: Path,
    num_jobs: int,
    console: Console,
) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"  # read by workers when they load torch
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, Progress(console=console) as progress:
        news: Queue[tuple[str, int, int]] = manager.Queue()
        tasks = {digest: progress.add_task(trial.name, total=None) for digest, trial in missing.items()}
        code = code_digest()
        pool = ProcessPoolExecutor(num_jobs, mp_context=context, max_tasks_per_child=1)
        try:
            futures: set[Future[None]] = {
                pool.submit(_work, trial, dataset, plan, _file(folder, digest), code, news)
                for digest, trial in missing.items()
            }
            while futures:
                done, futures = wait(futures, timeout=_POLL_SECONDS)
                for digest, now, total in _drain(news):
                    progress.update(tasks[digest], completed=now, total=total)
                for future in done:
                    future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _drain(news: "Queue[tuple[str, int, int]]") -> list[tuple[str, int, int]]:
    heard = []
    while True:
        try:
            heard.append(news.get_nowait())
        except Empty:
            return heard


def _work(
    trial: LogTrial,
    dataset: Dataset,
    plan: Plan,
    file: Path,
    code: str,
    news: "Queue[tuple[str, int, int]]",
) -> None:
    """Run one pass in a scratch folder and leave its result in `file`, whole or not at all."""
    with tempfile.TemporaryDirectory(prefix="dualstream-") as scratch, threadpool_limits(1):
        result = trial.run(dataset, plan, Path(scratch), lambda now, total: news.put((file.stem, now, total)))
    about = {**result._asdict(), "code": code, "name": trial.name}
    arrays = {f"ranks {name}": ranks for name, ranks in about.pop("ranks").items()}
    rows, windows = about.pop("rows"), about.pop("windows")
    unfinished = file.with_suffix(".part")
    with unfinished.open("wb") as output:
        np.savez_compressed(output, rows=rows, windows=windows, about=np.array(json.dumps(about)), **arrays)
    unfinished.replace(file)


def _stored_at(config: Configuration, path: Path) -> Configuration:
    return config.model_copy(update={"store": config.store.model_copy(update={"path": path})})


def _read(file: Path) -> tuple[PassResult, str]:
    with np.load(file) as stored:
        about = json.loads(str(stored["about"]))
        prefix = "ranks "
        ranks = {name.removeprefix(prefix): stored[name] for name in stored.files if name.startswith(prefix)}
        rows, windows = stored["rows"], stored["windows"]
    code = about.pop("code")
    del about["name"]
    return PassResult(rows=rows, windows=windows, ranks=ranks, **about), code


def _file(folder: Path, digest: str) -> Path:
    return folder / f"{digest}.npz"
