"""The streaming estimate of how often each item is the positive: for logQ, for the popularity term, for cold
users.

Pure. An item's row keeps a decayed count and the number of positives learned when it was last brought up to
date, of that number the last 32 bits: weeks bring more. Every occurrence counts, also several in one batch:
counting at most one a batch underestimates popular items (tensorflow/recommenders#635). Legend: n items.
"""

import math

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
_STAMPS = 2**32


def stamp(now: int) -> np.int32:
    """Return what a row keeps of the number of positives learned: its last 32 bits.

    >>> stamp(2**31), stamp(2**32 + 5)
    (np.int32(-2147483648), np.int32(5))
    """
    return np.uint32(now % _STAMPS).view(np.int32)


def decayed(count_n: F32, at_n: npt.NDArray[np.int32], now: int, half_life: float) -> F32:
    """Return the counts as of `now`, all clocks in positives learned: each past positive weighs 2^(-age /
    half_life). An age is known but for multiples of 2^32, after which hardly anything is left to decay.

    >>> decayed(np.array([8.0], np.float32), np.array([100], np.int32), 300, 100.0).tolist()
    [2.0]
    """
    age_n = (now - at_n.astype(np.int64)) % _STAMPS
    return (count_n * np.exp2(-age_n / half_life)).astype(np.float32)


def total_count(num_positives: int, half_life: float) -> float:
    """Return the sum of all items' decayed counts after `num_positives`: a geometric series.

    >>> round(total_count(3, 1.0), 4)
    1.75
    """
    rate = -math.log(2.0) / half_life
    return math.expm1(rate * num_positives) / math.expm1(rate)


def probability(count_n: F32, total: float, num_items: int) -> F32:
    """Return the smoothed probability that a positive is each item: one pseudo-count an item, so that none is
    zero.
    """
    return ((count_n + 1.0) / (total + max(num_items, 1))).astype(np.float32)
