"""Counter-based randomness: every draw is a hash of what it is for, so that no generator state must be kept
or restored.

Pure. Owns the hash of IDs, the mixing of counters, and the draws made of them. Legend of shapes: B keys, N
draws, D width.
"""

from collections.abc import Iterable
from enum import IntEnum
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Purpose(IntEnum):
    """What a draw is for: the same event draws independently for each."""

    ROW = 1
    NEGATIVE = 2
    SHARED_NEGATIVE = 3
    REHEARSAL = 4
    DROPOUT = 5
    WEIGHTS = 6
    SLATE = 7


def mix(values: U64) -> U64:
    """Scramble 64-bit counters (the finaliser of SplitMix64, Steele et al. 2014), so that neighbours become
    independent.

    >>> int(mix(np.array([1], np.uint64))[0]) == 0x5692161D100B05E5
    True
    """
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_ids(ids: Iterable[bytes]) -> U64:
    """Hash IDs to 64 bits, the same on every machine and in every version of Python."""
    return np.frombuffer(b"".join(blake2b(i, digest_size=8).digest() for i in ids), dtype="<u8").astype(
        np.uint64
    )


def event_keys(seed: int, purpose: Purpose, partitions: npt.ArrayLike, offsets: npt.ArrayLike) -> U64:
    """Return one key per event (B,): the root of all its draws for one purpose."""
    with np.errstate(over="ignore"):
        root = mix(np.array([seed], np.uint64) * GOLDEN + np.uint64(purpose))
        by_partition = mix(np.asarray(partitions, np.uint64) * GOLDEN + root)
        return mix(np.asarray(offsets, np.uint64) * GOLDEN + by_partition)


def draw_below(keys_B: U64, num_draws: int, size: int) -> npt.NDArray[np.int64]:
    """Draw `num_draws` integers in [0, size) for each key: shape (B, N), uniform up to 2^-32 × size.

    >>> draw_below(np.array([7], np.uint64), 3, 10).shape
    (1, 3)
    """
    high_BN = _words(keys_B, num_draws) >> np.uint64(32)
    return ((high_BN * np.uint64(size)) >> np.uint64(32)).astype(np.int64)


def draw_uniform(keys_B: U64, num_draws: int) -> npt.NDArray[np.float32]:
    """Draw `num_draws` floats in [0, 1) for each key: shape (B, N)."""
    return (_words(keys_B, num_draws) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def _words(keys_B: U64, num_draws: int) -> U64:
    with np.errstate(over="ignore"):
        counters_N = np.arange(1, num_draws + 1, dtype=np.uint64) * GOLDEN
        return mix(keys_B[:, None] + counters_N[None, :])
