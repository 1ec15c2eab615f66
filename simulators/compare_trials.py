"""Runs trials side by side, each in a process of its own, and keeps every result on disk.

Owns the folder `trials/`: one file per finished trial, named by a digest of all that decides its outcome but
the code, whose digest stands inside. Written whole or not at all, so that an interrupted comparison goes on
where it stopped. A process per trial makes its peak memory its own, and its death nobody else's.
"""

import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from feature_store.telemetry import StopSignals
from simulators.contenders import CONTENDERS
from simulators.evaluate import Held
from simulators.trials import Trial, TrialResult, run_trial, settings_of
from simulators.variety import Variety

Runner: TypeAlias = Callable[[Trial, Held, Path], TrialResult]
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PACKAGES = ("feature_store", "stream_trainer", "index_refresher", "simulators")
_LAYOUT = 2  # of a result's file: with variety
_SHOWN_EVERY_S = 0.5
_PROCESSES = multiprocessing.get_context("forkserver")  # its server imports torch once for all trials


class Task(NamedTuple):
    """A trial and what it learns and ranks. `part` is the digest of `held`."""

    trial: Trial
    held: Held
    part: str

    @property
    def digest(self) -> str:
        """What the result's file is called: another contender, setting, seed or review makes another name."""
        how = CONTENDERS[self.trial.contender].how
        told = [_LAYOUT, self.trial.contender, how, settings_of(self.trial), self.trial.seed, self.part]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]


class Failure(NamedTuple):
    """A trial that came to nothing, and why."""

    trial: Trial
    error: str


class Outcome(NamedTuple):
    """What a trial came to. `code` is the digest of the sources that made it."""

    result: TrialResult
    code: str


class Trials:
    """Runs tasks, `num_jobs` at once (0: here, one after the other), and keeps what is finished."""

    def __init__(
        self,
        folder: Path,
        num_jobs: int,
        console: Console,
        runner: Runner = run_trial,
        code: str | None = None,
    ) -> None:
        self.failures: list[Failure] = []
        self.codes: set[str] = set()
        self._folder = folder
        self._num_jobs = num_jobs
        self._console = console
        self._runner = runner
        self._code = code if code is not None else code_digest()

    def run(self, stage: str, tasks: Sequence[Task]) -> list[TrialResult | None]:
        """Return the results in the tasks' order, None for what failed; failures are kept and told.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; what runs was ended, what is finished is kept.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        wanted = {task.digest: task for task in tasks}
        missing = {digest: task for digest, task in wanted.items() if not self._file(digest).exists()}
        if len(missing) < len(wanted):
            self._console.print(
                f"{stage}: {len(wanted) - len(missing)} of {len(wanted)} trials are there already"
            )
        with _Bar(stage, len(wanted), len(wanted) - len(missing), self._console) as bar:
            try:
                if self._num_jobs:
                    self._side_by_side(missing, bar)
                else:
                    self._one_by_one(missing, bar)
            except KeyboardInterrupt:
                num_done = sum(self._file(digest).exists() for digest in wanted)
                bar.tell(
                    f"stopped: {num_done} of {len(wanted)} trials of '{stage}' are kept; "
                    "the same command goes on from there"
                )
                raise
        outcomes = {digest: self._read(digest) for digest in wanted if self._file(digest).exists()}
        self.codes |= {outcome.code for outcome in outcomes.values()}
        return [outcomes[task.digest].result if task.digest in outcomes else None for task in tasks]

    @property
    def other_code(self) -> bool:
        """Whether a result was made by other sources than these."""
        return bool(self.codes - {self._code})

    def _side_by_side(self, missing: dict[str, Task], bar: "_Bar") -> None:
        os.environ.update(dict.fromkeys(_THREADS, "1"))  # read by children when they load NumPy and torch
        resource_tracker.ensure_running()  # else starting it unblocks SIGINT
        _PROCESSES.set_forkserver_preload([run_trial.__module__])
        waiting, running = list(missing.items()), dict[BaseProcess, tuple[str, Task]]()
        try:
            with StopSignals() as signals:
                while waiting or running:
                    while waiting and len(running) < self._num_jobs:
                        digest, task = waiting.pop(0)
                        running[self._start(digest, task)] = digest, task
                    bar.show([label(task.trial) for _, task in running.values()])
                    connection.wait([process.sentinel for process in running], timeout=_SHOWN_EVERY_S)
                    for process in [process for process in running if not process.is_alive()]:
                        digest, task = running.pop(process)
                        self._finish(digest, task, process.exitcode, bar)
                    if signals.requested.is_set():
                        raise KeyboardInterrupt
        finally:
            for process in running:
                process.kill()
            for process in running:
                process.join()

    def _start(self, digest: str, task: Task) -> BaseProcess:
        """Start a trial in a process that Ctrl-C does not reach: ending it is ours to do."""
        process = _PROCESSES.Process(
            target=_work_alone, args=(self._runner, task, self._folder, digest, self._code), daemon=True
        )
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return process

    def _one_by_one(self, missing: dict[str, Task], bar: "_Bar") -> None:
        for digest, task in missing.items():
            bar.show([label(task.trial)])
            _work(self._runner, task, self._folder, digest, self._code)
            self._finish(digest, task, 0, bar)

    def _finish(self, digest: str, task: Task, exit_code: int | None, bar: "_Bar") -> None:
        error_file = self._folder / f"{digest}.error"
        if self._file(digest).exists():
            bar.advance(f"{label(task.trial)}: {self._read(digest).result.seconds:.1f} s")
            return
        error = error_file.read_text() if error_file.exists() else f"its process ended with code {exit_code}"
        error_file.unlink(missing_ok=True)
        self.failures.append(Failure(task.trial, error))
        bar.advance("")
        bar.tell(f"failed: {label(task.trial)}: {error}")

    def _file(self, digest: str) -> Path:
        return self._folder / f"{digest}.npz"

    def _read(self, digest: str) -> Outcome:
        with np.load(self._file(digest)) as stored:
            about = json.loads(str(stored["about"]))
            ranks = stored["ranks"]
        variety = Variety(**about["variety"])
        return Outcome(TrialResult(ranks, variety, about["seconds"], about["peak_mib"]), about["code"])


def label(trial: Trial) -> str:
    """Return how a trial is called before people.

    >>> label(Trial("dat", ("model.dropout=0.1",), 2))
    'dat (seed 2, model.dropout=0.1)'
    """
    shown = [override for override in trial.overrides if not override.startswith("learning.num_threads")]
    return f"{trial.contender} ({', '.join([f'seed {trial.seed}', *shown])})"


def part_digest(held: Held) -> str:
    """Return a digest of all that a trial can see: reviews on both sides, their order, the catalogue."""
    digest = hashlib.sha256()
    for dataset in held:
        reviews = dataset.reviews
        for column in (reviews.users, reviews.items, reviews.ts_ms, reviews.ratings, reviews.helpful_votes):
            digest.update(column.tobytes())
    names = [held.train.reviews.user_ids, held.train.reviews.item_ids, list(held.train.items.values())]
    digest.update(json.dumps(names).encode())
    return digest.hexdigest()


def code_digest() -> str:
    """Return a digest of the sources of all four packages, but for those that only compare."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parent.parent
    for path in sorted(path for package in _PACKAGES for path in (root / package).rglob("*.py")):
        if not path.name.startswith("compar"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _work_alone(runner: Runner, task: Task, folder: Path, digest: str, code: str) -> None:
    """Do `_work` in a process of its own, which ends when the one that started it does, however it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with(sentinel: int) -> None:
        connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=end_with, args=(parent.sentinel,), daemon=True).start()
    _work(runner, task, folder, digest, code)


def _work(runner: Runner, task: Task, folder: Path, digest: str, code: str) -> None:
    """Run one trial and leave its result, or its error, in the folder."""
    try:
        with tempfile.TemporaryDirectory(prefix="dualstream-") as scratch:
            result = runner(task.trial, task.held, Path(scratch))
        if result.ranks.shape != (len(task.held.test.reviews),):
            raise ValueError(f"{result.ranks.shape} ranks for {len(task.held.test.reviews)} held-out reviews")
    except Exception as error:  # noqa: BLE001  whatever a contender raises must not end the comparison
        text = " ".join(str(error).split())
        (folder / f"{digest}.error").write_text(f"{type(error).__name__}: {text}")
        return
    about = {
        "trial": task.trial,
        "variety": result.variety._asdict(),
        "seconds": result.seconds,
        "peak_mib": result.peak_mib,
        "code": code,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    part = folder / f"{digest}.part"
    with part.open("wb") as file:
        np.savez_compressed(file, ranks=result.ranks, about=np.array(json.dumps(about)))
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / f"{digest}.npz")


class _Bar:
    """What people see meanwhile: a bar in a terminal, a line per trial elsewhere."""

    def __init__(self, stage: str, total: int, done: int, console: Console) -> None:
        self._console = console
        self._stage = stage
        self._total, self._done = total, done
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[now]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task(stage, total=total, completed=done, now="")

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.show([])
        self._progress.stop()

    def show(self, running: Sequence[str]) -> None:
        self._progress.update(self._task, now=" · ".join(running))

    def advance(self, line: str) -> None:
        self._done += 1
        self._progress.update(self._task, completed=self._done)
        if line and not self._console.is_terminal:
            self.tell(f"{self._stage} {self._done}/{self._total}  {line}")

    def tell(self, line: str) -> None:
        self._progress.console.print(line, soft_wrap=True, highlight=False, markup=False)
