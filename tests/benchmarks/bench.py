"""`make bench`: what durability and streaming cost against a plain in-memory loop, side by side in one run.

Prints tables and writes build/bench.json. Each round measures every row once, in turn, so that a machine
whose speed drifts treats them alike; the medians over the rounds and their ratios are what to quote.
"""

import argparse
import json
import statistics
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from machine import settle, start_broker
from pairs import BATCH
from parts import milliseconds_per_batch
from rich.console import Console
from rich.table import Table
from streams import Stalls
from suites import Suite, default_suite, paper_suite

from feature_store.telemetry import calm_garbage_collector

_SUITES = {"paper": paper_suite, "default": default_suite}
Figures = dict[str, list[float]]


def measure(suite: Suite, rounds: int, console: Console) -> tuple[Figures, dict[str, list[Stalls]]]:
    """Return things per second of each row, and what commits cost those of `suite.streams`, one value a
    round; a first round only warms up.
    """
    figures: Figures = {row.name: [] for row in suite.rows}
    stalls: dict[str, list[Stalls]] = {name: [] for name in suite.streams}
    for number in range(rounds + 1):
        measured = {}
        for row in suite.rows:
            settle()
            torch.set_num_threads(row.num_threads)
            measured[row.name] = row.run(10 * number)
            if number and row.name in stalls:
                stalls[row.name].append(suite.streams[row.name].last_stalls)
        label = "warm-up" if number == 0 else f"round {number}"
        console.print(f"{label}: " + ", ".join(f"{k} {v:,.0f}/s" for k, v in measured.items()))
        if number:
            for name, value in measured.items():
                figures[name].append(value)
    return figures, stalls


def ratios(figures: Figures, row: str, base: str) -> list[float]:
    """Return a row ÷ another, round by round."""
    return [x / y for x, y in zip(figures[row], figures[base], strict=True)]


def show_rows(suite: Suite, figures: Figures) -> Table:
    """Return the table of what each row did."""
    table = Table(title=f"positives/s, or records/s where it says so; {suite.title}")
    for column in ("row", "what", "torch threads", "median", "min", "max"):
        table.add_column(column, justify="left" if column in ("row", "what") else "right")
    for row in suite.rows:
        numbers = (f"{f(figures[row.name]):,.0f}" for f in (statistics.median, min, max))
        table.add_row(row.name, row.what, str(row.num_threads), *numbers)
    return table


def show_claims(suite: Suite, figures: Figures) -> Table:
    """Return the table of the ratios and what each is to reach."""
    table = Table(title="ratios, round by round")
    for column in ("what", "rows", "median", "min", "max", "at least", ""):
        table.add_column(column, justify="left" if column in ("what", "rows", "") else "right")
    for claim in suite.claims:
        values = ratios(figures, claim.row, claim.base)
        median = statistics.median(values)
        numbers = (f"{x:.2f}" for x in (median, min(values), max(values)))
        met = "" if claim.at_least is None else "met" if median >= claim.at_least else "missed"
        table.add_row(claim.what, f"{claim.row} ÷ {claim.base}", *numbers, f"{claim.at_least or ''}", met)
    return table


def show_stalls(stalls: dict[str, list[Stalls]]) -> Table:
    """Return the table of what commits cost those who learn meanwhile."""
    table = Table(title="what commits cost the learning, at full speed")
    for column in (
        "row",
        "commits a round",
        "share of time, median",
        "at most",
        "longest stall, ms",
        "at most",
    ):
        table.add_column(column, justify="right")
    for name, values in stalls.items():
        share = statistics.median(one.share for one in values)
        longest_s = max(one.longest_s for one in values)
        num_commits = statistics.median(one.num_commits for one in values)
        table.add_row(name, f"{num_commits:g}", f"{share:.1%}", "10%", f"{1000 * longest_s:,.0f}", "250")
    return table


def show_parts(name: str, parts: dict[str, float]) -> Table:
    """Return the table of where a learning step's time goes."""
    table = Table(title=f"({name}): milliseconds a batch, by part (one thread, float32, profiled)")
    table.add_column("part")
    table.add_column("ms", justify="right")
    for part, milliseconds in parts.items():
        table.add_row(part, f"{milliseconds:.1f}")
    return table


def bench(name: str, folder: Path, address: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure one suite and print its tables; return what goes into the JSON file."""
    console = Console()
    console.print(f"[bold]{name}[/]: filling stores of Amazon Books' size …")
    with ExitStack() as stack:
        suite = _SUITES[name](folder, address, args.batches, args.positives, stack)
        with calm_garbage_collector():
            figures, stalls = measure(suite, args.rounds, console)
        torch.set_num_threads(1)
        parts = {key: milliseconds_per_batch(step) for key, step in suite.steps.items()}
        console.print(show_rows(suite, figures), show_claims(suite, figures), show_stalls(stalls))
        console.print(*(show_parts(*item) for item in parts.items()))
    claims = [{**claim._asdict(), "ratios": ratios(figures, claim.row, claim.base)} for claim in suite.claims]
    commits = {row: [one._asdict() for one in values] for row, values in stalls.items()}
    return {"per_second": figures, "claims": claims, "commits": commits, "parts_ms": parts}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--suite", choices=[*_SUITES, "all"], default="all", help="which tables (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, default=160, help=f"times {BATCH} positives a round in memory")
    parser.add_argument("--positives", type=int, default=512 * BATCH, help="positives a round, end to end")
    parser.add_argument("--json", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    names = list(_SUITES) if args.suite == "all" else [args.suite]
    result: dict[str, Any] = {"rounds": args.rounds, "batches": args.batches, "positives": args.positives}
    with tempfile.TemporaryDirectory(prefix="dualstream-bench-") as name:
        broker, address = start_broker(Path(name))
        try:
            for suite in names:
                folder = Path(name) / suite
                folder.mkdir()
                result[suite] = bench(suite, folder, address, args)
        finally:
            broker.terminate()
            broker.wait()
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
