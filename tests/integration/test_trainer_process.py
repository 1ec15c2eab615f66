"""`stream-trainer run` as operators see it: signals, metrics, and learning from a log that still grows."""

import re
import signal
import time

import pytest
from log_reads import plain, poll
from process_shop import NUM_ITEMS, START_MS, Shop
from trainer_runs import ROOT, assert_same_bytes, store_bytes

from stream_trainer.event_log import TopicPartition
from stream_trainer.file_log import FileEventLog


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
    shop.write_clicks(4100)
    # A request to stop is heard between two batches: these take seconds each.
    slow = ["learning.batch_size=2000", "learning.rehearsal_ratio=0", "model.hidden=[4096,4096]"]
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
        (b"{}", "unknown_version"),
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
    records = [plain(record) for record in poll(reader, 100, 0.1)]
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
    assert documented - served == {"dualstream_trainer_dead_letters_total"}  # none yet: no reason to show
    assert metrics['dualstream_trainer_events_total{topic="clicks"}'] == 40
    assert metrics['dualstream_trainer_join_events{outcome="joined"}'] == 40
    assert metrics["dualstream_trainer_corpus_items"] == NUM_ITEMS
    assert metrics["dualstream_trainer_lag_records"] == 0
    trainer.process.send_signal(signal.SIGTERM)
    assert trainer.end() == 0, trainer.text
