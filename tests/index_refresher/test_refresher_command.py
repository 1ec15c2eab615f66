"""The commands end to end over a real store: refresh, serve while it grows, roll back, stop cleanly."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.schema import Click, Impression, ItemFeatures
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from stream_trainer.feed import LocalFeed
from stream_trainer.file_log import FileEventLog
from stream_trainer.metrics import TrainerMetrics
from stream_trainer.trainer import Trainer

NUM_ITEMS = 12
START_MS = 1_700_000_000_000
SMALL = (
    "model.hidden=[16]",
    "learning.batch_size=8",
    "learning.shared_negatives=8",
    "learning.num_threads=1",
)


class Shop:
    """A folder with an event log, a trainer's store and generations."""

    def __init__(self, folder: Path) -> None:
        values = [f"log.path={folder / 'log'}", f"store.path={folder / 'store'}"]
        self.generations = folder / "generations"
        values += [f"refresh.path={self.generations}", "serve.port=0", "serve.reload_seconds=0.1", *SMALL]
        values += ["metrics.refresher_port=-1", "refresh.interval_seconds=0.3"]
        self.flags = [flag for value in values for flag in ("--set", value)]
        self.config: Configuration = load_configuration(None, values, {})
        self.num_clicks = 0

    def train(self, num_clicks: int) -> None:
        """Write clicks of seven users, learn them all and commit."""
        log = FileEventLog(self.config.log.path)
        topics = self.config.topics
        log.create_topics(dict.fromkeys([*topics.kinds(), topics.dead_letters], 1))
        writer = log.writer()
        if not self.num_clicks:
            for number in range(NUM_ITEMS):
                upsert = ItemFeatures(
                    id=f"i{number}", ts_ms=START_MS, features={"category": f"c{number % 3}"}
                )
                writer.send(topics.items, upsert.id.encode(), encode(upsert), START_MS)
        for number in range(self.num_clicks, self.num_clicks + num_clicks):
            user, ts_ms, impression = f"u{number % 7}", START_MS + 1000 * number, f"m{number}"
            slate = [f"i{(number + step) % NUM_ITEMS}" for step in range(3)]
            shown = Impression(impression_id=impression, user_id=user, ts_ms=ts_ms, items=slate)
            click = Click(impression_id=impression, user_id=user, item_id=slate[0], ts_ms=ts_ms + 500)
            writer.send(topics.impressions, user.encode(), encode(shown), ts_ms)
            writer.send(topics.clicks, user.encode(), encode(click), ts_ms + 500)
        self.num_clicks += num_clicks
        writer.close()
        store = FeatureStore(self.config.store.path)
        feed = LocalFeed(self.config, log, until_end=True)
        Trainer(self.config, feed, store, TrainerMetrics(CollectorRegistry())).run(threading.Event())
        store.close()
        feed.close()

    def command(self, name: str, *flags: str) -> subprocess.CompletedProcess[str]:
        arguments = [sys.executable, "-m", "index_refresher", name, *self.flags, *flags]
        return subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)

    def start(self, name: str, **environment: str) -> "Daemon":
        return Daemon([sys.executable, "-m", "index_refresher", name, *self.flags], environment)


class Daemon:
    """A running command; its log lines are gathered."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str]) -> None:
        self.process = subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._gather)
        self._thread.start()

    def _gather(self) -> None:
        assert self.process.stderr is not None
        self.lines += self.process.stderr

    def line(self, text: str) -> str:
        _wait_for(lambda: any(text in line for line in self.lines) or self.process.poll() is not None)
        return next(line for line in self.lines if text in line)

    def stop(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        code = self.process.wait(30)
        self.close()
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join()
        assert self.process.stderr is not None
        self.process.stderr.close()


def _wait_for(check: Callable[[], object]) -> None:
    deadline_s = time.monotonic() + 30
    while not check():
        assert time.monotonic() < deadline_s, check()
        time.sleep(0.05)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def daemons() -> Iterator[list[Daemon]]:
    started: list[Daemon] = []
    yield started
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.close()


def test_once_says_what_it_did(shop: Shop) -> None:
    missing = shop.command("once")
    assert missing.returncode == 8
    assert missing.stderr.startswith("error: there is no feature store in ")
    shop.train(20)
    first = shop.command("once")
    assert first.returncode == 0, first.stderr
    assert (
        f"published generation 00000001-1 in {shop.generations}: commit 1, {NUM_ITEMS} items, flat"
        in first.stdout
    )
    again = shop.command("once")
    assert (again.returncode, again.stdout.split(":")[0]) == (0, "nothing to do")
    refused = shop.command("rollback")
    assert (refused.returncode, "no generation in" in refused.stderr) == (12, True)
    bad = shop.command("once", "--set", "refresh.keep=0")
    assert (bad.returncode, "refresh.keep" in bad.stderr) == (2, True)


def test_serve_follows_generations_commits_and_rollback_and_stops_cleanly(
    shop: Shop, daemons: list[Daemon], tmp_path: Path
) -> None:
    server = shop.start("serve", TMPDIR=str(tmp_path))
    daemons.append(server)
    url = server.line("serving at").split("serving at ")[1].strip()
    base = url.removesuffix("/v1/recommendations")
    assert httpx.get(f"{base}/readyz").status_code == 503
    assert "there is no feature store" in httpx.get(f"{base}/readyz").json()["detail"]
    shop.train(20)
    assert shop.command("once").returncode == 0
    _wait_for(lambda: httpx.get(f"{base}/readyz").status_code == 200)

    answer = httpx.get(f"{url}/u1?k=4").json()
    assert (answer["generation"], answer["commit"], answer["source"]) == ("00000001-1", 1, "model")
    assert len(answer["items"]) == 4
    clicked = {f"i{number % NUM_ITEMS}" for number in range(20) if number % 7 == 1}
    assert clicked.isdisjoint(item["id"] for item in httpx.get(f"{url}/u1").json()["items"])
    stranger = httpx.get(f"{url}/nobody?k=4").json()
    assert (stranger["source"], len(stranger["items"])) == ("popularity", 4)

    shop.train(30)
    _wait_for(lambda: httpx.get(f"{url}/u1").json()["commit"] == 2)
    assert httpx.get(f"{url}/u1").json()["generation"] == "00000001-1"
    assert shop.command("once").returncode == 0
    _wait_for(lambda: httpx.get(f"{url}/u1").json()["generation"] == "00000002-2")
    assert shop.command("rollback").stdout == (
        "now in use: generation 00000001-1, of commit 1; "
        "refreshes do not replace it until index-refresher resume\n"
    )
    _wait_for(lambda: httpx.get(f"{url}/u1").json()["generation"] == "00000001-1")
    metrics = httpx.get(f"{base}/metrics").text
    assert "dualstream_server_click_to_served_seconds_count 2.0" in metrics
    taken = shop.command("serve", "--set", f"serve.port={base.rsplit(':', 1)[1]}")
    assert (taken.returncode, "cannot serve at" in taken.stderr) == (13, True)
    assert server.stop(signal.SIGTERM) == 0
    assert list(tmp_path.glob("dualstream-reader-*")) == []


def test_a_rollback_holds_against_once_and_run_until_resume(shop: Shop, daemons: list[Daemon]) -> None:
    for _ in range(2):
        shop.train(10)
        assert shop.command("once").returncode == 0
    assert shop.command("rollback").returncode == 0
    holds = "; a rollback holds 00000001-1 in use until index-refresher resume"
    assert shop.command("once").stdout.endswith(f"is of the newest commit already{holds}\n")
    shop.train(10)
    refresher = shop.start("run")
    daemons.append(refresher)
    assert refresher.line("made generation 00000003-3").endswith(f"{holds}\n")
    resumed = "now in use: generation 00000003-3, of commit 3; refreshes replace it again\n"
    assert shop.command("resume").stdout == resumed
    shop.train(10)
    refresher.line("published generation 00000004-4")
    assert refresher.stop(signal.SIGTERM) == 0


def test_a_server_starts_although_the_newest_generation_is_damaged(shop: Shop, daemons: list[Daemon]) -> None:
    for _ in range(2):
        shop.train(10)
        assert shop.command("once").returncode == 0
    (shop.generations / "00000002-2" / "index.faiss").write_bytes(b"")
    server = shop.start("serve")
    daemons.append(server)
    url = server.line("serving at").split("serving at ")[1].strip()
    assert "00000002-2/index.faiss is damaged" in server.line("00000001-1 stands in for the one in use")
    assert httpx.get(f"{url}/u1").json()["generation"] == "00000001-1"
    assert shop.command("once").returncode == 0
    _wait_for(lambda: httpx.get(f"{url}/u1").json()["generation"] == "00000003-2")
    assert server.stop(signal.SIGTERM) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_run_publishes_on_schedule_and_stops_cleanly(
    shop: Shop, daemons: list[Daemon], number: signal.Signals
) -> None:
    refresher = shop.start("run")
    daemons.append(refresher)
    refresher.line("no new generation, the one in use stays: there is no feature store")
    shop.train(20)
    refresher.line("published generation 00000001-1")
    refresher.line("nothing to do")
    shop.train(5)
    refresher.line("published generation 00000002-2")
    assert refresher.stop(number) == 0


def test_help_names_every_command() -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "index_refresher", "--help"], capture_output=True, text=True, check=True
    )
    for name in ("run", "once", "serve", "rollback", "resume"):
        assert f"\n    {name} " in shown.stdout
