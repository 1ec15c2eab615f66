"""The merge against sorting the whole log: whatever the chunks, the stops and the restarts."""

from collections import Counter
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stream_trainer.event_log import TopicPartition
from stream_trainer.merge import Merge

PARTITIONS = [TopicPartition(topic, number) for topic in ("clicks", "impressions") for number in (0, 1)]

MOST_STEPS = 60  # that are drawn: those who stop pushing would go on for ever

Log = dict[TopicPartition, list[int | None]]
Popped = tuple[TopicPartition, int, int]

logs: st.SearchStrategy[Log] = st.fixed_dictionaries(
    {partition: st.lists(st.none() | st.integers(0, 20), max_size=12) for partition in PARTITIONS}
)


def sorted_log(log: Log, latest_ts_ms: dict[TopicPartition, int] | None = None) -> list[Popped]:
    """Every record with its partition's time so far, sorted: the definition. The items are offsets."""
    rows = []
    for partition, times in log.items():
        so_far = (latest_ts_ms or {}).get(partition, 0)
        for offset, ts_ms in enumerate(times):
            so_far = so_far if ts_ms is None else max(so_far, ts_ms)
            rows.append((so_far, partition, offset))
    return [(partition, so_far, offset) for so_far, partition, offset in sorted(rows)]


def merged(
    log: Log,
    draw: Any,
    latest_ts_ms: dict[TopicPartition, int] | None = None,
    num_pops: int | None = None,
) -> list[Popped]:
    """Push the log in drawn chunks and pop in drawn portions, to the end or for so many portions."""
    merge = Merge[int](PARTITIONS, latest_ts_ms)
    place = dict.fromkeys(PARTITIONS, 0)
    popped: list[Popped] = []
    steps = 0
    while len(popped) < sum(map(len, log.values())) and (num_pops is None or steps < num_pops):
        steps += 1
        is_drawn = steps <= MOST_STEPS
        partition = draw(st.sampled_from(PARTITIONS)) if is_drawn else PARTITIONS[steps % len(PARTITIONS)]
        num_records = len(log[partition])
        start = place[partition]
        end = draw(st.integers(start, num_records)) if is_drawn else num_records
        merge.push(partition, [ts_ms or 0 for ts_ms in log[partition][start:end]], range(start, end))
        place[partition] = end
        if end == num_records:
            merge.end(partition)
        popped += merge.pop_ready(draw(st.integers(0, 10)) if is_drawn else 10)
        num_popped = Counter(name for name, _, _ in popped)
        assert {p: merge.waiting(p) for p in place} == {p: place[p] - num_popped[p] for p in place}
        assert len(merge) == sum(place.values()) - len(popped)
    return popped


@given(logs, st.data())
def test_order_is_the_sorted_log_whatever_the_chunks(log: Log, data: st.DataObject) -> None:
    assert merged(log, data.draw) == sorted_log(log)


@given(logs, st.data(), st.integers(0, 30))
def test_a_restart_goes_on_in_the_same_order(log: Log, data: st.DataObject, num_pops: int) -> None:
    before = merged(log, data.draw, num_pops=num_pops)
    latest_ts_ms = {partition: ts_ms for partition, ts_ms, _ in before}
    done = {
        partition: sum(other == partition for other, _, _ in before) for partition in PARTITIONS
    }  # the stored offsets
    rest: Log = {partition: times[done[partition] :] for partition, times in log.items()}
    after = [
        (partition, ts_ms, offset + done[partition])
        for partition, ts_ms, offset in merged(rest, data.draw, latest_ts_ms)
    ]
    assert before + after == sorted_log(log)


@given(logs, st.data())
def test_what_is_popped_early_is_a_prefix_of_the_sorted_log(log: Log, data: st.DataObject) -> None:
    popped = merged(log, data.draw, num_pops=5)
    assert popped == sorted_log(log)[: len(popped)]
