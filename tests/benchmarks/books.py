"""`make bench-books`: one whole replay of a generated log of Amazon Books' published size by the real daemon,
at a hundredth, a tenth and the whole of it.

Prints throughput along the replay, memory, disk, how long a restart takes and what was learned, and how cost
per positive grows with size; writes build/bench-books.json and, beside it, the curve as a picture.
"""

import argparse
import json
import resource
import tempfile
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from daemon import Run, folder_bytes, learn, live_bytes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from feature_store.configuration import Configuration
from feature_store.settings import load_configuration
from simulators.baselines import popularity_scorer
from simulators.dataset import load_dataset
from simulators.evaluate import (
    Held,
    feature_overrides,
    hold_out,
    rank_by_scorer,
    rank_by_store,
)
from simulators.metrics import hit_rate
from simulators.replay import replay
from simulators.synthetic import generate
from simulators.timeline import num_events, timeline
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics

NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS, NUM_CATEGORIES = 695_513, 243_166, 6_706_125, 11
_TAIL_EVENTS = 30_000  # of the log's end, kept back for the restart
_ASKED = 10_000  # users whose held-out item is ranked
_SETTINGS = ("learning.prequential_every=0", "store.row_memory_mib=3072")


class Size:
    """One size of the world: its data, settings and log in a folder of their own."""

    def __init__(self, folder: Path, share: int, seed: int, overrides: list[str]) -> None:
        self.share, self._folder = share, folder
        users, items, interactions = (n // share for n in (NUM_USERS, NUM_ITEMS, NUM_INTERACTIONS))
        generate(folder / "data", users, items, interactions, NUM_CATEGORIES, seed)
        self.held: Held = hold_out(load_dataset(folder / "data"), None, None)
        self._settings = [
            *feature_overrides(self.held.train),
            f"store.path={folder / 'store'}",
            f"log.path={folder / 'log'}",
            *_SETTINGS,
            *overrides,
        ]
        self.config: Configuration = load_configuration(None, self._settings, {})
        self._events = timeline(self.held.train, seed)

    def write(self, num: int | None) -> None:
        """Append the next events to the log."""
        with closing(open_log(self.config.log)) as event_log:
            create_topics(event_log, self.config.topics)
            with closing(event_log.writer()) as writer:
                replay(
                    islice(self._events, num), writer, self.config.topics, num_events=num, show_progress=True
                )

    def learn(self) -> Run:
        """Run the daemon to the log's end."""
        return learn(self._folder, self._settings)


def measure(size: Size, console: Console) -> dict[str, Any]:
    """Replay one size, restart, and ask."""
    train = size.held.train
    console.print(f"1/{size.share}: writing {num_events(train):,} events …")
    size.write(num_events(train) - _TAIL_EVENTS)
    console.print("learning …")
    run = size.learn()
    size.write(None)
    again = size.learn()
    console.print("asking …")
    rng = np.random.default_rng(0)
    chosen = np.sort(rng.permutation(len(size.held.test.reviews))[:_ASKED])
    held = Held(train, size.held.test.take(chosen))
    store = size.config.store.path
    return {
        "share": size.share,
        "num_users": train.reviews.num_users,
        "num_items": len(train.items),
        **run._asdict(),
        "store_bytes": folder_bytes(store),
        "live_bytes": live_bytes(store),
        "restart_s": again.first_batch_s,
        "hr@50": hit_rate(rank_by_store(store, held).ranks, 50),
        "hr@50 popularity": hit_rate(rank_by_scorer(held, popularity_scorer(train)).ranks, 50),
        "asking_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def show(results: list[dict[str, Any]]) -> Table:
    """Return the table: one column a size, and what is to be reached."""
    table = Table(title="Amazon Books' size, generated, and smaller ones")
    for column in ("", *(f"1/{result['share']}" for result in results), "aim"):
        table.add_column(column, justify="right" if column else "left")

    def row(what: str, aim: str, value: Any) -> None:
        table.add_row(what, *(value(result) for result in results), aim)

    row("users", "", lambda r: f"{r['num_users']:,}")
    row("items", "", lambda r: f"{r['num_items']:,}")
    row("positives learned", "", lambda r: f"{r['num_positives']:,}")
    row("seconds", "", lambda r: f"{r['seconds']:,.0f}")
    row("microseconds a positive", "flat", lambda r: f"{1e6 * r['seconds'] / r['num_positives']:,.0f}")
    row("last tenth ÷ first, positives/s", "≥ 0.9", lambda r: f"{r['tenths'][-1] / r['tenths'][0]:.2f}")
    row("commits", "", lambda r: f"{r['num_commits']}")
    row(
        "peak memory, MiB: learning, the others",
        "≤ 4,096",
        lambda r: " + ".join(f"{m:,}" for m in r["peaks_mib"]),
    )
    row("store on disk ÷ its live bytes", "≤ 2.5", lambda r: f"{r['store_bytes'] / r['live_bytes']:.2f}")
    row("restart to first learned batch, s", "≤ 10", lambda r: f"{r['restart_s']:.1f}")
    row("peak memory of generating, loading and ranking, MiB", "≤ 3,072", lambda r: f"{r['asking_mib']:,}")
    row("HR@50", "", lambda r: f"{r['hr@50']:.4f}")
    row("HR@50 of popularity", "far below", lambda r: f"{r['hr@50 popularity']:.4f}")
    return table


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Write the picture of throughput along each replay."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for result in results:
        axes.plot(range(5, 100, 10), result["tenths"], marker="o", label=f"1/{result['share']}")
    axes.set(xlabel="share of the replay, %", ylabel="positives a second", ylim=(0, None))
    axes.legend(title="of Amazon Books' size")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure each size, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shares", type=int, nargs="+", default=[100, 10, 1], help="1/n of the size, each n")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, default=Path("build/bench-books.json"))
    args = parser.parse_args()
    console = Console()
    results = []
    for share in args.shares:
        with tempfile.TemporaryDirectory(prefix="dualstream-books-") as folder:
            results.append(measure(Size(Path(folder), share, args.seed, args.overrides), console))
    console.print(show(results))
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps({"seed": args.seed, "set": args.overrides, "sizes": results}, indent=1))
    draw(results, args.json.with_suffix(".png"))


if __name__ == "__main__":
    main()
