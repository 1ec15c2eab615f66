"""Dropout of a tower's input, in compiled loops: what is left is drawn by a hash of a counter, one byte for
each number, and nothing else is as large as the input.

Pure. Legend: B rows, Z input width, P parts that stand side by side in it, four lanes of W draws.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from feature_store.compiled import compiled
from feature_store.hashing import GOLDEN
from stream_trainer.models.loops import F32, array
from stream_trainer.models.parallel import compiled_parallel, prange

Bools = npt.NDArray[np.bool_]
_LANES = 4
_LANE, _BITS = np.uint64((1 << 16) - 1), np.uint64(16)


class Dropout(NamedTuple):
    """Which numbers of an input (B, Z) are left, and what these are multiplied by."""

    kept_BZ: Tensor
    factor: float

    def side_by_side(self, parts: Sequence[Tensor]) -> Tensor:
        """Return what is left of the parts (B, ·): (B, Z), in float32."""
        dropped = np.empty(self.kept_BZ.shape, np.float32)
        whole = tuple(array(part.float()) for part in parts)
        _join(whole, self.kept_BZ.numpy(), np.float32(self.factor), dropped)
        return torch.from_numpy(dropped)

    def apart(self, gradient_BZ: Tensor, widths: Sequence[int]) -> list[Tensor]:
        """Return the gradient of each part, in float32."""
        gradients = tuple(np.empty((len(gradient_BZ), width), np.float32) for width in widths)
        _part(array(gradient_BZ.float()), self.kept_BZ.numpy(), np.float32(self.factor), gradients)
        return [torch.from_numpy(gradient) for gradient in gradients]


class Draws:
    """What one step of learning draws, a function of its key alone: the same with every build of torch and
    numpy.
    """

    def __init__(self, key: int) -> None:
        self._next = key

    def kept(self, shape: Sequence[int], rate: float) -> Tensor:
        """Draw booleans that are false at the given rate, to 2^-16."""
        num = math.prod(shape)
        num_words = -(-num // _LANES)
        kept_4W = np.empty((_LANES, num_words), np.bool_)
        _draw(np.uint64(self._next), np.uint64(round(rate * 2**16)), kept_4W)
        self._next = (self._next + num_words * int(GOLDEN)) % 2**64
        return torch.from_numpy(kept_4W.reshape(-1)[:num]).view(*shape)


@compiled
def _draw(key: np.uint64, lowest: np.uint64, kept_4W: Bools) -> None:
    """By SplitMix64, as in `hashing.mix`. Each lane has a row of its own, so that many are done at once."""
    for w in range(kept_4W.shape[1]):
        word = key + np.uint64(w) * GOLDEN
        word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
        kept_4W[0, w] = word & _LANE >= lowest
        kept_4W[1, w] = word >> _BITS & _LANE >= lowest
        kept_4W[2, w] = word >> 2 * _BITS & _LANE >= lowest
        kept_4W[3, w] = word >> 3 * _BITS >= lowest


@compiled_parallel
def _join(parts: tuple[F32, ...], kept_BZ: Bools, factor: np.float32, dropped_BZ: F32) -> None:
    for b in prange(len(kept_BZ)):
        start = 0
        for part in range(len(parts)):
            for z in range(parts[part].shape[1]):
                left = factor if kept_BZ[b, start + z] else np.float32(0)
                dropped_BZ[b, start + z] = left * parts[part][b, z]
            start += parts[part].shape[1]


@compiled_parallel
def _part(gradient_BZ: F32, kept_BZ: Bools, factor: np.float32, parts: tuple[F32, ...]) -> None:
    for b in prange(len(kept_BZ)):
        start = 0
        for part in range(len(parts)):
            for z in range(parts[part].shape[1]):
                left = factor if kept_BZ[b, start + z] else np.float32(0)
                parts[part][b, z] = left * gradient_BZ[b, start + z]
            start += parts[part].shape[1]
