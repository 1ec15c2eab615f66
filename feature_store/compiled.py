"""Compiles loops over arrays to machine code: for what NumPy or torch would walk through many times.

Owns how they are compiled. What was compiled is kept beside the sources, as Python keeps its own; where it
cannot be kept, each process compiles anew. Threads may share a loop's turns, never a sum: the same order each
time, the same bits.
"""

from collections.abc import Callable
from functools import partial
from typing import TypeVar, cast

import numba

_Loop = TypeVar("_Loop", bound=Callable[..., object])
# Sums may be taken in lanes and products fused with sums; infinities and NaN stay what they are.
_FREE = {"contract", "nsz", "reassoc"}


def compiled(loop: _Loop, *, parallel: bool = False) -> _Loop:
    """Return a function of arrays and numbers, compiled when it is first called with their types. `prange` is
    `range` unless it is to be `parallel`.
    """
    njit = partial(numba.njit, error_model="numpy", fastmath=_FREE, parallel=parallel)
    try:
        return cast(_Loop, njit(cache=True)(loop))
    except RuntimeError:  # no folder to keep it in
        return cast(_Loop, njit()(loop))
