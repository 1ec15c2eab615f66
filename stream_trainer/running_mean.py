"""The running mean that a user's augmented vector is: what it becomes when new values arrive.

Pure. Legend: m users, D width.
"""

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]


def advance(mean_mD: F32, count_m1: F32, sums_mD: F32, added_m1: F32, memory: float) -> F32:
    """Return the means after `added_m1` ≥ 1 more values, whose sums are `sums_mD`, beside `count_m1` earlier.

    A plain mean until `memory` values; after that it forgets: the past as a whole counts as memory − 1 of the
    new ones. It minimises the mimic loss Σ weight × ‖a − p‖² with just those weights, as the plain mean does
    with equal ones.

    >>> one = np.ones((1, 1), np.float32)
    >>> advance(4 * one, 2 * one, 10 * one, one, 100.0).item()
    6.0
    >>> advance(4 * one, 50 * one, 10 * one, one, 3.0).item()
    6.0
    """
    past_m1 = np.minimum(count_m1, np.float32(memory - 1))
    return np.asarray(mean_mD + (sums_mD - added_m1 * mean_mD) / (past_m1 + added_m1), np.float32)
