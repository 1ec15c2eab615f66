"""One order for the records of all partitions, a function of the logs' content alone.

Pure. Within a partition records keep their order; across partitions the smallest event time so far comes
first, then topic, then partition. "So far" is the running maximum within the partition: an event that arrives
late does not jump the queue. A partition that may still get records holds the rest back while it is empty.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from heapq import heappop, heappush, heapreplace
from itertools import accumulate, repeat
from typing import Generic, TypeAlias, TypeVar

from stream_trainer.event_log import TopicPartition

T = TypeVar("T")
_Waiting: TypeAlias = tuple[TopicPartition, int, T]
_Queue: TypeAlias = deque[_Waiting[T]]


class Merge(Generic[T]):
    """Holds what was polled until it is its turn.

    >>> a, b = TopicPartition("clicks", 0), TopicPartition("clicks", 1)
    >>> merge = Merge[str]([a, b])
    >>> merge.push(a, [5, 3], ["a5", "a3"])
    >>> merge.pop_ready(10)  # b may still have something earlier
    []
    >>> merge.push(b, [4], ["b4"])
    >>> merge.end(b)
    >>> [(ts_ms, item) for _, ts_ms, item in merge.pop_ready(10)]
    [(4, 'b4'), (5, 'a5'), (5, 'a3')]
    """

    def __init__(
        self, partitions: Iterable[TopicPartition], latest_ts_ms: Mapping[TopicPartition, int] | None = None
    ) -> None:
        """Start with the time that each partition had reached when its next offset was committed."""
        stored = latest_ts_ms or {}
        self._queue: dict[TopicPartition, _Queue[T]] = {p: deque() for p in partitions}
        self._pushed_ms = {p: stored.get(p, 0) for p in self._queue}
        self._heads: list[tuple[int, TopicPartition, _Queue[T]]] = []
        self._holding = set(self._queue)  # partitions that are empty and may still get records
        self._released: set[TopicPartition] = set()

    def push(self, partition: TopicPartition, times_ms: Sequence[int], items: Iterable[T]) -> None:
        """Add what was polled, with event times; 0 takes the partition's time so far."""
        queue = self._queue[partition]
        was_empty = not queue
        latest_ms = accumulate(times_ms, max, initial=self._pushed_ms[partition])
        next(latest_ms)
        queue.extend(zip(repeat(partition, len(times_ms)), latest_ms, items, strict=True))
        if queue:
            self._pushed_ms[partition] = queue[-1][1]
            self._holding.discard(partition)
            self._released.discard(partition)
            if was_empty:
                heappush(self._heads, (queue[0][1], partition, queue))

    def end(self, partition: TopicPartition) -> None:
        """Let the others go on without this partition once it is empty, until it gets records again."""
        self._released.add(partition)
        self._holding.discard(partition)

    idle = end

    def waiting(self, partition: TopicPartition) -> int:
        """Return how many records of the partition wait for their turn."""
        return len(self._queue[partition])

    def pop_ready(self, max_items: int) -> list[_Waiting[T]]:
        """Return the next records in order, each with its partition and the partition's time so far in ms."""
        heads = self._heads
        popped: list[_Waiting[T]] = []
        while heads and not self._holding and len(popped) < max_items:
            _, partition, queue = heads[0]
            popped.append(queue.popleft())
            if queue:
                heapreplace(heads, (queue[0][1], partition, queue))
                continue
            heappop(heads)
            if partition not in self._released:
                self._holding.add(partition)
        return popped
