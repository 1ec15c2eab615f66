"""The bench's sizes, and the pairs of user and positive that each row of it learns.

Imports nothing of ours: the plain loops (`plain.py`) run in processes that our learner has not touched.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

NUM_USERS, NUM_ITEMS, NUM_CATEGORIES = 695_513, 243_166, 11
BATCH, NEGATIVES = 1024, 5
HIDDEN = [256, 128]


def batches(num_batches: int, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield users and positives, the same for every row of the bench."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        users_B = torch.randint(NUM_USERS, (BATCH,), generator=generator)
        yield users_B, torch.randint(NUM_ITEMS, (BATCH,), generator=generator)


def time_steps(step: Callable[..., None], num_batches: int, seed: int) -> float:
    """Return positives per second over some batches of users and positives, two more being run first."""
    return rate(step, list(batches(num_batches + 2, seed)))


def rate(step: Callable[..., None], given: list[tuple[Any, ...]]) -> float:
    """Return positives per second over steps of `BATCH` positives; the first two only warm up."""
    for one in given[:2]:
        step(*one)
    start = time.perf_counter()
    for one in given[2:]:
        step(*one)
    return (len(given) - 2) * BATCH / (time.perf_counter() - start)
