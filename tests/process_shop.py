"""A shop for whole-process tests: a log that is written step by step, and trainers as processes over it.

Owns no test. The fixtures `shop` and `kafka_shop` stand in `integration/conftest.py`.
"""

import socket
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from trainer_runs import SMALL, TrainerProcess

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.schema import Click, Impression, ItemFeatures
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from stream_trainer.event_log import EventWriter
from stream_trainer.open_log import open_log
from stream_trainer.topics import create_topics

NUM_ITEMS = 30
START_MS = 1_700_000_000_000
LIMIT_S = 60


class Shop:
    """A log in a folder or on the broker, what was written to it, and trainers over it."""

    def __init__(self, folder: Path, log_settings: list[str]) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.settings = [*SMALL, *log_settings, f"store.path={folder / 'store'}"]
        self.settings += ["join.idle_timeout_seconds=0.2", "learning.max_wait_seconds=0.2"]
        self.config: Configuration = load_configuration(None, self.settings, {})
        self.num_clicks = 0
        self._trainers: list[TrainerProcess] = []

    def start(self, *settings: str, until_end: bool = False) -> TrainerProcess:
        """Start a trainer; flags given here win."""
        flags = ["--until-end"] if until_end else []
        trainer = TrainerProcess([*self.settings, *settings], *flags)
        self._trainers.append(trainer)
        return trainer

    def refusal(self, *settings: str) -> tuple[int, str]:
        """Run a bounded replay that is to be refused: the exit code and the one line that says why."""
        trainer = self.start(*settings, until_end=True)
        code = trainer.end()
        errors = [line for line in trainer.lines if line.startswith("error: ")]
        assert len(errors) == 1, trainer.text
        assert "Traceback" not in trainer.text
        return code, errors[0]

    def learn_all(self) -> None:
        """Run a bounded replay."""
        trainer = self.start(until_end=True)
        assert trainer.end() == 0, trainer.text

    def create_topics(self) -> None:
        """Make the topics that are missing."""
        log = open_log(self.config.log)
        create_topics(log, self.config.topics, num_partitions=2)
        log.close()

    def writer(self) -> EventWriter:
        """A writer to the log."""
        return open_log(self.config.log).writer()

    def write_items(self) -> None:
        """Write the catalogue."""
        writer = self.writer()
        for number in range(NUM_ITEMS):
            item = ItemFeatures(id=f"i{number}", ts_ms=START_MS, features={"category": f"c{number % 3}"})
            writer.send(self.config.topics.items, item.id.encode(), encode(item), START_MS)
        writer.close()

    def write_clicks(self, count: int, writer: EventWriter | None = None) -> None:
        """Write so many slates, and a click on each."""
        topics, out = self.config.topics, writer or self.writer()
        for number in range(self.num_clicks, self.num_clicks + count):
            user, ts_ms = f"u{number % 7}", START_MS + 1000 * number
            slate = [f"i{(number + step) % NUM_ITEMS}" for step in range(4)]
            name = f"m{number}"
            shown = Impression(impression_id=name, user_id=user, ts_ms=ts_ms, items=slate)
            click = Click(impression_id=name, user_id=user, item_id=slate[number % 4], ts_ms=ts_ms + 500)
            out.send(topics.impressions, user.encode(), encode(shown), ts_ms)
            out.send(topics.clicks, user.encode(), encode(click), ts_ms + 500)
        out.flush()
        if writer is None:
            out.close()
        self.num_clicks += count

    def num_learned(self) -> int:
        """How many positives are durable, once no trainer runs."""
        store = FeatureStore(self.config.store.path)
        progress = dict(store.items("meta")).get(b"progress")
        store.close()
        return int(msgpack.unpackb(progress)["num_positives"]) if progress else 0

    def metrics(self) -> dict[str, float]:
        """What the metrics endpoint says now; nothing while it is not there."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def wait_for_metric(self, name: str, value: float) -> None:
        """Return once a metric has reached a value."""
        self.wait(lambda: self.metrics().get(f"dualstream_trainer_{name}", -1.0) >= value, name)

    def wait(self, check: Callable[[], bool], what: str) -> None:
        """Return once the check holds."""
        deadline_s = time.monotonic() + LIMIT_S
        while not check():
            if time.monotonic() > deadline_s:
                said = "\n".join(trainer.text for trainer in self._trainers)
                pytest.fail(f"waited {LIMIT_S} s for {what}; the trainers said:\n{said}")
            time.sleep(0.02)

    def close(self) -> None:
        """End what still runs."""
        for trainer in self._trainers:
            trainer.kill()
