"""Impressions and clicks become positives: a windowed join in event time.

Pure. Owns what waits, in bounded buffers, and the counts of every outcome. Time moves only by `advance`. What
is closed is forgotten: a click after that is unmatched, not late, because it cannot be told from one whose
impression never came.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

import msgpack

from feature_store.configuration import JoinSettings
from feature_store.schema import Click, Impression

_COUNTER_KEY = b"n"


class Origin(NamedTuple):
    """Where a record stands in the log: what draws for it are a hash of."""

    topic: str
    partition: int
    offset: int


class Positive(NamedTuple):
    """One click to learn. `shown`: the slate's items not clicked, known only when windows close."""

    user_id: str
    item_id: str
    ts_ms: int
    origin: Origin
    shown: tuple[str, ...] = ()
    position: int = -1


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


@dataclass(slots=True)
class _Slate:
    """An impression that waits, and its clicks so far: item → (time, origin)."""

    user_id: str
    ts_ms: int
    items: list[str]
    sequence: int
    clicked: dict[str, tuple[int, Origin]] = field(default_factory=dict)


class _Early(NamedTuple):
    """A click that waits for its impression."""

    user_id: str
    item_id: str
    ts_ms: int
    origin: Origin
    sequence: int


class Joiner:
    """The join's state. The oldest is what has the smallest event time, then what came first."""

    def __init__(self, settings: JoinSettings) -> None:
        self.counts = JoinCounts()
        self._settings = settings
        self._window_ms = round(settings.attribution_window_seconds * 1000)
        self._at_close = settings.emit == "at_close"
        self._slates: dict[str, _Slate] = {}
        self._early: dict[str, list[_Early]] = {}
        self._num_early = 0
        self._slate_heap: list[tuple[int, int, str]] = []
        self._early_heap: list[tuple[int, int, str]] = []
        self._sequence = 0
        self._stored_sequence = 0
        self._changed: set[tuple[bytes, str]] = set()
        self._stored: set[tuple[bytes, str]] = set()

    @property
    def num_impressions(self) -> int:
        """Impressions that wait for clicks."""
        return len(self._slates)

    @property
    def num_clicks(self) -> int:
        """Clicks that wait for their impression."""
        return self._num_early

    def impression(self, event: Impression, origin: Origin) -> list[Positive]:
        """Let a slate wait for its clicks; return the positives of clicks that came before it."""
        key = event.impression_id
        if key in self._slates:
            self.counts.duplicates += 1
            return []
        slate = _Slate(event.user_id, event.ts_ms, event.items, self._next())
        self._slates[key] = slate
        self._changed.add((b"i", key))
        heappush(self._slate_heap, (slate.ts_ms, slate.sequence, key))
        positives: list[Positive] = []
        for early in self._early.pop(key, ()):
            self._num_early -= 1
            self._changed.add((b"c", key))
            positives += self._match(key, slate, early)
        if len(self._slates) > self._settings.max_waiting_impressions:
            self.counts.closed_early += 1
            positives += self._close_oldest()
        return positives

    def click(self, event: Click, origin: Origin) -> list[Positive]:
        """Join a click to its slate, or let it wait for one."""
        click = _Early(event.user_id, event.item_id, event.ts_ms, origin, self._next())
        slate = self._slates.get(event.impression_id)
        if slate is not None:
            return self._match(event.impression_id, slate, click)
        waiting = self._early.setdefault(event.impression_id, [])
        if any(other.item_id == click.item_id and other.user_id == click.user_id for other in waiting):
            self.counts.duplicates += 1
            return []
        waiting.append(click)
        self._num_early += 1
        self._changed.add((b"c", event.impression_id))
        heappush(self._early_heap, (click.ts_ms, click.sequence, event.impression_id))
        return self._drop_oldest_click() if self._num_early > self._settings.max_waiting_clicks else []

    def advance(self, watermark_ms: int) -> list[Positive]:
        """Close the windows that ended before the watermark; clicks that waited as long are unmatched."""
        positives: list[Positive] = []
        limit_ms = watermark_ms - self._window_ms
        while self._slate_heap and self._slate_heap[0][0] < limit_ms:
            positives += self._close_oldest()
        while self._early_heap and self._early_heap[0][0] < limit_ms:
            positives += self._drop_oldest_click()
        return positives

    def take_changes(self) -> dict[bytes, bytes | None]:
        """Return the entries changed since the last call, None for those that are gone, for the commit."""
        changes: dict[bytes, bytes | None] = {}
        for entry in self._changed:
            value = self._encode(*entry)
            if value is not None or entry in self._stored:
                changes[entry[0] + entry[1].encode()] = value
            if value is None:
                self._stored.discard(entry)
            else:
                self._stored.add(entry)
        self._changed.clear()
        if self._sequence != self._stored_sequence:
            changes[_COUNTER_KEY] = msgpack.packb(self._sequence)
            self._stored_sequence = self._sequence
        return changes

    @classmethod
    def load(cls, settings: JoinSettings, entries: Iterable[tuple[bytes, bytes]]) -> "Joiner":
        """Return a joiner that goes on as the one whose changes these are."""
        joiner = cls(settings)
        for raw, value in entries:
            content = msgpack.unpackb(value)
            if raw == _COUNTER_KEY:
                joiner._sequence = joiner._stored_sequence = content
                continue
            kind, key = raw[:1], raw[1:].decode()
            joiner._stored.add((kind, key))
            if kind == b"i":
                user_id, ts_ms, items, sequence, clicked = content
                marks = {item: (ts, Origin(*origin)) for item, ts, origin in clicked}
                joiner._slates[key] = _Slate(user_id, ts_ms, items, sequence, marks)
            else:
                joiner._early[key] = [
                    _Early(user, item, ts, Origin(*origin), seq) for user, item, ts, origin, seq in content
                ]
                joiner._num_early += len(content)
        joiner._slate_heap = [(s.ts_ms, s.sequence, key) for key, s in joiner._slates.items()]
        joiner._early_heap = [
            (c.ts_ms, c.sequence, key) for key, clicks in joiner._early.items() for c in clicks
        ]
        heapify(joiner._slate_heap)
        heapify(joiner._early_heap)
        return joiner

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence

    def _match(self, key: str, slate: _Slate, click: _Early) -> list[Positive]:
        if click.user_id != slate.user_id or click.item_id not in slate.items:
            self.counts.conflicting += 1
            return self._unmatched(click)
        if click.item_id in slate.clicked:
            self.counts.duplicates += 1
            return []
        if click.ts_ms > slate.ts_ms + self._window_ms:
            self.counts.late += 1
            return [_alone(click)] if self._settings.late == "train" else []
        slate.clicked[click.item_id] = (click.ts_ms, click.origin)
        self._changed.add((b"i", key))
        self.counts.joined += 1
        if self._at_close:
            return []
        position = slate.items.index(click.item_id)
        return [Positive(click.user_id, click.item_id, click.ts_ms, click.origin, (), position)]

    def _unmatched(self, click: _Early) -> list[Positive]:
        self.counts.unmatched += 1
        return [_alone(click)] if self._settings.unmatched == "train" else []

    def _close_oldest(self) -> list[Positive]:
        _, _, key = heappop(self._slate_heap)
        slate = self._slates.pop(key)
        self._changed.add((b"i", key))
        self.counts.closed += 1
        if not self._at_close:
            return []
        shown = tuple(item for item in slate.items if item not in slate.clicked)
        return [
            Positive(slate.user_id, item, *slate.clicked[item], shown, position)
            for position, item in enumerate(slate.items)
            if item in slate.clicked and slate.items.index(item) == position
        ]

    def _drop_oldest_click(self) -> list[Positive]:
        """Give up the click that waited longest; entries of clicks that were matched meanwhile are passed
        over.
        """
        _, sequence, key = heappop(self._early_heap)
        waiting = self._early.get(key, [])
        found = [click for click in waiting if click.sequence == sequence]
        if not found:
            return []
        waiting.remove(found[0])
        if not waiting:
            del self._early[key]
        self._num_early -= 1
        self._changed.add((b"c", key))
        return self._unmatched(found[0])

    def _encode(self, kind: bytes, key: str) -> bytes | None:
        if kind == b"i":
            slate = self._slates.get(key)
            if slate is None:
                return None
            clicked = [[item, ts, list(origin)] for item, (ts, origin) in slate.clicked.items()]
            return msgpack.packb([slate.user_id, slate.ts_ms, slate.items, slate.sequence, clicked])
        early = self._early.get(key)
        return None if early is None else msgpack.packb([[*c[:3], list(c.origin), c.sequence] for c in early])


def _alone(click: _Early) -> Positive:
    return Positive(click.user_id, click.item_id, click.ts_ms, click.origin)
