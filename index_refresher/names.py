"""The IDs of a store by number, as a reader's view has them: what turns histories and features into names.

Owns the copy in memory, which generations that follow each other share: to read millions of IDs takes
seconds, and queries would wait for that at every swap. For one thread at a time, as the reader.
"""

from functools import cached_property

import numpy as np

from feature_store.store_reader import StoreReader

_NUM_COMPARED = 64


class Names:
    """The IDs of one numbering. Those that came since it was made are read one by one."""

    def __init__(self, reader: StoreReader, family: str) -> None:
        self._reader = reader
        self._family = family
        self._names = self._read()

    def up_to(self, number: int) -> list[bytes]:
        """Return the IDs by number, up to this one or as many as the reader's view has."""
        for name in self._get(range(len(self._names), number + 1)):
            if name is None:
                break
            self._names.append(name)
        return self._names

    def check(self) -> None:
        """Read all of them anew if the store is another one than before, as some of them tell."""
        num = len(self._names)
        numbers = np.linspace(0, num - 1, min(num, _NUM_COMPARED)).astype(int).tolist()
        if self._get(numbers) != [self._names[number] for number in numbers]:
            self._names = self._read()

    def _get(self, numbers: range | list[int]) -> list[bytes | None]:
        return self._reader.get(self._family, [number.to_bytes(4, "big") for number in numbers])

    def _read(self) -> list[bytes]:
        return [name for _, name in self._reader.items(self._family)]


class StoreNames:
    """The numberings of a reader's store, each read when it is first asked for."""

    def __init__(self, reader: StoreReader) -> None:
        self.reader = reader
        self._store = reader.identity

    @property
    def are_of_this_store(self) -> bool:
        """Whether the reader shows the store that it showed when these were made."""
        return self.reader.identity == self._store

    @cached_property
    def items(self) -> Names:
        """The items'."""
        return Names(self.reader, "item_number")

    @cached_property
    def values(self) -> Names:
        """The categorical values'."""
        return Names(self.reader, "value_number")

    def check(self) -> None:
        """Read anew what is known of another store."""
        for known in vars(self).values():
            if isinstance(known, Names):
                known.check()
