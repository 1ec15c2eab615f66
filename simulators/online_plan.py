"""Where along a log questions are asked: windows of reviews, retrainings, the start of the frozen model.

Pure. Owns the lay-out of the experiment. Never sees a model.
"""

from typing import NamedTuple

from feature_store.errors import DataError


class Window(NamedTuple):
    """Reviews `start` … `stop` - 1 in order of time. `retraining`: which one it follows at once, or -1."""

    start: int
    stop: int
    retraining: int


class Plan(NamedTuple):
    """`windows` in order of time, not overlapping; rows before which is retrained, and before which a copy
    of the model is frozen.
    """

    windows: tuple[Window, ...]
    retrain_at: tuple[int, ...]
    frozen_at: int


def make_plan(
    num_reviews: int, num_windows: int, window_size: int, num_retrainings: int, frozen_share: float
) -> Plan:
    """Lay out about `num_windows` windows of `window_size` reviews after the first `frozen_share` of the log.

    Retrainings stand at even distances, the first at the start and the last so that its windows end the log:
    what "at the end" means is then a model retrained just before. Of the windows two in five, in equal runs,
    follow a retraining at once; the others are spread over the gaps. On a small log windows are smaller.

    Raises:
        DataError: the log is too small for that.

    >>> plan = make_plan(1000, 4, 50, 2, 0.1)
    >>> plan.retrain_at, [(window.start, window.stop) for window in plan.windows]
    ((100, 950), [(100, 150), (383, 433), (666, 716), (950, 1000)])
    >>> [window.retraining for window in plan.windows]
    [0, -1, -1, 1]
    """
    first = round(num_reviews * frozen_share)
    run = max(1, 2 * num_windows // (5 * num_retrainings))
    num_gaps = num_retrainings - 1
    per_gap = max(0, num_windows - run * num_retrainings) // max(1, num_gaps)
    num_slots = run * num_retrainings + per_gap * num_gaps
    size = min(window_size, (num_reviews - first) // num_slots)
    if size < 1 or first < 1:
        raise DataError(f"{num_reviews} reviews are too few for {num_windows} windows; ask for fewer")
    last = num_reviews - run * size
    points = [first + (last - first) * i // num_gaps for i in range(num_gaps)] + [last]
    windows = []
    for number, point in enumerate(points):
        windows += [Window(point + i * size, point + (i + 1) * size, number) for i in range(run)]
        if number < num_gaps:
            start = point + run * size
            room = (points[number + 1] - start - per_gap * size) // (per_gap + 1)
            starts = [start + (i + 1) * room + i * size for i in range(per_gap)]
            windows += [Window(begin, begin + size, -1) for begin in starts]
    return Plan(tuple(windows), tuple(points), first)


def needed_refreshes(plan: Plan, ts_ms: list[int], interval_ms: int) -> list[int]:
    """Return the event times (ms), ascending, at which a generation is made that some question meets.

    Refreshes happen at multiples of the interval; a question at t meets the one at the last multiple up to t.
    All others need not be made: nobody sees them.

    >>> window = Window(1, 4, -1)
    >>> needed_refreshes(Plan((window,), (), 0), [5, 11, 19, 20, 31], 10)
    [10, 20]
    """
    rows = [row for window in plan.windows for row in range(window.start, window.stop)]
    return sorted({ts_ms[row] // interval_ms * interval_ms for row in rows})
