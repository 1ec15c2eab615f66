"""Facts that were received and are not applied yet.

Pure. Owns their order, and how many of them there are: a positive is one fact, as a change is.
"""

from collections import deque
from collections.abc import Iterable

from msgspec.structs import astuple

from stream_trainer.chunk import Changed, Fact, Positives


class Waiting:
    """A queue of facts. Its length counts positives one by one."""

    def __init__(self, facts: Iterable[Fact] = ()) -> None:
        self._facts: deque[Fact] = deque()
        self._start = 0  # so many positives of the first fact were taken
        self._num = 0
        self.add(facts)

    def __len__(self) -> int:
        return self._num

    def add(self, facts: Iterable[Fact]) -> None:
        """Let facts wait behind the others."""
        for fact in facts:
            self._facts.append(fact)
            self._num += len(fact) if isinstance(fact, Positives) else 1

    @property
    def change(self) -> Changed | None:
        """The fact that comes next, None if that is a positive."""
        first = self._facts[0]
        return first if isinstance(first, Changed) else None

    def pop_change(self) -> None:
        """Take the change that comes next."""
        assert self.change is not None, "a positive comes next"
        self._facts.popleft()
        self._num -= 1

    def take_positives(self, most: int) -> Positives:
        """Take the positives that come next, at most so many, up to the first change."""
        taken, facts = _none(), self._facts
        while len(taken) < most and facts and isinstance(first := facts[0], Positives):
            stop = self._start + most - len(taken)
            _append(taken, first, self._start, stop)
            self._start = stop
            if stop >= len(first):
                facts.popleft()
                self._start = 0
        self._num -= len(taken)
        return taken

    def coming(self, most: int) -> Positives:
        """Return the positives among the next facts, at most so many of these."""
        coming, start, left = _none(), self._start, most
        for fact in self._facts:
            if left <= 0:
                break
            if isinstance(fact, Positives):
                _append(coming, fact, start, start + left)
                left -= len(fact) - start
            else:
                left -= 1
            start = 0
        return coming

    def rest(self) -> list[Fact]:
        """Return all that wait: positives that follow each other as one fact, whatever they came in."""
        facts, start = list[Fact](), self._start
        for fact in self._facts:
            if isinstance(fact, Changed):
                facts.append(fact)
                continue
            if not facts or isinstance(facts[-1], Changed):
                facts.append(_none())
            last = facts[-1]
            assert isinstance(last, Positives)
            _append(last, fact, start, len(fact))
            start = 0
        return facts


def _none() -> Positives:
    return Positives([], [], [], [], [])


def _append(to: Positives, positives: Positives, start: int, stop: int) -> None:
    for column, more in zip(astuple(to), astuple(positives), strict=True):
        column.extend(more[start:stop])
