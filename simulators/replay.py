"""Writes events to an event log, as fast as it goes or at a pace that follows their own times.

Owns keys, pace and the progress bar. Never makes events (`timeline.py`) and never touches bytes (`codec.py`).
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from feature_store.codec import encode
from feature_store.configuration import TopicSettings
from feature_store.errors import SettingsError
from feature_store.schema import Click, EventKind, Impression
from simulators.timeline import TimelineEvent
from stream_trainer.event_log import EventWriter

_FLUSH_SECONDS = 1.0  # of wall clock, so that readers see a slow replay as it goes
_BAR_EVERY = 500  # events


def _sleep(seconds: float) -> bool:
    time.sleep(seconds)
    return False


def replay(
    events: Iterable[tuple[EventKind, TimelineEvent]],
    writer: EventWriter,
    topics: TopicSettings,
    *,
    speed: float | None = None,
    num_events: int | None = None,
    show_progress: bool = False,
    now: Callable[[], float] = time.monotonic,
    wait: Callable[[float], bool] = _sleep,
) -> dict[EventKind, int]:
    """Write events in order of their time and return how many of each kind; durable when this returns.

    `speed` is event seconds per second of the clock `now`; None is as fast as it goes. A replay that has
    fallen behind catches up without leaving anything out. `wait` sleeps, and returns True to stop early.
    `num_events` gives the progress bar its end.

    Raises:
        SettingsError: the speed is not positive.
        LogError: the log refused a record.
    """
    if speed is not None and not speed > 0:
        raise SettingsError(f"speed = {speed}: it must be above 0, or 'max'")
    topic_of = {kind: topic for topic, kind in topics.kinds().items()}
    pace = _Pace(writer, speed, now, wait)
    counts: Counter[EventKind] = Counter()
    bar = Progress(
        TextColumn("replay"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not show_progress,
    )
    with bar:
        task = bar.add_task("replay", total=num_events)
        for number, (kind, event) in enumerate(events):
            if not pace.reach(event.ts_ms):
                break
            owner = event.user_id if isinstance(event, Impression | Click) else event.id
            writer.send(topic_of[kind], owner.encode(), encode(event), event.ts_ms)
            counts[kind] += 1
            if number % _BAR_EVERY == 0:
                bar.update(task, completed=number)
        bar.update(task, completed=counts.total())
    writer.flush()
    return dict(counts)


class _Pace:
    """When each event is due, and what is done meanwhile: flushing, and looking whether to stop."""

    def __init__(
        self,
        writer: EventWriter,
        speed: float | None,
        now: Callable[[], float],
        wait: Callable[[float], bool],
    ) -> None:
        self._writer = writer
        self._speed = speed
        self._now = now
        self._wait = wait
        self._started_s = self._flushed_s = now()
        self._first_ms: int | None = None

    def reach(self, ts_ms: int) -> bool:
        """Return True once an event of this time is due, False if the replay is to stop."""
        if self._first_ms is None:
            self._first_ms = ts_ms
        due_s = self._started_s
        if self._speed is not None:
            due_s += (ts_ms - self._first_ms) / 1000 / self._speed
        while True:
            now_s = self._now()
            if now_s - self._flushed_s >= _FLUSH_SECONDS:
                self._writer.flush()
                self._flushed_s = now_s
                if self._wait(0):
                    return False
            if now_s >= due_s:
                return True
            if self._wait(min(due_s - now_s, _FLUSH_SECONDS)):
                return False
