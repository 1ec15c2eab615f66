"""Rows (a), each in a process of its own: the plain loops as people run them.

Our learner changes settings of its whole process, which must neither help nor hinder them: glibc keeps freed
memory, oneDNN keeps few compiled products, Python's garbage collector rests.
"""

import argparse
import os
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

import torch
from pairs import BATCH, HIDDEN, NEGATIVES, NUM_ITEMS, NUM_USERS, time_steps
from reference import PlainDefaultLoop, PlainLoop

from feature_store.telemetry import keep_freed_memory

_OURS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"  # set where our learner is imported
NUM_THREADS = 2


class Plain:
    """A plain loop in another process. `options` are those of `python plain.py --help`."""

    def __init__(self, *options: str) -> None:
        environment = {name: value for name, value in os.environ.items() if name != _OURS}
        command = [sys.executable, __file__, *options]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def positives_per_second(self, precision: str, num_batches: int, seed: int) -> float:
        """Let it learn some batches and return how fast it was.

        Raises:
            RuntimeError: its process ended.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        with suppress(BrokenPipeError):  # then there is no answer, either
            print(precision, num_batches, seed, file=process.stdin, flush=True)
        answer = process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the plain loop ended with code {process.wait()}: {process.args!r}")
        return float(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


def main() -> None:
    """Answer each line of standard input, a precision, a number of batches and a seed, with a rate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--default", type=int, nargs=2, metavar=("BATCH", "RATIO"), help="the default preset")
    parser.add_argument("--keep-memory", action="store_true", help="let glibc keep what is freed, as we do")
    args = parser.parse_args()
    if args.keep_memory:
        keep_freed_memory()
    torch.set_num_threads(NUM_THREADS)
    if args.default:
        loop: PlainDefaultLoop | PlainLoop = PlainDefaultLoop(NUM_USERS, NUM_ITEMS, HIDDEN, *args.default)
    else:
        loop = PlainLoop(NUM_USERS, NUM_ITEMS, HIDDEN, BATCH, NEGATIVES)
    for line in sys.stdin:
        precision, num_batches, seed = line.split()
        step = loop.step_bfloat16 if precision == "bfloat16" else loop.step
        print(time_steps(step, int(num_batches), int(seed)), flush=True)


if __name__ == "__main__":
    main()
