"""The IDs by number that generations share: what is read when, and that another store is noticed."""

from collections.abc import Iterator, Sequence
from typing import cast

import pytest

from feature_store.store_reader import FeatureStoreReader
from index_refresher.names import Names, StoreNames


class Reader:
    """IDs by number, and how often all of them were read."""

    def __init__(self, names: list[bytes]) -> None:
        self.names = names
        self.identity = "a store"
        self.num_reads = 0

    def items(self, _: str) -> Iterator[tuple[bytes, bytes]]:
        self.num_reads += 1
        return iter([(number.to_bytes(4, "big"), name) for number, name in enumerate(self.names)])

    def get(self, _: str, keys: Sequence[bytes]) -> list[bytes | None]:
        numbers = [int.from_bytes(key, "big") for key in keys]
        return [self.names[number] if number < len(self.names) else None for number in numbers]


def read(reader: Reader) -> StoreNames:
    return StoreNames(cast(FeatureStoreReader, reader))


def test_what_comes_later_is_read_one_by_one() -> None:
    reader = Reader([b"a", b"b"])
    names = Names(cast(FeatureStoreReader, reader), "item_number")
    reader.names += [b"c", b"d", b"e"]
    assert names.up_to(2) == [b"a", b"b", b"c"]
    assert names.up_to(0) == [b"a", b"b", b"c"]
    assert names.up_to(9) == [b"a", b"b", b"c", b"d", b"e"]
    assert reader.num_reads == 1


@pytest.mark.parametrize("num", [0, 1, 2, 1000])
def test_the_same_store_is_read_once(num: int) -> None:
    reader = Reader([b"%d" % number for number in range(num)])
    names = read(reader)
    for more in range(3):
        names.check()
        assert names.items.up_to(num + more) == reader.names
        assert names.values.up_to(0)[:1] == reader.names[:1]
        reader.names.append(b"later %d" % more)
    assert reader.num_reads == 2


@pytest.mark.parametrize(
    "other", [[], [b"0"], [b"1", b"0", b"2"], [b"x%d" % number for number in range(1000)]]
)
def test_another_store_is_read_anew(other: list[bytes]) -> None:
    reader = Reader([b"%d" % number for number in range(1000)])
    names = read(reader)
    assert names.items.up_to(999) == reader.names
    reader.names = other
    names.check()
    assert names.items.up_to(999) == other
