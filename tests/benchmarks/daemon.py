"""Runs the real trainer daemon over a log to its end, and tells what it took: time, memory and disk."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from feature_store.store import FAMILIES, FeatureStore


class Run(NamedTuple):
    """What one run of the daemon came to."""

    num_positives: int
    num_commits: int
    seconds: float
    tenths: list[float]
    """Positives per second along the run, a tenth of the positives at a time."""
    first_batch_s: float
    """From the start of the process to the end of its first learning step."""
    peaks_mib: list[int]
    """Peak memory of its processes, the learning one first."""
    rows_read: dict[str, int]
    """By table: rows that were brought in from the store."""
    rows_evicted: dict[str, int]
    """By table: rows that made room for others."""


def learn(folder: Path, settings: list[str]) -> Run:
    """Run `stream-trainer run --until-end` with these settings.

    Raises:
        RuntimeError: it failed.
    """
    summary = folder / "summary.json"
    command = [sys.executable, "-m", "stream_trainer", "run", "--until-end", f"--summary={summary}"]
    arguments = ["--log-level=WARNING", "--set=metrics.trainer_port=-1", *(f"--set={s}" for s in settings)]
    start_s = time.time()
    with subprocess.Popen([*command, *arguments]) as process:
        footprint = _Footprint(process.pid)
        while process.poll() is None:
            footprint.look()
            time.sleep(0.2)
    if process.returncode:
        raise RuntimeError(f"the trainer ended with {process.returncode}")
    told: dict[str, Any] = json.loads(summary.read_text())
    steps = [(step["num_positives"], step["seconds"]) for step in told["steps"]]
    return Run(
        told["num_positives"],
        told["num_commits"],
        told["seconds"],
        tenths(steps),
        told["started_at_s"] - start_s + steps[0][1],
        footprint.peaks_mib(),
        told["rows_read"],
        told["rows_evicted"],
    )


def tenths(steps: list[tuple[int, float]]) -> list[float]:
    """Return positives per second of each tenth of a run, by count, given the counts after its steps and the
    times.

    >>> tenths([(100 + n, 2.0 * n) for n in range(1, 101)])
    [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    """
    counts, seconds = (np.array(column, float) for column in zip(*steps, strict=True))
    marks = np.linspace(counts[0], counts[-1], 11)
    at = np.interp(marks, counts, seconds)
    return [round(float(rate), 6) for rate in np.diff(marks) / np.diff(at)]


class _Footprint:
    """Peak resident memory of a process and its children, seen while they live."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_kib: dict[int, int] = {}

    def look(self) -> None:
        """Take note of how far the processes have come; those that have ended keep what was seen."""
        for pid in (self._pid, *_children(self._pid)):
            peak_kib = _peak_kib(pid)
            if peak_kib:
                self._peak_kib[pid] = peak_kib

    def peaks_mib(self) -> list[int]:
        """Return the peak of each process, the learning one first. Memory that they share counts in each."""
        return [kib // 1024 for kib in self._peak_kib.values()]


def folder_bytes(path: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def live_bytes(path: Path) -> int:
    """Return the size of all keys and values that a store holds."""
    store = FeatureStore(path)
    try:
        return sum(len(key) + len(value) for family in FAMILIES for key, value in store.items(family))
    finally:
        store.close()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _peak_kib(pid: int) -> int:
    """Return the peak resident memory of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
