"""What the fields of one line mean, in each of the three Amazon formats.

Pure. Owns field names and their quirks: votes, prices, category paths, scraps of HTML. Never opens a file:
that is `amazon.py`. Missing prices, titles and categories are ordinary; a missing ID or time is not.
"""

import html
import re
from typing import Any, NamedTuple

from feature_store.schema import MAX_ID_CHARS, MAX_TEXT_CHARS, MAX_TS_MS

_TAG = re.compile(r"<[^<>]*>")
_JUNK = re.compile(r"<[a-zA-Z/!]|\{[^}]*:|^\W*$")
_MAX_VOTES = 2**31 - 1
_PRICE = re.compile(r"\$?\s*(\d[\d,]*(?:\.\d+)?)")


class Review(NamedTuple):
    """One review, as its line tells it. `helpful_votes` are those of the day the site was read."""

    user_id: str
    item_id: str
    ts_ms: int
    rating: float | None
    helpful_votes: int
    line: int


class ItemMeta(NamedTuple):
    """What the metadata say of an item; None where they say nothing usable."""

    item_id: str
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    price: float | None = None
    average_rating: float | None = None


def clean_text(value: object) -> str | None:
    """Return a text without HTML, entities and spare white space; None if nothing readable is left.

    `&amp;` and `&` must not make two categories, and what scrapers left behind must not make one.

    >>> clean_text(" Books &amp;  Audible "), clean_text("<i>Emma</i>"), clean_text('<span class="a-size"')
    ('Books & Audible', 'Emma', None)
    """
    if not isinstance(value, str):
        return None
    text = " ".join(_TAG.sub(" ", html.unescape(value)).split())
    if not text.isprintable():  # half characters (lone surrogates) cannot even be sent
        text = "".join(character for character in text if character.isprintable())
    return None if _JUNK.search(text) else text[:MAX_TEXT_CHARS]


def parse_price(value: object) -> float | None:
    """Return a price in its currency; None for ranges, scraps of pages and nonsense.

    >>> [parse_price(value) for value in ("$1,299.50", 12.99, "$5.00 - $9.00", ".a-box-inner{}")]
    [1299.5, 12.99, None, None]
    """
    if isinstance(value, str):
        match = _PRICE.fullmatch(html.unescape(value).strip())
        value = float(match[1].replace(",", "")) if match else None
    return _number_or_none(value)


def review_until_2018(fields: dict[str, Any], line: int) -> Review:
    """Convert a review of 2014 or 2018: they differ in the votes, `helpful` [yes, all] or `vote` "1,234".

    Raises:
        LookupError: a field is missing. TypeError, ValueError: a field is not what it should be.
    """
    votes = fields["helpful"][0] if "helpful" in fields else int(str(fields.get("vote", 0)).replace(",", ""))
    return Review(
        _id(fields["reviewerID"], "reviewerID"),
        _id(fields["asin"], "asin"),
        _ts_ms(_integer(fields["unixReviewTime"], "unixReviewTime") * 1000),
        _rating(fields.get("overall")),
        _votes(votes),
        line,
    )


def review_2023(fields: dict[str, Any], line: int) -> Review:
    """Convert a review of 2023. The parent joins an item's colours and sizes; `asin` alone has no metadata.

    Raises:
        LookupError: a field is missing. TypeError, ValueError: a field is not what it should be.
    """
    return Review(
        _id(fields["user_id"], "user_id"),
        _id(fields["parent_asin"], "parent_asin"),
        _ts_ms(_integer(fields["timestamp"], "timestamp")),
        _rating(fields.get("rating")),
        _votes(fields.get("helpful_vote", 0)),
        line,
    )


def review_csv(columns: list[str], line: int) -> Review:
    """Convert a row of 2023's 5-core files: user_id, parent_asin, rating, timestamp.

    Raises:
        ValueError: a column is missing, or not what it should be.
    """
    user_id, item_id, rating, ts_ms = columns
    return Review(
        _id(user_id, "user_id"),
        _id(item_id, "parent_asin"),
        _ts_ms(int(ts_ms)),
        _rating(float(rating)),
        0,
        line,
    )


def item_2014(fields: dict[str, Any]) -> ItemMeta:
    """Convert an item of 2014; its category is the end of the first path, the finest of the main one.

    Raises:
        LookupError, ValueError: there is no usable ID.
    """
    paths = fields.get("categories") or [[]]
    return ItemMeta(
        _id(fields["asin"], "asin"),
        clean_text(fields.get("title")),
        next(reversed(_levels(paths[0])), None),
        clean_text(fields.get("brand")),
        parse_price(fields.get("price")),
    )


def item_2018(fields: dict[str, Any]) -> ItemMeta:
    """Convert an item of 2018; its category is the second level: above is the department, below are handfuls.

    Raises:
        LookupError, ValueError: there is no usable ID.
    """
    levels = _levels(fields.get("category"))
    return ItemMeta(
        _id(fields["asin"], "asin"),
        clean_text(fields.get("title")),
        next(iter(levels[1:] or levels), None),
        clean_text(fields.get("brand")),
        parse_price(fields.get("price")),
    )


def item_2023(fields: dict[str, Any]) -> ItemMeta:
    """Convert an item of 2023; its category is the finest level, its brand what the shop calls `store`.

    Raises:
        LookupError, ValueError: there is no usable ID.
    """
    return ItemMeta(
        _id(fields["parent_asin"], "parent_asin"),
        clean_text(fields.get("title")),
        next(reversed(_levels(fields.get("categories"))), None),
        clean_text(fields.get("store")),
        parse_price(fields.get("price")),
        _number_or_none(fields.get("average_rating")),
    )


def _levels(path: object) -> list[str]:
    return [text for level in path if (text := clean_text(level))] if isinstance(path, list) else []


def _id(value: object, name: str) -> str:
    if not isinstance(value, str) or not 1 <= len(value) <= MAX_ID_CHARS or not value.isprintable():
        raise ValueError(
            f"{name} is not a text of 1 to {MAX_ID_CHARS} printable characters: {str(value)[:60]!r}"
        )
    return value


def _integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is not a whole number: {str(value)[:60]!r}")
    return value


def _ts_ms(value: int) -> int:
    if not 0 <= value <= MAX_TS_MS:
        raise ValueError(f"the time {value} ms since 1970 is out of range")
    return value


def _votes(value: object) -> int:
    """Some are -1 in 2023, for want of a number."""
    return min(max(0, _integer(value, "the number of helpful votes")), _MAX_VOTES)


def _rating(value: object) -> float | None:
    """Some published sets carry no ratings, so None is ordinary; what is there must be a rating."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 5:
        raise ValueError(f"the rating {str(value)[:60]!r} is not a number from 0 to 5")
    return float(value)


def _number_or_none(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e12:
        return None
    return float(value)
