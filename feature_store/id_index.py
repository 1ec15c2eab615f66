"""Which place belongs to which ID: exact, for millions of IDs, thousands of them looked up at once.

Pure. A hash table with open addressing, its loops compiled. A dict of strings and the way back miss the
cache three or four times for each ID, one miss after another, and take 128 bytes for one of 13 letters; here
there are three, those of neighbours overlap, and it is 45 bytes. Legend: n IDs of one call, P places, S
entries of the table.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from feature_store.compiled import compiled

_Kind = TypeVar("_Kind", bound=np.generic)
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]
_LEAST = 1024
_LENGTH_BITS, _HALF = np.uint64(24), np.uint64(32)
_LENGTH, _LOWER = np.uint64((1 << 24) - 1), np.uint64((1 << 32) - 1)
_BYTE, _ODD = np.uint64(8), np.uint64(0x9E3779B97F4A7C15)
# Which IDs get in each other's way is another matter of chance in each process (by Python's own secret).
_SEED = np.uint64(hash(__name__) % (1 << 64))


class IdIndex:
    """Maps IDs to places and back. Places are given by the caller: small integers, each for one ID."""

    def __init__(self, num_places: int = _LEAST) -> None:
        # Of each place: where its ID's text starts, times 2^24, plus its length; 0 where there is none.
        self._spans_P = np.zeros(num_places, np.uint64)
        # Of each entry: the upper half of the ID's hash, and the place plus 1; 0 where there is none.
        self._table_S = np.zeros(_LEAST, np.uint64)
        self._text = np.zeros(_LEAST, np.uint8)
        self._text_end = 1
        self._num_left = 0
        self._num_ids = 0

    def find(self, keys: Sequence[str] | I64) -> I64:
        """Return each ID's place, -1 where there is none."""
        text, ends_n = _as_text(keys)
        places_n = np.empty(len(ends_n), np.int64)
        _find(_hash(text, ends_n, _SEED), text, ends_n, self._table_S, self._spans_P, self._text, places_n)
        return places_n

    def put(self, keys: Sequence[str | int], slots: I64) -> None:
        """Record distinct IDs, none of which has a place, at places that have none."""
        text, ends_n = _as_text(keys)
        self._spans_P = _with_room(self._spans_P, int(slots.max(initial=-1)) + 1)
        self._spans_P[slots] = _spans(self._text_end, ends_n)
        self._text = _with_room(self._text, self._text_end + len(text) + 1)
        self._text[self._text_end : self._text_end + len(text)] = text
        self._text_end += len(text)
        self._num_ids += len(slots)
        if 2 * self._num_ids > len(self._table_S):
            grown_S = np.zeros(1 << (4 * self._num_ids).bit_length() - 1, np.uint64)
            _insert(self._table_S[self._table_S > 0], grown_S)
            self._table_S = grown_S
        _insert(_entries(_hash(text, ends_n, _SEED), slots), self._table_S)

    def drop(self, slots: I64) -> None:
        """Forget the IDs at these places."""
        assert self._spans_P[slots].all(), "a place without an ID"
        text, ends_n = self._text_at(slots)
        _remove(_entries(_hash(text, ends_n, _SEED), slots), self._table_S)
        self._spans_P[slots] = 0
        self._num_ids -= len(slots)
        self._num_left += len(text)
        if 3 * self._num_left > self._text_end + _LEAST:
            self._tidy()

    def keys_at(self, slots: I64) -> list[bytes]:
        """Return the ID at each place, UTF-8."""
        text, ends_n = self._text_at(slots)
        whole, ends = text.tobytes(), ends_n.tolist()
        return [whole[start:end] for start, end in zip([0, *ends], ends, strict=False)]

    def stored_keys(self, keys: Sequence[str | int]) -> list[bytes]:
        """Return the IDs in UTF-8."""
        return [str(key).encode() for key in keys]

    def _text_at(self, places_n: I64) -> tuple[U8, I64]:
        spans_n = self._spans_P[places_n]
        ends_n = np.cumsum((spans_n & _LENGTH).astype(np.int64))
        text = np.empty(int(ends_n[-1]) if len(ends_n) else 0, np.uint8)
        _copy(spans_n, self._text, text)
        return text, ends_n

    def _tidy(self) -> None:
        """Leave out the texts of IDs that were forgotten."""
        places = np.flatnonzero(self._spans_P)
        text, ends_n = self._text_at(places)
        self._spans_P[places] = _spans(1, ends_n)
        around = np.zeros(1, np.uint8)  # so that no text starts at 0, or behind the end
        self._text = np.concatenate([around, text, around])
        self._text_end, self._num_left = 1 + len(text), 0


def _as_text(ids: Sequence[str | int] | I64) -> tuple[U8, I64]:
    """Return the UTF-8 of IDs one behind the other, and where each ends."""
    names: list[str] = list(ids)  # type: ignore[arg-type]
    text = np.frombuffer("".join(names).encode(), np.uint8)
    ends_n = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)))
    if len(text) != (ends_n[-1] if len(ends_n) else 0):  # not ASCII alone
        ends_n = np.cumsum([len(name.encode()) for name in names])
    return text, ends_n


def _spans(start: int, ends_n: I64) -> U64:
    """Return what is kept of texts that stand one behind the other from here on."""
    lengths_n = np.diff(ends_n, prepend=0)
    assert lengths_n.max(initial=0) <= int(_LENGTH), "an ID of 16 MiB"
    starts_n = (start + ends_n - lengths_n).astype(np.uint64)
    spans_n: U64 = starts_n << _LENGTH_BITS | lengths_n.astype(np.uint64)
    return spans_n


def _entries(hashes_n: U64, places_n: I64) -> U64:
    entries_n: U64 = hashes_n & ~_LOWER | (places_n + 1).astype(np.uint64)
    return entries_n


def _with_room(array: npt.NDArray[_Kind], size: int) -> npt.NDArray[_Kind]:
    if size <= len(array):
        return array
    grown = np.zeros(max(size, 2 * len(array)), array.dtype)
    grown[: len(array)] = array
    return grown


@compiled
def _hash(text: U8, ends_n: I64, seed: np.uint64) -> U64:
    """Hash each ID, eight bytes at once."""
    hashes_n, at = np.empty(len(ends_n), np.uint64), 0
    for n in range(len(ends_n)):
        end = ends_n[n]
        hashed = (seed ^ np.uint64(end - at)) * _ODD
        while at < end:
            word, stop = np.uint64(0), min(at + 8, end)
            while at < stop:
                word = word << _BYTE | np.uint64(text[at])
                at += 1
            hashed = (hashed ^ word) * _ODD
            hashed ^= hashed >> _HALF
        hashes_n[n] = hashed * _ODD
    return hashes_n


@compiled
def _home(entry: np.uint64, table_S: U64) -> np.int64:
    """Return where in the table the search for a hash begins: by its upper bits, which entries keep."""
    return np.int64((entry >> _HALF) * np.uint64(len(table_S)) >> _HALF)


@compiled
def _find(hashes_n: U64, text: U8, ends_n: I64, table_S: U64, spans_P: U64, known: U8, places_n: I64) -> None:
    mask, start = len(table_S) - 1, 0
    # Where most searches end is read first, all of it: these reads wait for nothing, so that they overlap.
    for n in range(len(ends_n)):
        places_n[n] = np.int64(table_S[_home(hashes_n[n], table_S)] & _LOWER)
    for n in range(len(ends_n)):
        places_n[n] = np.int64(spans_P[max(places_n[n] - 1, 0)] >> _LENGTH_BITS)
    for n in range(len(ends_n)):
        places_n[n] = known[places_n[n]]
    for n in range(len(ends_n)):
        length = ends_n[n] - start
        at, places_n[n] = _home(hashes_n[n], table_S), -1
        while table_S[at] and places_n[n] < 0:
            if table_S[at] >> _HALF == hashes_n[n] >> _HALF:
                place = np.int64(table_S[at] & _LOWER) - 1
                span, same = spans_P[place], 0
                if np.int64(span & _LENGTH) == length:
                    there = np.int64(span >> _LENGTH_BITS)
                    while same < length and known[there + same] == text[start + same]:
                        same += 1
                    if same == length:
                        places_n[n] = place
            at = (at + 1) & mask
        start = ends_n[n]


@compiled
def _insert(entries_n: U64, table_S: U64) -> None:
    mask = len(table_S) - 1
    for n in range(len(entries_n)):
        at = _home(entries_n[n], table_S)
        while table_S[at]:
            at = (at + 1) & mask
        table_S[at] = entries_n[n]


@compiled
def _remove(entries_n: U64, table_S: U64) -> None:
    """Take entries out, and move those behind them up: a search ends at the first gap (Knuth 6.4, R)."""
    mask = len(table_S) - 1
    for n in range(len(entries_n)):
        gap = _home(entries_n[n], table_S)
        while table_S[gap] != entries_n[n]:
            if not table_S[gap]:
                raise KeyError("an ID that is not there")
            gap = (gap + 1) & mask
        at = (gap + 1) & mask
        while table_S[at]:
            if (at - _home(table_S[at], table_S)) & mask >= (at - gap) & mask:
                table_S[gap] = table_S[at]
                gap = at
            at = (at + 1) & mask
        table_S[gap] = np.uint64(0)


@compiled
def _copy(spans_n: U64, known: U8, text: U8) -> None:
    """Put the IDs' texts one behind the other."""
    at = np.int64(0)
    for n in range(len(spans_n)):
        there = np.int64(spans_n[n] >> _LENGTH_BITS)
        for i in range(np.int64(spans_n[n] & _LENGTH)):
            text[at + i] = known[there + i]
        at += np.int64(spans_n[n] & _LENGTH)
