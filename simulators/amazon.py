"""Reads the McAuley lab's Amazon files of 2014, 2018 and 2023, one line at a time.

Owns file names, decompression and the place named in an error. Never holds more than one line, and never
filters reviews: that is `dataset.py`.
"""

import ast
import csv
import gzip
import json
import re
import zlib
from collections.abc import Callable, Container, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from feature_store.errors import DataError
from simulators.amazon_fields import (
    ItemMeta,
    Review,
    item_2014,
    item_2018,
    item_2023,
    review_2023,
    review_csv,
    review_until_2018,
)

Format = Literal["2014", "2018", "2023"]

_MAX_LINE_CHARS = 16 << 20
_CSV_COLUMNS = ["user_id", "parent_asin", "rating", "timestamp"]
_ITEM_ID_2014 = re.compile(r"'asin': '([^']+)'")
_REVIEW_NAMES: Mapping[Format, re.Pattern[str]] = {
    "2014": re.compile(r"reviews_(?P<name>.+?)(?P<core>_5)?\.json(\.gz)?"),
    "2018": re.compile(r"(?!reviews_|meta_)(?P<name>.+?)(?P<core>_5)?\.json(\.gz)?"),
    "2023": re.compile(r"(?!meta_)(?P<name>.+?)\.(jsonl|(?P<core>csv))(\.gz)?"),
}
_EXPECTED: Mapping[Format, str] = {
    "2014": "reviews_NAME_5.json[.gz] and meta_NAME.json[.gz]",
    "2018": "NAME_5.json[.gz] and meta_NAME.json[.gz]",
    "2023": "NAME.csv[.gz] or NAME.jsonl[.gz], and meta_NAME.jsonl[.gz]",
}


class DataFiles(NamedTuple):
    """The two files of a data set."""

    reviews: Path
    items: Path


def detect_format(folder: Path) -> Format:
    """Return the format that the folder's file names tell.

    Raises:
        DataError: there is no such folder, no known file in it, or files of two formats.
    """
    found = [fmt for fmt in _REVIEW_NAMES if _pairs(folder, fmt)]
    if len(found) == 1:
        return found[0]
    expected = "; ".join(f"{fmt}: {names}" for fmt, names in _EXPECTED.items())
    if not found:
        raise DataError(f"{folder}: no reviews with their metadata here{_holds(folder)}; expected {expected}")
    raise DataError(f"{folder}: files of the formats {' and '.join(found)}; say which with --format")


def find_files(folder: Path, fmt: Format) -> DataFiles:
    """Return the folder's reviews and metadata; the 5-core reviews where the full ones stand beside them.

    Raises:
        DataError: there is no such folder, a file is missing, or the folder holds several data sets.
    """
    pairs = _pairs(folder, fmt)
    if not pairs:
        raise DataError(
            f"{folder}: no reviews with their metadata in the {fmt} format{_holds(folder)}; "
            f"expected {_EXPECTED[fmt]}"
        )
    if len(pairs) > 1:
        raise DataError(
            f"{folder}: several data sets ({', '.join(sorted(pairs))}); give each a folder of its own"
        )
    return next(iter(pairs.values()))


def read_reviews(path: Path, fmt: Format) -> Iterator[Review]:
    """Yield the reviews in file order.

    Raises:
        DataError: the file is missing or cut short, or a line is not a review of this format.
    """
    if fmt == "2023" and path.name.removesuffix(".gz").endswith(".csv"):
        yield from _read_csv(path)
        return
    convert = review_2023 if fmt == "2023" else review_until_2018
    for number, line in _lines(path):
        fields = _parse(path, number, line, json.loads)
        try:
            review = convert(fields, number)
        except (LookupError, TypeError, ValueError) as error:
            raise _wrong_fields(path, number, fmt, error) from error
        yield review


def read_items(path: Path, fmt: Format, wanted: Container[str] | None = None) -> Iterator[ItemMeta]:
    """Yield the items in file order, duplicates included (2018 has them); of `wanted` IDs only, if given.

    A line of 2014 takes 0.1 ms to parse, and most of the millions describe items that are not wanted: those
    are skipped unparsed where their ID can be seen.

    Raises:
        DataError: the file is missing or cut short, or a line is not an item of this format.
    """
    parse: Callable[[str], Any] = ast.literal_eval if fmt == "2014" else json.loads
    convert = {"2014": item_2014, "2018": item_2018, "2023": item_2023}[fmt]
    for number, line in _lines(path):
        if fmt == "2014" and wanted is not None:
            seen = _ITEM_ID_2014.search(line)
            if seen and seen[1] not in wanted:
                continue
        fields = _parse(path, number, line, parse)
        try:
            item = convert(fields)
        except (LookupError, TypeError, ValueError) as error:
            raise _wrong_fields(path, number, fmt, error) from error
        if wanted is None or item.item_id in wanted:
            yield item


def _pairs(folder: Path, fmt: Format) -> dict[str, DataFiles]:
    """Return the data sets of one format by name; of two review files the 5-core one."""
    names = _names(folder)
    suffix = "jsonl" if fmt == "2023" else "json"
    pairs: dict[str, DataFiles] = {}
    for name in names:
        match = _REVIEW_NAMES[fmt].fullmatch(name)
        items = match and [f"meta_{match['name']}.{suffix}{gz}" for gz in ("", ".gz")]
        present = [item for item in items or () if item in names]
        if match and present and (match["name"] not in pairs or match["core"]):
            pairs[match["name"]] = DataFiles(folder / name, folder / present[0])
    return pairs


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{folder}: cannot be read as a data folder ({error.strerror})") from error


def _holds(folder: Path) -> str:
    names = _names(folder)
    return f" (it holds {', '.join(names[:5])}{', …' if names[5:] else ''})" if names else " (it is empty)"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text) of each line that is not blank, from a gzip or a plain file."""
    number = 0
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if is_gzip else path.open(encoding="utf-8") as lines:
            while line := lines.readline(_MAX_LINE_CHARS):
                number += 1
                if len(line) == _MAX_LINE_CHARS:
                    raise DataError(
                        f"{path}, line {number}: longer than {_MAX_LINE_CHARS} characters: no data file"
                    )
                if not line.isspace():
                    yield number, line
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}, line {number + 1}: the gzip file is cut short or damaged ({error}); download it again"
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}, line {number + 1}: not UTF-8 text ({error.reason}); download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(path: Path, number: int, line: str, parse: Callable[[str], Any]) -> dict[str, Any]:
    kind = "a JSON object" if parse is json.loads else "a Python dict"
    try:
        fields = parse(line)
    except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError) as error:
        raise DataError(
            f"{path}, line {number}: not {kind}: {line[:60].strip()!r}; "
            "the file is cut short, or of another format (--format)"
        ) from error
    if not isinstance(fields, dict):
        raise DataError(f"{path}, line {number}: not {kind}: {line[:60].strip()!r}")
    return fields


def _wrong_fields(path: Path, number: int, fmt: str, error: Exception) -> DataError:
    reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
    return DataError(f"{path}, line {number}: {reason}; is this really the {fmt} format? (--format)")


def _read_csv(path: Path) -> Iterator[Review]:
    lines = _lines(path)
    number, header = next(lines, (1, ""))
    if header.strip().split(",") != _CSV_COLUMNS:
        raise DataError(
            f"{path}, line {number}: columns must be {','.join(_CSV_COLUMNS)}, not {header[:60].strip()!r}"
        )
    for number, line in lines:
        try:
            review = review_csv(next(csv.reader([line])), number)
        except (ValueError, csv.Error) as error:
            raise _wrong_fields(path, number, "2023", error) from error
        yield review
