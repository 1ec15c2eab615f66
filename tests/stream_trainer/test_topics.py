"""Which topics are made, and with how many partitions."""

from pathlib import Path

import pytest

from feature_store.configuration import TopicSettings
from feature_store.errors import LogError, SettingsError
from stream_trainer.event_log import TopicPartition
from stream_trainer.file_log import FileEventLog
from stream_trainer.file_segments import num_partitions, partition_folder, segment_offsets
from stream_trainer.topics import create_topics

TOPICS = TopicSettings(items="shop-items", users="shop-users")


def test_topics_for_a_join_have_equally_many_partitions(tmp_path: Path) -> None:
    log = FileEventLog(tmp_path)
    made = create_topics(log, TOPICS, num_partitions=3)
    assert made == [
        ("shop-items", 3, True),
        ("shop-users", 3, True),
        ("impressions", 3, True),
        ("clicks", 3, True),
        ("dead-letters", 1, True),
    ]
    partitions = log.partitions([topic.name for topic in made])
    assert len(partitions) == 13
    for name, count, _ in made:
        assert sum(partition.topic == name for partition in partitions) == count
    assert create_topics(log, TOPICS, num_partitions=8) == [topic._replace(is_new=False) for topic in made]
    assert log.partitions([topic.name for topic in made]) == partitions
    with pytest.raises(SettingsError, match="num_partitions"):
        create_topics(log, TOPICS, num_partitions=0)


@pytest.mark.parametrize(("there", "missing"), [("impressions", "clicks"), ("clicks", "impressions")])
def test_the_other_side_of_the_join_gets_as_many(tmp_path: Path, there: str, missing: str) -> None:
    log = FileEventLog(tmp_path)
    log.create_topics({there: 6, "shop-items": 2})
    made = {name: (count, is_new) for name, count, is_new in create_topics(log, TOPICS, num_partitions=3)}
    assert made[there] == (6, False)
    assert made[missing] == (6, True)
    assert made["shop-items"] == (2, False)
    assert made["shop-users"] == (3, True)
    assert len(log.partitions([missing])) == 6


def test_a_log_that_is_a_file_is_refused_by_name(tmp_path: Path) -> None:
    root = tmp_path / "log"
    root.touch()
    with pytest.raises(LogError, match=f"cannot read {root}/shop-items: Not a directory"):
        create_topics(FileEventLog(root), TOPICS)
    with pytest.raises(LogError, match=f"cannot make the topic 'clicks' in {root}: Not a directory"):
        FileEventLog(root).create_topics({"clicks": 1})
    with pytest.raises(LogError, match=r"cannot read .*log\.path"):
        num_partitions(root, "clicks")
    with pytest.raises(LogError, match=r"cannot read .*log\.path"):
        segment_offsets(partition_folder(root, TopicPartition("clicks", 0)))
