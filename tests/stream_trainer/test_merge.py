"""The merge's rules on logs small enough to sort by hand."""

from stream_trainer.event_log import TopicPartition
from stream_trainer.merge import Merge

A, B, C = TopicPartition("clicks", 0), TopicPartition("clicks", 1), TopicPartition("impressions", 0)


def items(merge: Merge[str], max_items: int = 100) -> list[str]:
    return [item for _, _, item in merge.pop_ready(max_items)]


def test_equal_times_go_by_topic_then_partition_then_arrival() -> None:
    merge = Merge[str]([C, B, A])
    merge.push(C, [5], ["c"])
    merge.push(B, [5, 5], ["b1", "b2"])
    merge.push(A, [5], ["a"])
    for partition in (A, B, C):
        merge.end(partition)
    assert items(merge) == ["a", "b1", "b2", "c"]


def test_a_late_event_keeps_its_place_in_its_partition_and_its_partitions_time() -> None:
    merge = Merge[str]([A, B])
    merge.push(A, [9, 1], ["a9", "a1, late"])
    merge.push(B, [8, 10], ["b8", "b10"])
    merge.end(A)
    merge.end(B)
    assert merge.pop_ready(100) == [(B, 8, "b8"), (A, 9, "a9"), (A, 9, "a1, late"), (B, 10, "b10")]


def test_an_undecodable_record_takes_its_partitions_time_so_far() -> None:
    merge = Merge[str]([A], {A: 7})
    merge.push(A, [0, 8, 0], ["first", "a8", "second"])
    merge.end(A)
    assert merge.pop_ready(100) == [(A, 7, "first"), (A, 8, "a8"), (A, 8, "second")]


def test_an_empty_partition_holds_the_others_back_until_it_is_idle() -> None:
    merge = Merge[str]([A, B])
    merge.push(A, [1, 2], ["a1", "a2"])
    assert items(merge) == []
    merge.idle(B)
    assert items(merge, 1) == ["a1"]
    assert merge.waiting(A) == 1


def test_an_idle_partition_that_gets_records_again_holds_back_again() -> None:
    merge = Merge[str]([A, B])
    merge.idle(B)
    merge.push(A, [1, 5], ["a1", "a5"])
    merge.push(B, [3], ["b3"])
    assert items(merge) == ["a1", "b3"]  # and then B may have something before a5
    merge.push(B, [], [])
    assert items(merge) == []
    merge.push(B, [4, 6], ["b4", "b6"])
    assert items(merge) == ["b4", "a5"]  # and now A is empty


def test_an_added_partition_holds_back_the_rest_and_takes_its_turn_among_equals() -> None:
    merge = Merge[str]([A, C])
    merge.push(A, [1, 7], ["a1", "a7"])
    merge.push(C, [7, 8], ["c7", "c8"])
    merge.add([B])
    assert items(merge) == []
    merge.push(B, [7, 9], ["b7", "b9"])
    for partition in (A, B, C):
        merge.end(partition)
    assert items(merge) == ["a1", "a7", "b7", "c7", "c8", "b9"]


def test_what_was_ready_comes_before_what_an_idle_partition_gets_later() -> None:
    """Its place depends on when its records come; the input side polls when nothing is ready."""
    merge = Merge[str]([A, B])
    merge.idle(B)
    merge.push(A, [1, 5], ["a1", "a5"])
    assert items(merge, 1) == ["a1"]
    merge.push(B, [3, 7], ["b3", "b7"])
    merge.idle(A)
    assert items(merge) == ["a5", "b3", "b7"]


def test_nothing_new_does_not_hold_a_partition_that_has_ended() -> None:
    merge = Merge[str]([A, B])
    merge.push(A, [5], ["a5"])
    merge.end(A)
    merge.push(A, [], [])
    merge.push(B, [1, 9], ["b1", "b9"])
    merge.end(B)
    assert items(merge) == ["b1", "a5", "b9"]


def test_a_partition_that_ends_while_records_wait_lets_go_once_they_are_popped() -> None:
    merge = Merge[str]([A, B])
    merge.push(A, [1], ["a1"])
    merge.end(A)
    merge.push(B, [2, 3], ["b2", "b3"])
    assert items(merge) == ["a1", "b2", "b3"]
    assert merge.waiting(A) == merge.waiting(B) == 0
