"""Impressions and clicks become positives: a windowed join in event time.

Pure. Owns what waits, in bounded buffers, and the counts of every outcome. Time moves only by `advance`. What
is closed is forgotten: a click after that is unmatched, not late, because it cannot be told from one whose
impression never came; and a repeated impression after that waits anew.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import msgpack

from feature_store.configuration import JoinSettings
from feature_store.schema import Click, Impression
from feature_store.sequenced import COUNTER_KEY, Changes, encode_changes
from stream_trainer.chunk import Joined
from stream_trainer.join_entries import EarlyClick, Entry, Origin, Slate, decode_entry

NEVER_MS = 2**62
"""Later than any watermark: closes what waits, whatever it waits for."""
_NONE: Sequence[Joined] = ()
_SPARE_HEAP = 1024  # entries of clicks that wait no more, before they are swept out


@dataclass
class JoinCounts:
    """Outcomes since the start of the process."""

    joined: int = 0
    duplicates: int = 0
    late: int = 0
    unmatched: int = 0
    conflicting: int = 0
    closed: int = 0
    closed_early: int = 0


class Joiner:
    """The join's state. The oldest is what has the smallest event time, then what came first.

    A click that is dropped leaves no trace: a second one is judged anew. Of those that were learned or wait,
    the first to arrive counts and the others are duplicates.
    """

    def __init__(self, settings: JoinSettings) -> None:
        self.counts = JoinCounts()
        self.due_ms = NEVER_MS
        """Nothing closes while the watermark is no later than this: `advance` can be spared."""
        self._settings = settings
        self._window_ms = round(settings.attribution_window_seconds * 1000)
        self._at_close = settings.emit == "at_close"
        self._max_slates = settings.max_waiting_impressions
        self._slates: dict[str, Slate] = {}
        self._slate_line: deque[Slate] = deque()  # those that came in order of time: nearly all
        self._slate_heap: list[tuple[int, int, Slate]] = []  # the others
        self._clicks: dict[int, EarlyClick] = {}  # by sequence
        self._click_heap: list[tuple[int, int]] = []  # time and sequence, also of some that wait no more
        self._early: dict[str, dict[tuple[str, str], int]] = {}  # impression → (user, item) → sequence
        self._sequence = 0
        self._told_sequence = 0
        self._changed: dict[int, Entry] = {}
        self._gone: list[int] = []

    @property
    def num_impressions(self) -> int:
        """Impressions that wait for clicks."""
        return len(self._slates)

    @property
    def num_clicks(self) -> int:
        """Clicks that wait for their impression."""
        return len(self._clicks)

    def impression(self, event: Impression) -> Sequence[Joined]:
        """Let a slate wait for its clicks; return the positives of clicks that came before it."""
        key, slates = event.impression_id, self._slates
        if key in slates:
            self.counts.duplicates += 1
            return _NONE
        sequence = self._sequence = self._sequence + 1
        slate = Slate(key, event.user_id, event.ts_ms, event.items, sequence, {})
        slates[key] = self._changed[sequence] = slate
        line = self._slate_line
        if line and slate.ts_ms >= line[-1].ts_ms:  # nearly all; what is first in the line is due before
            line.append(slate)
        else:
            self._line_up(slate)
        if key not in self._early and len(slates) <= self._max_slates:
            return _NONE
        positives: list[Joined] = []
        if key in self._early:
            for early in self._early.pop(key).values():
                click = self._clicks.pop(early)
                self._forget(early)
                positives += self._match(slate, click, click.origin.partition, click.origin.offset)
            if len(self._click_heap) > 2 * len(self._clicks) + _SPARE_HEAP:
                self._rebuild_click_heap()
        while len(slates) > self._max_slates:
            self.counts.closed_early += 1
            positives += self._close_oldest()
        return positives

    def click(self, event: Click, partition: int, offset: int) -> list[Joined]:
        """Join a click, with where it stands in its topic, to its slate, or let it wait for one."""
        slate = self._slates.get(event.impression_id)
        if slate is not None:
            return self._match(slate, event, partition, offset)
        origin = Origin(partition, offset)
        click = EarlyClick(event.impression_id, event.user_id, event.item_id, event.ts_ms, origin)
        early = self._early.setdefault(click.impression_id, {})
        if (click.user_id, click.item_id) in early:
            self.counts.duplicates += 1
            return []
        sequence = self._sequence = self._sequence + 1
        early[click.user_id, click.item_id] = sequence
        self._clicks[sequence] = self._changed[sequence] = click
        heappush(self._click_heap, (click.ts_ms, sequence))
        self._wait_from(click.ts_ms)
        positives: list[Joined] = []
        while len(self._clicks) > self._settings.max_waiting_clicks:
            positives += self._give_up_oldest_click()
        return positives

    def advance(self, watermark_ms: int) -> list[Joined]:
        """Close the windows that ended before the watermark; clicks that waited as long are unmatched."""
        positives: list[Joined] = []
        limit_ms = watermark_ms - self._window_ms
        while self._slate_line and self._slate_line[0].ts_ms < limit_ms:
            positives += self._close_oldest()
        while self._slate_heap and self._slate_heap[0][0] < limit_ms:
            positives += self._close_oldest()
        while self._click_heap and self._click_heap[0][0] < limit_ms:
            positives += self._give_up_oldest_click()
        self._find_due()
        return positives

    def take_changes(self) -> bytes:
        """Return for the commit what changed since the last call (`sequenced.Changes`), nothing if nothing
        did.
        """
        if not self._changed and not self._gone and self._sequence == self._told_sequence:
            return b""
        encoded = encode_changes(Changes(self._sequence, self._changed, self._gone))
        self._changed, self._gone, self._told_sequence = {}, [], self._sequence
        return encoded

    @classmethod
    def load(cls, settings: JoinSettings, entries: Iterable[tuple[bytes, bytes]]) -> "Joiner":
        """Return a joiner that goes on as the one whose changes the store has: keys and values of what waits.

        Raises:
            StoreCorruptError: they are not in the form that this program writes.
        """
        joiner = cls(settings)
        for key, value in sorted(entries):
            if key == COUNTER_KEY:
                joiner._sequence = joiner._told_sequence = msgpack.unpackb(value)
            else:
                joiner._restore(int.from_bytes(key, "big"), decode_entry(value))
        joiner._rebuild_click_heap()
        joiner._find_due()
        return joiner

    def _restore(self, sequence: int, entry: Entry) -> None:
        if isinstance(entry, Slate):
            self._slates[entry.impression_id] = entry
            self._line_up(entry)
        else:
            self._clicks[sequence] = entry
            self._early.setdefault(entry.impression_id, {})[entry.user_id, entry.item_id] = sequence

    def _line_up(self, slate: Slate) -> None:
        """Let a slate wait: a heap of all would take longer than the rest of the join."""
        line = self._slate_line
        if not line or slate.ts_ms >= line[-1].ts_ms:
            line.append(slate)
        else:
            heappush(self._slate_heap, (slate.ts_ms, slate.sequence, slate))
        self._wait_from(slate.ts_ms)

    def _wait_from(self, ts_ms: int) -> None:
        self.due_ms = min(self.due_ms, ts_ms + self._window_ms)

    def _find_due(self) -> None:
        self.due_ms = NEVER_MS
        if self._slate_line:
            self._wait_from(self._slate_line[0].ts_ms)
        for heap in (self._slate_heap, self._click_heap):
            if heap:
                self._wait_from(heap[0][0])

    def _oldest(self) -> Slate:
        """Take the oldest slate out of those that wait."""
        line, heap = self._slate_line, self._slate_heap
        if line and (not heap or (line[0].ts_ms, line[0].sequence) < heap[0][:2]):
            return line.popleft()
        return heappop(heap)[2]

    def _rebuild_click_heap(self) -> None:
        self._click_heap = [(click.ts_ms, sequence) for sequence, click in self._clicks.items()]
        heapify(self._click_heap)

    def _forget(self, sequence: int) -> None:
        """Note that an entry is gone; one that nobody was told of leaves nothing to delete."""
        if sequence <= self._told_sequence:
            self._gone.append(sequence)
            self._changed.pop(sequence, None)
        else:
            del self._changed[sequence]

    def _match(self, slate: Slate, click: Click | EarlyClick, partition: int, offset: int) -> list[Joined]:
        item_id, settings = click.item_id, self._settings
        if click.user_id != slate.user_id or item_id not in slate.items:
            self.counts.conflicting += 1
            return self._unmatched(click, partition, offset)
        if item_id in slate.clicked:
            self.counts.duplicates += 1
            return []
        is_late = click.ts_ms > slate.ts_ms + self._window_ms
        if is_late:
            self.counts.late += 1
            if settings.late == "drop":
                return []
        else:
            self.counts.joined += 1
        self._changed[slate.sequence] = slate
        if self._at_close and not is_late:
            slate.clicked[item_id] = Origin(partition, offset)
            return []
        slate.clicked[item_id] = None
        return [Joined(click.user_id, item_id, partition, offset)]

    def _unmatched(self, click: Click | EarlyClick, partition: int, offset: int) -> list[Joined]:
        self.counts.unmatched += 1
        if self._settings.unmatched == "drop":
            return []
        return [Joined(click.user_id, click.item_id, partition, offset)]

    def _close_oldest(self) -> list[Joined]:
        slate = self._oldest()
        del self._slates[slate.impression_id]
        self._forget(slate.sequence)
        self.counts.closed += 1
        clicked = slate.clicked
        if not any(clicked.values()):
            return []
        shown = tuple(dict.fromkeys([item for item in slate.items if item not in clicked]))
        positives = [
            Joined(slate.user_id, item, origin.partition, origin.offset, shown)
            for item, origin in clicked.items()
            if origin is not None
        ]
        return sorted(positives, key=lambda positive: slate.items.index(positive.item_id))

    def _give_up_oldest_click(self) -> list[Joined]:
        """Take the oldest off the heap; if it is a click that still waits, it is unmatched."""
        _, sequence = heappop(self._click_heap)
        click = self._clicks.pop(sequence, None)
        if click is None:
            return []
        early = self._early[click.impression_id]
        del early[click.user_id, click.item_id]
        if not early:
            del self._early[click.impression_id]
        self._forget(sequence)
        return self._unmatched(click, click.origin.partition, click.origin.offset)
