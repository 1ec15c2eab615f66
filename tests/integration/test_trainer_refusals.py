"""What `stream-trainer run` refuses to do: each time one line that says why, and an exit code of its own."""

import re
import shutil
import signal

from kafka import KafkaAdminClient
from kafka import TopicPartition as KafkaPartition
from process_shop import NUM_ITEMS, Shop

from feature_store.schema import EventKind
from stream_trainer.file_log import FileEventLog
from stream_trainer.file_writer import FileWriter


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
    for kind in (*EventKind, "dead-letters"):
        assert kafka_shop.config.topics.clicks.replace("clicks", kind) in why


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
