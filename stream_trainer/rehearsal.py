"""The rehearsal memory: the newest learned examples, kept for being drawn again beside new ones (experience
replay).

Pure. Owns a ring of records. An example is kept as it was at its own time, its user's history and augmented
vector included, because today's values already hold its answer. Legend: B new examples, X ratio, P capacity.
"""

from collections.abc import Iterable

import numpy as np

from feature_store.errors import StoreMismatchError
from feature_store.hashing import Purpose, draw_below, event_keys
from stream_trainer.examples import Examples, ExampleWidths


class Rehearsal:
    """A ring of examples; the n-th ever added stands at n modulo the capacity."""

    def __init__(
        self,
        capacity: int,
        widths: ExampleWidths,
        num_added: int = 0,
        stored: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        """Start empty, or from what `take_changes` gave and the count that stood beside it.

        Raises:
            StoreMismatchError: the stored examples have another layout.
        """
        self._capacity = capacity
        self._records = np.zeros(capacity, widths.dtype())
        self._users = [""] * capacity
        self.num_added = num_added
        self._num_stored = num_added
        size = self._records.dtype.itemsize
        for key, value in stored:
            place = int.from_bytes(key, "big")
            if place >= capacity or len(value) < size:
                raise StoreMismatchError(
                    "the stored rehearsal memory does not fit learning.rehearsal_capacity or the widths of "
                    "[model] and [features]; keep those settings, or start with a new store.path"
                )
            self._records[place] = np.frombuffer(value[:size], self._records.dtype)[0]
            self._users[place] = value[size:].decode()

    def __len__(self) -> int:
        return min(self.num_added, self._capacity)

    def draw(self, seed: int, new: Examples, ratio: int) -> Examples:
        """Draw B × X examples among those already added, each by a hash of the new example it accompanies."""
        count = ratio if len(self) else 0
        keys_B = event_keys(seed, Purpose.REHEARSAL, new.records["partition"], new.records["offset"])
        places = draw_below(keys_B, count, len(self)).reshape(-1)
        return Examples([self._users[place] for place in places.tolist()], self._records[places])

    def add(self, new: Examples) -> None:
        """Keep examples, the oldest giving way."""
        if not self._capacity:
            return
        places = np.arange(self.num_added, self.num_added + len(new)) % self._capacity
        self._records[places] = new.records
        for place, user in zip(places.tolist(), new.users, strict=True):
            self._users[place] = user
        self.num_added += len(new)

    def take_changes(self) -> list[tuple[bytes, bytes]]:
        """Return the places written since the last call, for the commit."""
        start, self._num_stored = max(self._num_stored, self.num_added - self._capacity), self.num_added
        places = [n % self._capacity for n in range(start, self.num_added)]
        return [(p.to_bytes(4, "big"), self._records[p].tobytes() + self._users[p].encode()) for p in places]
