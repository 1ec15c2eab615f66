"""A real Prometheus scrapes the three real daemons by deploy/prometheus.yml, and answers over our metrics."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.schema import Click, Impression, ItemFeatures
from stream_trainer.file_log import FileEventLog

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy" / "prometheus.yml"
UNPACKED = ROOT / "build" / "prometheus" / "usr" / "bin"
NUM_CLICKS = 120
NUM_ITEMS = 40
START_MS = 1_700_000_000_000


def _tool(name: str) -> str:
    """Where a program of Debian's package is: installed, or unpacked by `make test`."""
    path = shutil.which(name) or shutil.which(name, path=str(UNPACKED))
    if path is None:
        reason = f"{name} is missing: run deploy/unpack-prometheus, or install Debian's prometheus"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return path


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def _running(name: str, command: Sequence[str], folder: Path) -> Iterator[None]:
    """Run a daemon from the repository's root; it must still be there at the end, and stop cleanly."""
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield
        assert process.poll() is None, f"{name} ended early:\n{log.read_text()[-3000:]}"
    except BaseException:
        print(f"--- {name}:\n{log.read_text()[-3000:]}")
        raise
    finally:
        process.terminate()
        code = process.wait(60)
    assert code == 0, f"{name} ended with {code}:\n{log.read_text()[-3000:]}"


def _wait_for(what: str, check: Callable[[], Any], timeout_s: float = 60) -> Any:
    deadline_s = time.monotonic() + timeout_s
    last: object = None
    while time.monotonic() < deadline_s:
        try:
            last = check()
        except OSError as error:
            last = error
        else:
            if last:
                return last
        time.sleep(0.2)
    return pytest.fail(f"waited {timeout_s:.0f} s for {what}; last: {last}")


def _write_events(folder: Path) -> None:
    """A small shop: items, and impressions each followed by a click on one of its items."""
    log = FileEventLog(folder)
    topics = Configuration().topics
    log.create_topics({**dict.fromkeys(topics.kinds(), 2), topics.dead_letters: 1})
    writer = log.writer()
    for item in range(NUM_ITEMS):
        upsert = ItemFeatures(id=f"i{item}", ts_ms=START_MS, features={"category": f"c{item % 3}"})
        writer.send(topics.items, upsert.id.encode(), encode(upsert), upsert.ts_ms)
    for number in range(NUM_CLICKS):
        user, ts_ms = f"u{number % 7}", START_MS + 1000 * number
        slate = [f"i{(number + step) % NUM_ITEMS}" for step in range(4)]
        shown = Impression(impression_id=f"m{number}", user_id=user, ts_ms=ts_ms, items=slate)
        click = Click(impression_id=f"m{number}", user_id=user, item_id=slate[number % 4], ts_ms=ts_ms + 500)
        writer.send(topics.impressions, user.encode(), encode(shown), ts_ms)
        writer.send(topics.clicks, user.encode(), encode(click), ts_ms + 500)
    writer.flush()
    writer.close()
    log.close()


def _settings(folder: Path, ports: Sequence[int]) -> list[str]:
    values = {
        "log.path": folder / "log",
        "store.path": folder / "store",
        "store.row_memory_mib": 16,
        "refresh.path": folder / "generations",
        "refresh.interval_seconds": 1,
        "join.idle_timeout_seconds": 0.2,
        "model.hidden": "[16]",
        "learning.batch_size": 16,
        "learning.max_wait_seconds": 0.2,
        "learning.shared_negatives": 8,
        "learning.num_threads": 1,
        "learning.commit_interval_seconds": 0.5,
        "metrics.trainer_port": ports[0],
        "metrics.refresher_port": ports[1],
        "serve.port": ports[2],
    }
    flags = [argument for key, value in values.items() for argument in ("--set", f"{key}={value}")]
    return ["--config", str(ROOT / "deploy" / "dualstream.toml"), *flags]


def _rewritten_config(folder: Path, ports: Sequence[int]) -> Path:
    """The deployed configuration with the test's ports, scraping often."""
    config = Configuration()
    deployed = (config.metrics.trainer_port, config.metrics.refresher_port, config.serve.port)
    text = CONFIG.read_text()
    for old, new in zip(deployed, ports, strict=True):
        text, num_replaced = re.subn(rf'"127\.0\.0\.1:{old}"', f'"127.0.0.1:{new}"', text)
        assert num_replaced == 1
    path = folder / "prometheus.yml"
    path.write_text(text.replace("scrape_interval: 15s", "scrape_interval: 1s"))
    return path


def _ask(port: int, path: str, **query: str) -> Any:
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)["data"]


def _value(port: int, query: str) -> float | None:
    result = _ask(port, "query", query=query)["result"]
    return float(result[0]["value"][1]) if result else None


def test_the_configuration_is_valid() -> None:
    checked = subprocess.run(
        [_tool("promtool"), "check", "config", CONFIG], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_daemon_is_scraped_and_a_query_is_answered(tmp_path: Path) -> None:
    prometheus = _tool("prometheus")
    *ports, port = _free_ports(4)
    _write_events(tmp_path / "log")
    settings = _settings(tmp_path, ports)
    storage = [f"--storage.tsdb.path={tmp_path / 'tsdb'}", f"--web.listen-address=127.0.0.1:{port}"]
    with ExitStack() as daemons:
        for name, module, command in (
            ("trainer", "stream_trainer", "run"),
            ("refresher", "index_refresher", "run"),
            ("server", "index_refresher", "serve"),
        ):
            arguments = [sys.executable, "-m", module, command, *settings]
            daemons.enter_context(_running(name, arguments, tmp_path))
            if name == "trainer":  # the others need a store to read
                _wait_for("the first commit", (tmp_path / "store" / "CURRENT").exists)
        config = f"--config.file={_rewritten_config(tmp_path, ports)}"
        daemons.enter_context(_running("prometheus", [prometheus, config, *storage], tmp_path))

        def healths() -> dict[str, str]:
            targets = _ask(port, "targets", state="active")["activeTargets"]
            return {target["labels"]["job"]: target["health"] for target in targets}

        jobs = ("dualstream-trainer", "dualstream-refresher", "dualstream-server")
        _wait_for("all targets up", lambda: healths() == dict.fromkeys(jobs, "up"))
        learned = "sum(dualstream_trainer_positives_total)"
        _wait_for("every click learned, as Prometheus sees it", lambda: _value(port, learned) == NUM_CLICKS)
        clicks = 'dualstream_trainer_events_total{job="dualstream-trainer",topic="clicks"}'
        assert _value(port, clicks) == NUM_CLICKS
        assert _value(port, "sum(up)") == len(jobs)
