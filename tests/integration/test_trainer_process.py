"""`stream-trainer run` as operators see it: signals, exit codes, and learning from a log that still grows."""

import re
import shutil
import signal
import socket
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import pytest
from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition
from trainer_runs import ROOT, SMALL, TrainerProcess, assert_same_bytes, store_bytes

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.schema import Click, EventKind, Impression, ItemFeatures
from feature_store.settings import load_configuration
from feature_store.store import FeatureStore
from simulators.replay import create_topics
from stream_trainer.event_log import EventWriter, TopicPartition
from stream_trainer.file_log import FileEventLog
from stream_trainer.file_writer import FileWriter
from stream_trainer.open_log import open_log

NUM_ITEMS = 30
START_MS = 1_700_000_000_000
LIMIT_S = 60
TOPICS = ("items", "users", "impressions", "clicks", "dead_letters")


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


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A shop on the embedded log."""
    made = Shop(tmp_path, [f"log.path={tmp_path / 'log'}"])
    yield made
    made.close()


@pytest.fixture
def kafka_shop(tmp_path: Path, kafka_bootstrap: str) -> Iterator[Shop]:
    """A shop on the broker, with topics of its own."""
    prefix = uuid.uuid4().hex[:8]
    names = [f"topics.{name}=process-{prefix}-{name.replace('_', '-')}" for name in TOPICS]
    made = Shop(tmp_path, ["log.kind=kafka", f"log.bootstrap_servers={kafka_bootstrap}", *names])
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_commits_what_was_applied_and_ends_well(shop: Shop, number: signal.Signals) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(40)
    trainer = shop.start(f"metrics.trainer_port={shop.port}", "learning.commit_interval_seconds=1e6")
    shop.wait_for_metric("positives_total", 40)
    trainer.process.send_signal(number)
    assert trainer.end() == 0, trainer.text
    assert trainer.text.count("trainer: commit ") == 1
    assert shop.num_learned() == 40


def test_a_second_signal_kills(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(400)
    slow = ["learning.batch_size=1", "learning.rehearsal_ratio=64", "model.hidden=[2048,2048]"]
    trainer = shop.start(f"metrics.trainer_port={shop.port}", *slow, until_end=True)
    shop.wait_for_metric("positives_total", 1)
    trainer.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert trainer.process.poll() is None, "it should be busy for seconds yet"
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.end() == -signal.SIGTERM
    assert shop.num_learned() == 0


def test_a_stop_in_the_middle_leaves_no_trace(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(3000)
    often = "learning.commit_every_batches=5"
    stopped = shop.start(often, until_end=True)
    assert stopped.wait_for("trainer: commit ", 3)
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.end() == 0, stopped.text
    assert 0 < shop.num_learned() < 3000
    resumed = shop.start(often, until_end=True)
    assert resumed.end() == 0, resumed.text
    undisturbed = shop.folder / "undisturbed"
    whole = shop.start(f"store.path={undisturbed}", until_end=True)
    assert whole.end() == 0, whole.text
    assert_same_bytes(store_bytes(shop.config.store.path), store_bytes(undisturbed))


def test_live_it_learns_what_is_written_meanwhile(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    trainer = shop.start(f"metrics.trainer_port={shop.port}")
    shop.wait_for_metric('events_total{topic="items"}', NUM_ITEMS)
    shop.write_clicks(5)  # less than a batch: learned after a while
    shop.wait_for_metric("positives_total", 5)
    shop.write_clicks(35)
    shop.wait_for_metric("positives_total", 40)
    writer = shop.writer()
    for value in (b"not an event", b"{}", b"x" * 70_000):
        writer.send(shop.config.topics.clicks, b"u1", value, START_MS)
    writer.close()
    shop.wait(lambda: _num_dead(shop.metrics()) == 3, "three dead letters")
    shop.write_clicks(3)
    shop.wait_for_metric("positives_total", 43)
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.end() == 0, trainer.text
    assert shop.num_learned() == 43
    assert _dead_letters(shop) == [
        (b"not an event", "malformed"),
        (b"{}", "wrong_type"),
        (b"x" * 70_000, "oversized"),
    ]


def _num_dead(metrics: dict[str, float]) -> float:
    return sum(
        value for name, value in metrics.items() if name.startswith("dualstream_trainer_dead_letters_total{")
    )


def _dead_letters(shop: Shop) -> list[tuple[bytes | None, str]]:
    log = FileEventLog(shop.config.log.path)
    reader = log.reader()
    reader.assign({TopicPartition(shop.config.topics.dead_letters, 0): 0})
    records = reader.poll(100, 0.1)
    reader.close()
    for record in records:
        assert dict(record.headers)["origin_topic"] == shop.config.topics.clicks.encode()
    return [(record.value, dict(record.headers)["reason"].decode()) for record in records]


def test_metrics_are_those_documented(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(40)
    often = ["learning.prequential_every=1", "learning.commit_interval_seconds=0.1"]
    trainer = shop.start(f"metrics.trainer_port={shop.port}", *often)
    shop.wait_for_metric("positives_total", 40)
    shop.wait_for_metric("commits_total", 1)
    metrics = shop.metrics()
    served = {re.sub(r"(_bucket|_sum|_count|_created)?(\{.*)?$", "", name) for name in metrics}
    section = (ROOT / "deploy" / "METRICS.md").read_text().split("\n## ")[1]
    documented = set(re.findall(r"^\| `(dualstream_trainer_\w+)`", section, re.MULTILINE))
    assert len(documented) > 15
    missing = documented - {re.sub("_total$", "", name) for name in served} - served
    assert missing <= {"dualstream_trainer_dead_letters_total"}  # none yet, so no reason to show
    assert metrics['dualstream_trainer_events_total{topic="clicks"}'] == 40
    assert metrics['dualstream_trainer_join_events{outcome="joined"}'] == 40
    assert metrics["dualstream_trainer_corpus_items"] == NUM_ITEMS
    assert metrics["dualstream_trainer_lag_records"] == 0
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.end() == 0, trainer.text


def test_a_second_trainer_on_the_same_store_is_refused(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    first = shop.start(f"metrics.trainer_port={shop.port}")
    shop.wait_for_metric('events_total{topic="items"}', NUM_ITEMS)
    code, why = shop.refusal()
    assert code == 9
    assert why.startswith(f"error: another trainer has the feature store {shop.config.store.path} open")
    shop.write_clicks(20)
    shop.wait_for_metric("positives_total", 20)  # the first one does not mind
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 0, first.text


def test_an_unknown_setting_is_refused_by_name(shop: Shop) -> None:
    code, why = shop.refusal("learning.batch_sise=8")
    assert code == 2
    assert "learning.batch_sise" in why
    assert "did you mean 'batch_size'?" in why
    assert not shop.config.store.path.exists()


def test_missing_topics_are_named(shop: Shop) -> None:
    shop.create_topics()
    shutil.rmtree(shop.config.log.path / "clicks")
    code, why = shop.refusal()
    assert code == 5
    assert "no topics clicks in" in why


def test_missing_topics_are_named_by_kafka_too(kafka_shop: Shop) -> None:
    code, why = kafka_shop.refusal()
    assert code == 5
    for kind in EventKind:
        assert kafka_shop.config.topics.clicks.replace("clicks", kind.value) in why


def test_other_settings_over_the_same_store_are_refused(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(20)
    shop.learn_all()
    code, why = shop.refusal("model.history_length=7")
    assert code == 11
    assert "model.history_length = 20, not 7" in why


def test_a_recreated_topic_is_refused(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(20)
    shop.learn_all()
    shutil.rmtree(shop.config.log.path / "clicks")
    shop.create_topics()
    code, why = shop.refusal()
    assert code == 7
    assert "topic 'clicks' was deleted and made again" in why
    assert shop.num_learned() == 20


def test_a_recreated_kafka_topic_is_refused(kafka_shop: Shop) -> None:
    kafka_shop.create_topics()
    kafka_shop.write_items()
    kafka_shop.write_clicks(20)
    kafka_shop.learn_all()
    clicks = kafka_shop.config.topics.clicks
    admin = KafkaAdminClient(bootstrap_servers=kafka_shop.config.log.bootstrap_servers)
    try:
        admin.delete_topics([clicks])
        kafka_shop.wait(lambda: clicks not in admin.list_topics(), "the topic to be gone")
    finally:
        admin.close()
    kafka_shop.create_topics()
    code, why = kafka_shop.refusal()
    assert code == 7
    assert f"topic '{clicks}' was deleted and made again" in why


def test_deleted_records_are_refused_with_their_number(shop: Shop) -> None:
    shop.create_topics()
    shop.write_items()
    shop.write_clicks(20)
    shop.learn_all()
    writer = FileWriter(shop.config.log.path, segment_bytes=200)
    for _ in range(10):  # each flush may begin a segment
        shop.write_clicks(20, writer)
    writer.close()
    log = FileEventLog(shop.config.log.path)
    for partition in log.partitions(["clicks"]):
        log.delete_before(partition, 1_000)
    code, why = shop.refusal()
    assert code == 6
    assert re.search(r"topic 'clicks' partition \d: next is \d+, .* \d+ records were deleted", why)
    assert shop.num_learned() == 20


def test_records_deleted_by_kafka_are_refused_with_their_number(kafka_shop: Shop) -> None:
    kafka_shop.create_topics()
    kafka_shop.write_items()
    kafka_shop.write_clicks(20)
    kafka_shop.learn_all()
    kafka_shop.write_clicks(50)
    clicks = kafka_shop.config.topics.clicks
    admin = KafkaAdminClient(bootstrap_servers=kafka_shop.config.log.bootstrap_servers)
    try:
        admin.delete_records({KafkaPartition(clicks, number): -1 for number in range(2)})
    finally:
        admin.close()
    code, why = kafka_shop.refusal()
    assert code == 6
    assert re.search(rf"topic '{clicks}' partition \d: next is \d+, .* \d+ records were deleted", why)
