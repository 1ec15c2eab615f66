"""Compiles loops over arrays to machine code: for what NumPy or torch would walk through many times.

Owns how they are compiled. What was compiled is kept beside the sources, as Python keeps its own; where it
cannot be kept, each process compiles anew. Threads may share a loop's turns, never a sum: the same order each
time, the same bits.
"""

from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import TypeVar, cast

import numba

_Loop = TypeVar("_Loop", bound=Callable[..., object])
# Sums may be taken in lanes and products fused with sums; infinities and NaN stay what they are. Not so in
# loops that threads share: numba optimises those once more before it keeps them, so that the process that
# compiles one would have other sums than those that find it compiled.
_FREE = {"contract", "nsz", "reassoc"}


def compiled(loop: _Loop, *, strict: bool = False, parallel: bool = False) -> _Loop:
    """Return a function of arrays and numbers, compiled when it is first called with their types. A `strict`
    one computes what Python itself would, to the last bit. `prange` is `range` unless it is to be `parallel`.
    """
    njit = partial(numba.njit, error_model="numpy", fastmath=False if strict else _FREE, parallel=parallel)
    loop = _named_apart(loop, "_strict" * strict + "_parallel" * parallel)
    try:
        return cast(_Loop, njit(cache=True)(loop))
    except RuntimeError:  # no folder to keep it in
        return cast(_Loop, njit()(loop))


def _named_apart(loop: _Loop, suffix: str) -> _Loop:
    """Copy a function under another name: numba keeps what it compiled by name, not by how."""
    assert isinstance(loop, FunctionType)
    twin = FunctionType(loop.__code__, loop.__globals__, loop.__name__ + suffix)
    twin.__qualname__, twin.__module__ = loop.__qualname__ + suffix, loop.__module__
    return cast(_Loop, twin)
