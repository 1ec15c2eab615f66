"""Compiles loops whose turns do not depend on each other, so that torch's threads share them.

Numba's OpenMP layer runs on torch's own threads: torch, loaded first, has brought the functions that it binds
to. Threads of numba's own would wait for torch's, which keep a core busy between two products. The layer
needs the system's `libgomp`; where there is none, loops run on one thread.
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from typing import Any, TypeVar, cast

import numba
import torch
from numba import prange

from feature_store.compiled import compiled

__all__ = ["compiled_parallel", "prange"]

_Loop = TypeVar("_Loop", bound=Callable[..., object])


def compiled_parallel(loop: _Loop) -> _Loop:
    """Return a function of arrays and numbers whose `prange` loop runs on as many threads as torch has; on
    one thread it is what `compiled` makes, strictly. Each turn must write to places of its own.
    """
    serial, parallel = compiled(loop, strict=True), compiled(loop, strict=True, parallel=True)

    @wraps(loop)
    def run(*args: Any) -> object:
        num_threads = torch.get_num_threads()
        if num_threads == 1 or (most := _most_threads()) == 1:
            return serial(*args)
        numba.set_num_threads(min(num_threads, most))
        # When its threads start, numba sets the number of cores for all of OpenMP.
        if torch.get_num_threads() != num_threads:
            torch.set_num_threads(num_threads)
        return parallel(*args)

    return cast(_Loop, run)


@cache
def _most_threads() -> int:
    """Let numba use OpenMP; return how many threads it may have, one if there is no OpenMP."""
    config: Any = numba.config
    try:
        import_module("numba.np.ufunc.omppool")
    except ImportError:
        return 1
    config.THREADING_LAYER = "omp"
    return int(config.NUMBA_NUM_THREADS)
