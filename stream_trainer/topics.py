"""The five configured topics, made where they are missing.

Owns which topics there are and how many partitions each gets. Never changes a topic that is there.
"""

from typing import NamedTuple

from feature_store.configuration import TopicSettings
from feature_store.errors import MissingTopicError, SettingsError
from stream_trainer.event_log import EventLog

NUM_PARTITIONS = 4


class Topic(NamedTuple):
    """A topic that is there now, and whether it has just been made."""

    name: str
    num_partitions: int
    is_new: bool


def create_topics(
    event_log: EventLog, topics: TopicSettings, num_partitions: int = NUM_PARTITIONS
) -> list[Topic]:
    """Make the topics that are missing and return all five.

    Impressions and clicks get equally many partitions, because both are keyed by user and so arrive together
    for the join: if only one of them is missing, it gets as many as the other has. Dead letters are few: one
    will do.

    Raises:
        SettingsError: the number of partitions is not positive.
        LogError: the log refuses.
    """
    if num_partitions < 1:
        raise SettingsError(f"num_partitions = {num_partitions}: a topic has at least one")
    names = [*topics.kinds(), topics.dead_letters]
    there = {name: _num_partitions(event_log, name) for name in names}
    joined = there[topics.impressions] or there[topics.clicks] or num_partitions
    wanted = dict.fromkeys(names, num_partitions)
    wanted |= {topics.impressions: joined, topics.clicks: joined, topics.dead_letters: 1}
    event_log.create_topics({name: wanted[name] for name in names if not there[name]})
    return [Topic(name, there[name] or wanted[name], not there[name]) for name in names]


def _num_partitions(event_log: EventLog, topic: str) -> int:
    """Return how many partitions the topic has; 0 if there is no such topic."""
    try:
        return len(event_log.partitions([topic]))
    except MissingTopicError:
        return 0
