"""The main job from end to end, with real processes: replay, train, refresh, serve, query, evaluate.

Owns the order of things and the folder it works in. Each part is the same program that a shop would run.
"""

import json
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from feature_store.configuration import Configuration
from feature_store.errors import DualstreamError, SettingsError
from feature_store.settings import load_configuration
from simulators.evaluate import Held, evaluate_store, feature_overrides, replay_into_log
from simulators.tables import figures_table, people_table

_POLL_SECONDS = 0.25
_QUERY_SECONDS = 0.2
_REFRESH_SECONDS = 6
_NUM_PEOPLE = 3
_SHOWN = 5
_MARKER = ".dualstream-demo"


class Process:
    """One of the daemons, its output in a log file beside the rest."""

    def __init__(self, folder: Path, name: str, module: str, arguments: Sequence[str]) -> None:
        self.name = name
        self.log_path = folder / f"{name}.log"
        with self.log_path.open("w") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", module, *arguments], stdout=output, stderr=subprocess.STDOUT
            )

    @property
    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def finish(self, stop: bool = False) -> None:
        """Wait for its end, asking for it first if `stop`; raises DualstreamError if it did not end well."""
        if stop:
            self._process.terminate()
        code = self._process.wait(timeout=120)
        if code:
            tail = "\n".join(self.log_path.read_text().splitlines()[-5:])
            raise DualstreamError(f"{self.name} ended with exit code {code}; {self.log_path} says:\n{tail}")

    def kill(self) -> None:
        """End it whatever it does."""
        self._process.kill()
        self._process.wait()


class Trickle(threading.Thread):
    """Queries the server now and then, as visitors would, and keeps what each answer said of itself."""

    def __init__(self, url: str, users: Sequence[str], seed: int) -> None:
        super().__init__(daemon=True)
        self._url = url
        self._users = users
        self._random = random.Random(seed)
        self._stopping = threading.Event()
        self._start = time.monotonic()
        self.answers: list[dict[str, Any]] = []

    def run(self) -> None:
        """Ask until stopped."""
        while not self._stopping.wait(_QUERY_SECONDS):
            status, body = ask(self._url, self._random.choice(self._users), 10)
            answer = {key: body.get(key) for key in ("generation", "commit", "source")}
            self.answers.append({"seconds": time.monotonic() - self._start, "status": status, **answer})

    def stop(self) -> None:
        """Ask no more."""
        self._stopping.set()
        self.join()


def ask(url: str, user: str, k: int) -> tuple[int, dict[str, Any]]:
    """Return status and body of one query; status 0 while nobody listens."""
    try:
        with urllib.request.urlopen(f"{url}/v1/recommendations/{user}?k={k}", timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, {}
    except OSError:
        return 0, {}


def configure(folder: Path, held: Held, kafka: str | None, port: int, overrides: Sequence[str]) -> list[str]:
    """Return the settings of the demo: everything in one folder, no fixed ports, the data's own features."""
    settings = [
        f"store.path={folder / 'store'}",
        f"log.path={folder / 'log'}",
        f"refresh.path={folder / 'generations'}",
        f"refresh.interval_seconds={_REFRESH_SECONDS}",
        "learning.commit_interval_seconds=4",
        "learning.num_threads=1",  # the other core is for the refresher and the server
        "metrics.trainer_port=0",
        "metrics.refresher_port=0",
        f"serve.port={port}",
        *feature_overrides(held.train),
    ]
    if kafka:
        stamp = time.time_ns() // 1_000_000
        topics = ("items", "users", "impressions", "clicks", "dead_letters")
        settings += ["log.kind=kafka", f"log.bootstrap_servers={kafka}"]
        settings += [f"topics.{topic}=demo-{stamp}-{topic}" for topic in topics]
    return [argument for setting in [*settings, *overrides] for argument in ("--set", setting)]


def check_folder(folder: Path) -> None:
    """Refuse a folder that the demo could not make anew, before there is any work to lose.

    Raises:
        SettingsError: it holds something that no demo wrote, or cannot be made.
    """
    try:
        if folder.exists() and not (folder / _MARKER).is_file() and any(folder.iterdir()):
            raise SettingsError(
                f"--out: {folder} holds what no demo wrote, and a demo begins with an empty folder: name "
                "another, or delete it"
            )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARKER).touch()
    except OSError as error:
        raise SettingsError(f"--out: cannot write {folder}: {error.strerror}") from None


def run_demo(
    folder: Path, held: Held, source: str, kafka: str | None, port: int, overrides: Sequence[str], seed: int
) -> dict[str, Any]:
    """Do the main job and return what the report shows. `folder` passed `check_folder`: it is made anew."""
    console = Console()
    shutil.rmtree(folder, ignore_errors=True)
    check_folder(folder)
    arguments = configure(folder, held, kafka, port, overrides)
    config = load_configuration(None, arguments[1::2], {})
    console.print(f"data: {source}; log: {'Kafka at ' + kafka if kafka else 'embedded files'}")
    started = time.monotonic()
    num_events = replay_into_log(config, held.train, seed, show_progress=True)
    console.print(f"replayed {len(held.train.reviews):,} reviews as {num_events:,} events")
    summary, answers, people = _stream(folder, config, held, arguments, num_events, seed)
    console.print("ranking each user's last item over the whole corpus …")
    figures = evaluate_store(config.store.path, held, seed)
    seconds = time.monotonic() - started
    generations = sorted({a["generation"] for a in answers if a["generation"] is not None})
    report = {
        "data": held.train.name,
        "seed": seed,
        "num_items": len(held.train.items),
        "num_test": len(held.test.reviews),
        "figures": figures,
        "people": people,
        "queries": answers,
        "steps": summary["steps"],
        "prequential": summary["prequential"],
        "generations": generations,
        "seconds": seconds,
        "story": f"{source}: {len(held.train.reviews):,} reviews replayed as {num_events:,} events and "
        f"learned in one pass, {summary['num_commits']} commits; {len(generations)} generations served to "
        f"{len(answers)} queries meanwhile; {seconds:.0f} s in all.",
    }
    console.print(figures_table(figures, summary["prequential"]))
    console.print(people_table(people))
    return report


def _stream(
    folder: Path, config: Configuration, held: Held, arguments: list[str], num_events: int, seed: int
) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """Run the daemons until the trainer is through the log; return its summary, the answers, and three
    people.
    """
    summary_path = folder / "trainer.json"
    running: list[Process] = []
    user_ids = held.train.reviews.user_ids
    try:
        trainer_arguments = ["run", "--until-end", "--summary", str(summary_path), *arguments]
        trainer = Process(folder, "trainer", "stream_trainer", trainer_arguments)
        running += [trainer]
        _wait_for((config.store.path / "CURRENT").exists, trainer)
        running += [Process(folder, "refresher", "index_refresher", ["run", *arguments])]
        running += [Process(folder, "server", "index_refresher", ["serve", *arguments])]
        url = f"http://127.0.0.1:{config.serve.port}"
        trickle = Trickle(url, user_ids, seed)
        trickle.start()
        _show_progress(trainer, url, trickle, num_events, len(held.train.reviews))
        trainer.finish()
        once = Process(folder, "once", "index_refresher", ["once", *arguments])
        once.finish()
        summary = json.loads(summary_path.read_text())
        _wait_for_generation(config, trickle)
        trickle.stop()
        people = _people(url, held, seed)
        for process in running[1:]:
            process.finish(stop=True)
        return summary, trickle.answers, people
    finally:
        for process in running:
            if process.is_running:
                process.kill()


def _wait_for(ready: Any, process: Process) -> None:
    while not ready():
        if not process.is_running:
            process.finish()
        time.sleep(_POLL_SECONDS)


def _show_progress(trainer: Process, url: str, trickle: Trickle, num_events: int, num_clicks: int) -> None:
    """Follow the trainer by what its log says of its commits, and the server by its answers."""
    with Progress() as progress:
        task = progress.add_task("learning", total=num_clicks)
        while trainer.is_running:
            commits = [line for line in trainer.log_path.read_text().splitlines() if " commit " in line]
            if commits:
                progress.update(task, completed=int(commits[-1].split(", ")[-1].split()[0]))
            seen = {a["generation"] for a in trickle.answers if a["generation"] is not None}
            progress.update(
                task, description=f"learning; {len(trickle.answers)} queries, {len(seen)} generations"
            )
            time.sleep(_POLL_SECONDS)
        progress.update(task, completed=num_clicks)


def _wait_for_generation(config: Configuration, trickle: Trickle, timeout_seconds: float = 30) -> None:
    """Wait until the server answers from the newest generation on disk."""
    newest = (config.refresh.path / "CURRENT").read_text().strip()
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if trickle.answers and str(trickle.answers[-1]["generation"]) == newest:
            return
        time.sleep(_POLL_SECONDS)
    raise DualstreamError(f"the server does not answer from generation {newest}; see the server's log")


def _people(url: str, held: Held, seed: int) -> list[dict[str, Any]]:
    """Return three users with what they bought and what they would be shown, by title where there is one."""
    reviews = held.train.reviews
    counts: dict[int, int] = {}
    for user in reviews.users.tolist():
        counts[user] = counts.get(user, 0) + 1
    chosen = random.Random(seed).sample(
        sorted(user for user, n in counts.items() if 4 <= n <= 8), _NUM_PEOPLE
    )
    people = []
    for user in chosen:
        status, body = ask(url, reviews.user_ids[user], _SHOWN)
        if status != 200:
            raise DualstreamError(f"the server answered {status} for user {reviews.user_ids[user]}")
        bought = [reviews.item_ids[item] for item in reviews.items[reviews.users == user].tolist()]
        people.append(
            {
                "user_id": reviews.user_ids[user],
                "bought": [_title(held, item) for item in bought],
                "shown": [_title(held, item["id"]) for item in body["items"]],
                "source": body["source"],
                "generation": body["generation"],
            }
        )
    return people


def _title(held: Held, item_id: str) -> str:
    meta = held.train.items.get(item_id)
    if meta is None:
        return item_id
    text = meta.title or f"{item_id} ({meta.category or 'no category'})"
    return text if len(text) <= 90 else text[:87] + "…"
