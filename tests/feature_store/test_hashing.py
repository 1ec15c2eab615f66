"""Counter-based draws: known values, independence of what stands beside a key, and uniformity."""

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feature_store.hashing import Purpose, draw_below, draw_uniform, event_keys, hash_ids, mix

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15
COUNTERS = st.integers(0, 2**63 - 1)


def split_mix(value: int) -> int:
    """The same finaliser in Python's own integers."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & MASK
    return value ^ (value >> 31)


def test_mix_gives_the_published_outputs_of_splitmix64() -> None:
    """The first three outputs of the generator seeded with 0."""
    counters = np.array([GOLDEN * n & MASK for n in (1, 2, 3)], np.uint64)
    assert mix(counters).tolist() == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


@given(st.lists(st.integers(0, MASK), min_size=1, max_size=5))
def test_mix_equals_python_integers(values: list[int]) -> None:
    assert mix(np.array(values, np.uint64)).tolist() == [split_mix(value) for value in values]


def test_ids_hash_the_same_everywhere() -> None:
    expected = [int.from_bytes(blake2b(i, digest_size=8).digest(), "little") for i in (b"a", b"", b"a")]
    assert hash_ids([b"a", b"", b"a"]).tolist() == expected
    assert hash_ids([b"a"]).tolist() == [0x2F42665B399EF840]
    assert hash_ids([]).shape == (0,)


@given(COUNTERS, st.sampled_from(Purpose), st.lists(st.tuples(COUNTERS, COUNTERS), min_size=1, max_size=4))
def test_a_key_is_a_hash_of_its_own_event(seed: int, purpose: Purpose, events: list[tuple[int, int]]) -> None:
    partitions, offsets = zip(*events, strict=True)
    root = split_mix((seed * GOLDEN + purpose) & MASK)
    expected = []
    for partition, offset in events:
        by_partition = split_mix((partition * GOLDEN + root) & MASK)
        expected.append(split_mix((offset * GOLDEN + by_partition) & MASK))
    assert event_keys(seed, purpose, partitions, offsets).tolist() == expected


def test_keys_differ_by_seed_purpose_partition_and_offset() -> None:
    base = (3, Purpose.NEGATIVE, 5, 8)
    others = [
        (4, *base[1:]),
        (3, Purpose.ROW, 5, 8),
        (3, Purpose.NEGATIVE, 8, 5),
        (3, Purpose.NEGATIVE, 5, 9),
    ]
    keys = {int(event_keys(seed, purpose, [p], [o])[0]) for seed, purpose, p, o in [base, *others]}
    assert len(keys) == 5


def test_draws_of_a_key_depend_on_nothing_else() -> None:
    keys = mix(np.arange(50, dtype=np.uint64))
    together = draw_below(keys, 7, 1000)
    assert together.shape == (50, 7)
    for place in (0, 17, 49):
        assert draw_below(keys[place : place + 1], 7, 1000)[0].tolist() == together[place].tolist()
    assert draw_below(keys, 3, 1000).tolist() == together[:, :3].tolist()
    assert draw_uniform(keys, 3).tolist() == draw_uniform(keys, 7)[:, :3].tolist()


@pytest.mark.parametrize("size", [1, 2, 7, 2**31])
def test_draws_stay_below(size: int) -> None:
    drawn = draw_below(mix(np.arange(2000, dtype=np.uint64)), 5, size)
    assert drawn.min() >= 0
    assert drawn.max() < size
    assert drawn.max() >= size * 0.99 - 1


def test_draws_are_uniform_over_keys_and_over_draws() -> None:
    """Chi-square over 40 cells, 39 degrees of freedom: beyond 85.1 once in 20,000 tries."""
    keys = event_keys(0, Purpose.NEGATIVE, np.zeros(4000, np.int64), np.arange(4000))
    drawn = draw_below(keys, 10, 40)
    for counts in (np.bincount(drawn.reshape(-1), minlength=40), np.bincount(drawn[:, 0], minlength=40)):
        expected = counts.sum() / 40
        assert ((counts - expected) ** 2 / expected).sum() < 85.1
    both = np.bincount(drawn[:, 0] // 8 * 5 + drawn[:, 1] // 8, minlength=25)  # neighbours are independent
    assert ((both - 160) ** 2 / 160).sum() < 63  # 24 degrees of freedom, the same rarity


def test_floats_are_uniform_in_the_unit_interval() -> None:
    drawn = draw_uniform(mix(np.arange(1, 20_001, dtype=np.uint64)), 2)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.bincount((drawn * 20).astype(int).reshape(-1), minlength=20)
    assert ((counts - 2000) ** 2 / 2000).sum() < 56  # 19 degrees of freedom, one in 20,000
