"""The rehearsal memory: the newest learned examples, kept for being drawn again beside new ones (experience
replay).

Pure. Owns a ring of records. An example is kept as it was at its own time, its user's history and augmented
vector included, because today's values already hold its answer. Legend: B new examples, X drawn for each of
them, R of these by age.
"""

import math
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from feature_store.configuration import LearningSettings
from feature_store.errors import StoreMismatchError
from feature_store.hashing import Purpose, draw_below, draw_uniform, event_keys
from stream_trainer.examples import Examples, ExampleWidths

_NOBODY = ""  # IDs have a letter at least


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
        self._users = [_NOBODY] * capacity
        self._forgotten: dict[str, int] = {}  # since the last commit: users, and how many were added by then
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

    def draw(self, learning: LearningSettings, new: Examples) -> Examples:
        """Draw B × X examples among those already added, each by a hash of the new example it accompanies;
        fewer where some were forgotten. The first of each X favour the newest (`ages_at`), the others none.

        What comes next is like the newest; what they alone would make forgotten, the others keep.
        """
        count = learning.rehearsal_ratio if len(self) else 0
        if not count:
            return new.first(0)
        recent = math.ceil(count * learning.rehearsal_recent_share)
        keys_B = event_keys(learning.seed, Purpose.REHEARSAL, new.records["partition"], new.records["offset"])
        places_BX = draw_below(keys_B, count, len(self))
        if recent:
            ages_BR = ages_at(draw_uniform(keys_B, recent), len(self), learning.rehearsal_half_life)
            places_BX[:, :recent] = (self.num_added - 1 - ages_BR) % self._capacity
        places = [place for place in places_BX.reshape(-1).tolist() if not self._is_gone(place)]
        return Examples([self._users[place] for place in places], self._records[np.array(places, np.int64)])

    def add(self, new: Examples) -> None:
        """Keep examples, the oldest giving way."""
        if not self._capacity:
            return
        places = np.arange(self.num_added, self.num_added + len(new)) % self._capacity
        self._records[places] = new.records
        for place, user in zip(places.tolist(), new.users, strict=True):
            self._users[place] = user
        self.num_added += len(new)

    def forget(self, users: Iterable[str]) -> None:
        """Let no example of these users that is kept by now be drawn, nor stay in the store: they were
        deleted. Their places stay empty until their turn comes.
        """
        self._forgotten.update(dict.fromkeys(users, self.num_added))

    def _is_gone(self, place: int) -> bool:
        user = self._users[place]
        if user not in self._forgotten:
            return user == _NOBODY
        added_at = self.num_added - 1 - (self.num_added - 1 - place) % self._capacity
        return added_at < self._forgotten[user]

    def _empty_places(self) -> list[int]:
        """Empty the places of the forgotten, all at once: there is no way from a user to them."""
        if not self._forgotten:
            return []
        users = enumerate(self._users)
        places = [place for place, user in users if user in self._forgotten and self._is_gone(place)]
        for place in places:
            self._users[place] = _NOBODY
        self._records[np.array(places, np.int64)] = np.zeros((), self._records.dtype)
        self._forgotten.clear()
        return places

    def take_changes(self) -> list[tuple[bytes, bytes]]:
        """Return the places written since the last call, for the commit."""
        start, self._num_stored = max(self._num_stored, self.num_added - self._capacity), self.num_added
        added = (n % self._capacity for n in range(start, self.num_added))
        places = sorted({*added, *self._empty_places()})
        return [(p.to_bytes(4, "big"), self._records[p].tobytes() + self._users[p].encode()) for p in places]


def ages_at(uniform: npt.NDArray[np.float32], size: int, half_life: float) -> npt.NDArray[np.int64]:
    """Turn uniform draws in [0, 1) into ages from 0 to `size` - 1, half as likely for each `half_life` more:
    the inverse of 1 - 2^(-age / half_life), cut off at `size`.

    >>> ages_at(np.array([0, 0.51, 0.76, 0.9], np.float32), 1000, 10.0).tolist()
    [0, 10, 20, 33]
    """
    mean = half_life / np.log(2)
    ages: npt.NDArray[np.float64] = -mean * np.log1p(uniform.astype(np.float64) * np.expm1(-size / mean))
    return np.minimum(ages, size - 1).astype(np.int64)
