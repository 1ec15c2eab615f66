"""`make bench`: what durability and streaming cost against a plain in-memory loop, side by side in one run.

Prints a table and writes build/bench.json. Each round measures every row once, in turn, so that a machine
whose speed drifts treats them alike; the medians over the rounds and their ratios are what to quote.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from prometheus_client import CollectorRegistry
from reference import Floor, PlainLoop
from rich.console import Console
from rich.table import Table
from workload import (
    BATCH,
    HIDDEN,
    NEGATIVES,
    NUM_ITEMS,
    NUM_USERS,
    LearnStep,
    batches,
    configuration,
    fill_store,
    warm,
    write_events,
)

from feature_store.configuration import Configuration
from feature_store.store_process import open_store
from simulators.replay import create_topics
from stream_trainer.feed_process import open_feed
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.open_log import open_log
from stream_trainer.trainer import Trainer

ROWS = {
    "a": "plain in-memory PyTorch loop",
    "b": "learn step alone",
    "c": "end to end, file log, commits",
    "d": "end to end, Kafka, commits",
    "e": "matrix products alone (floor)",
}
TARGETS = {"b": 1.0, "c": 0.5, "d": 0.35}
_SETTLE_LIMIT_S = 60
_BROKER = Path(__file__).parents[2] / "deploy" / "kafka" / "broker.py"


class EndToEnd:
    """A trainer over a warm state that learns one freshly written segment of the log at a time."""

    def __init__(self, config: Configuration, num_positives: int) -> None:
        self._config = config
        self._num_positives = num_positives
        self._segment = self._num_commits = 0
        self.stalls: list[tuple[float, float]] = []
        """Of each segment: the share of time in commits, and the longest one in seconds."""
        self._log = open_log(config.log)
        create_topics(self._log, config.topics)
        self._store = open_store(config.store)
        self._feed = open_feed(config, until_end=True)
        self._trainer = Trainer(config, self._feed, self._store, TrainerMetrics(CollectorRegistry()))
        warm(self._trainer.state)

    def positives_per_second(self) -> float:
        """Write a segment, then time the trainer from its first poll to its last commit."""
        write_events(self._log, self._config, self._segment, self._num_positives)
        self._segment += 1
        before = self._trainer.state.num_positives
        start = time.perf_counter()
        stalls = self._trainer.run(threading.Event()).commit_stalls[self._num_commits :]
        seconds = time.perf_counter() - start
        self._num_commits += len(stalls)
        self.stalls.append((sum(stalls) / seconds, max(stalls)))
        learned = self._trainer.state.num_positives - before
        if learned != self._num_positives:
            raise RuntimeError(f"learned {learned} of {self._num_positives} positives: the bench skips work")
        return learned / seconds

    def close(self) -> None:
        """Release everything."""
        self._feed.close()
        self._store.close()
        self._log.close()


def time_steps(step: Callable[[torch.Tensor, torch.Tensor], None], num_batches: int, seed: int) -> float:
    """Return positives per second over some batches, two more being run first."""
    for pair in batches(2, seed + 1):
        step(*pair)
    start = time.perf_counter()
    for pair in batches(num_batches, seed):
        step(*pair)
    return num_batches * BATCH / (time.perf_counter() - start)


def settle() -> None:
    """Wait until the machine is idle: what one row leaves behind (RocksDB's compactions) must not burden the
    next one.
    """
    deadline_s = time.monotonic() + _SETTLE_LIMIT_S
    while time.monotonic() < deadline_s:
        before = _cpu_ticks()
        time.sleep(1)
        total, idle = (now - then for now, then in zip(_cpu_ticks(), before, strict=True))
        if idle > 0.9 * total:
            return


def _cpu_ticks() -> tuple[int, int]:
    """Return all ticks of all processors so far, and the idle ones among them."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks), ticks[3] + ticks[4]


def start_broker(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start our own broker on a free port; return it and its address."""
    command = [sys.executable, str(_BROKER), "--port", "0", "--data", str(folder / "kafka")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("127.0.0.1:"):
            return process, line.strip()
    raise RuntimeError("the broker did not start; run `make kafka` to see why")


Stalls = dict[str, list[tuple[float, float]]]


def measure(
    folder: Path, rounds: int, num_batches: int, num_positives: int
) -> tuple[dict[str, list[float]], Stalls]:
    """Return positives per second of each row, one value a round; and `EndToEnd.stalls` likewise."""
    console = Console()
    plain, floor = PlainLoop(NUM_USERS, NUM_ITEMS, HIDDEN, BATCH, NEGATIVES), Floor(HIDDEN, BATCH, NEGATIVES)
    file_config = configuration(folder)
    alone = LearnStep(file_config)
    console.print("filling a store of Amazon Books' size …")
    fill_store(file_config)
    shutil.copytree(folder / "store", folder / "kafka-store")
    broker, address = start_broker(folder)
    kafka_config = configuration(
        folder,
        f"store.path={folder / 'kafka-store'}",
        "log.kind=kafka",
        f"log.bootstrap_servers={address}",
    )
    streams = [EndToEnd(file_config, num_positives), EndToEnd(kafka_config, num_positives)]
    # Two threads where nothing else runs; one where the other core reads the log and writes the commits.
    threads = {"a": 2, "b": 2, "c": 1, "d": 1, "e": 2}
    rows: dict[str, Callable[[int], float]] = {
        "a": lambda seed: time_steps(plain.step, num_batches, seed),
        "b": lambda seed: time_steps(alone.step, num_batches, seed),
        "c": lambda seed: streams[0].positives_per_second(),
        "d": lambda seed: streams[1].positives_per_second(),
        "e": lambda seed: time_steps(lambda users, items: floor.step(), num_batches, seed),
    }
    figures: dict[str, list[float]] = {name: [] for name in rows}
    try:
        for number in range(rounds + 1):
            measured = {}
            for name, run in rows.items():
                settle()
                torch.set_num_threads(threads[name])
                measured[name] = run(10 * number)
            label = "warm-up" if number == 0 else f"round {number}"
            console.print(f"{label}: " + ", ".join(f"{k} {v:,.0f}/s" for k, v in measured.items()))
            if number:
                for name, value in measured.items():
                    figures[name].append(value)
    finally:
        for stream in streams:
            stream.close()
        broker.terminate()
        broker.wait()
    return figures, {name: stream.stalls[1:] for name, stream in zip("cd", streams, strict=True)}


def show_stalls(stalls: Stalls) -> Table:
    """Return the table of what commits cost those who learn meanwhile."""
    table = Table(title="what commits cost the learning, at full speed")
    for column in ("row", "share of time, median", "at most", "longest stall, ms", "at most"):
        table.add_column(column, justify="right")
    for name, values in stalls.items():
        share, longest = statistics.median(s for s, _ in values), max(t for _, t in values)
        table.add_row(f"({name})", f"{share:.1%}", "10%", f"{1000 * longest:,.0f}", "250")
    return table


def show(figures: dict[str, list[float]]) -> Table:
    """Return the table: medians, ratios to (a) round by round, and what is to be reached."""
    table = Table(
        title=f"positives/s; batch {BATCH}, S = {NEGATIVES}, {NUM_USERS:,} users, {NUM_ITEMS:,} items"
    )
    for column in ("row", "what", "median", "min", "max", "÷ (a), median", "at least"):
        table.add_column(column, justify="left" if column in ("row", "what") else "right")
    for name, values in figures.items():
        ratio = median_ratio(figures, name)
        numbers = (f"{f(values):,.0f}" for f in (statistics.median, min, max))
        table.add_row(f"({name})", ROWS[name], *numbers, f"{ratio:.2f}", f"{TARGETS.get(name, '')}")
    return table


def median_ratio(figures: dict[str, list[float]], name: str) -> float:
    """Return the median over the rounds of a row ÷ (a) of the same round."""
    return statistics.median(x / a for x, a in zip(figures[name], figures["a"], strict=True))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=40, help="batches a round of (a), (b), (e)")
    parser.add_argument("--positives", type=int, default=256 * BATCH, help="positives a round of (c), (d)")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dualstream-bench-") as folder:
        figures, stalls = measure(Path(folder), args.rounds, args.batches, args.positives)
    Console().print(show(figures), show_stalls(stalls))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "positives_per_second": figures,
        "ratios_to_a": {name: median_ratio(figures, name) for name in figures},
        "at_least": TARGETS,
        "commits": {name: {"share_and_longest_s": values} for name, values in stalls.items()},
    }
    args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
