"""`make bench-big`: ten times Amazon Books' users, and memory for some of their rows only.

The store holds a row of every user and item; the log has a million impressions and clicks of users drawn at
random, nearly each of whom must be read from the store. 2 GiB hold all rows that a million clicks touch, 256
MiB do not: there rows make room for others. Prints both; writes build/bench-big.json.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

from daemon import Run, folder_bytes, learn, live_bytes
from pairs import NUM_ITEMS, NUM_USERS
from rich.console import Console
from rich.table import Table
from workload import default_configuration, fill_store, write_events

from feature_store.configuration import Configuration
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics

_SETTINGS = ("learning.rehearsal_ratio=0", "learning.prequential_every=0")
_MORE = 4096  # positives for the restart


def write(config: Configuration, segment: int, num_positives: int, num_users: int) -> None:
    """Append a segment of impressions and clicks to the log."""
    with closing(open_log(config.log)) as event_log:
        create_topics(event_log, config.topics)
        write_events(event_log, config, segment, num_positives, num_users)


def measure(
    folder: Path, memory_mib: int, num_users: int, num_positives: int, overrides: list[str]
) -> dict[str, Any]:
    """Learn all, and once more after a restart."""
    config = default_configuration(folder, *_SETTINGS, f"store.row_memory_mib={memory_mib}")
    settings = [
        *_SETTINGS,
        f"store.row_memory_mib={memory_mib}",
        f"store.path={config.store.path}",
        f"log.path={config.log.path}",
        *overrides,
    ]
    shutil.rmtree(config.log.path, ignore_errors=True)
    write(config, 0, num_positives, num_users)
    run: Run = learn(folder, settings)
    write(config, num_positives // _MORE + 1, _MORE, num_users)
    again = learn(folder, settings)
    return {
        "memory_mib": memory_mib,
        **run._asdict(),
        "restart_s": again.first_batch_s,
        "store_bytes": folder_bytes(config.store.path),
        "live_bytes": live_bytes(config.store.path),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=10 * NUM_USERS)
    parser.add_argument("--positives", type=int, default=1_000_000)
    parser.add_argument("--memory-mib", type=int, nargs="+", default=[2048, 256], help="one run for each")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, default=Path("build/bench-big.json"))
    args = parser.parse_args()
    console = Console()
    results = []
    for memory_mib in args.memory_mib:
        with tempfile.TemporaryDirectory(prefix="dualstream-big-") as name:
            console.print(f"{memory_mib:,} MiB for rows: filling a store with {args.users:,} users …")
            fill_store(default_configuration(Path(name), "store.row_memory_mib=2048"), args.users)
            console.print("learning …")
            results.append(measure(Path(name), memory_mib, args.users, args.positives, args.overrides))
    table = Table(title=f"{args.users:,} users, {NUM_ITEMS:,} items, {args.positives:,} positives")
    for column in ("MiB for rows", *(f"{result['memory_mib']:,}" for result in results)):
        table.add_column(column, justify="right")

    def row(what: str, value: Callable[[dict[str, Any]], str]) -> None:
        table.add_row(what, *map(value, results))

    row("positives/s", lambda r: f"{r['num_positives'] / r['seconds']:,.0f}")
    row("last tenth ÷ first", lambda r: f"{r['tenths'][-1] / r['tenths'][0]:.2f}")
    row("rows read from the store", lambda r: f"{sum(r['rows_read'].values()):,}")
    row("rows that made room", lambda r: f"{sum(r['rows_evicted'].values()):,}")
    row("commits", lambda r: f"{r['num_commits']}")
    row("peak memory, MiB: learning, the others", lambda r: " + ".join(f"{m:,}" for m in r["peaks_mib"]))
    row("store on disk ÷ its live bytes", lambda r: f"{r['store_bytes'] / r['live_bytes']:.2f}")
    row("restart to first learned batch, s", lambda r: f"{r['restart_s']:.1f}")
    console.print(table)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
