"""The readers of the three Amazon formats: what they read of real and made-up files, and what they refuse."""

import gzip
import json
import tracemalloc
from pathlib import Path

import pytest

from feature_store.errors import DataError
from simulators.amazon import detect_format, find_files, read_items, read_reviews
from simulators.amazon_fields import ItemMeta, Review, clean_text, parse_price

R2014 = (
    '{"reviewerID": "U1", "asin": "B1", "helpful": [2, 3], "overall": 5.0, "unixReviewTime": 1023840000}\n'
)
R2018 = '{"reviewerID": "U1", "asin": "B1", "vote": "1,234", "overall": 3.0, "unixReviewTime": 1393372800}\n'
R2023 = (
    '{"user_id": "U1", "asin": "X", "parent_asin": "B1", "rating": 4.0, "timestamp": 1546297654677, '
    '"helpful_vote": -1}\n'
)
CSV = "user_id,parent_asin,rating,timestamp\nU1,B1,4.0,1546297654677\n"

FILES = {
    "toys_2014": ("2014", "reviews_Toys_and_Games_5.json.gz", 128_773, 11_876),
    "beauty_2014": ("2014", "reviews_Beauty_5.json.gz", 198_502, 12_101),
    "electronics_2023": ("2023", "Electronics.jsonl.gz", 131_154, 9_671),
    "digital_music_2014": ("2014", "reviews_Digital_Music_5.json.gz", 6_908, 7_419),
    "magazine_2018": ("2018", "Magazine_Subscriptions_5.json.gz", 2_375, 3_385),
}


@pytest.mark.parametrize("name", FILES)
def test_real_files(data_root: Path, name: str):
    fmt, reviews_name, num_reviews, num_items = FILES[name]
    assert detect_format(data_root / name) == fmt
    files = find_files(data_root / name, fmt)
    assert files.reviews.name == reviews_name
    assert files.items.name.startswith("meta_")
    lines = [review.line for review in read_reviews(files.reviews, fmt)]
    assert lines == list(range(1, num_reviews + 1))
    assert sum(1 for _ in read_items(files.items, fmt)) == num_items


def test_first_real_lines(data_root: Path):
    def first(name: str) -> tuple[Review, ItemMeta]:
        fmt = detect_format(data_root / name)
        files = find_files(data_root / name, fmt)
        return next(read_reviews(files.reviews, fmt)), next(read_items(files.items, fmt))

    review, item = first("digital_music_2014")
    assert review == Review("A3EBHHCZO6V2A4", "5555991584", 1_158_019_200_000, 5.0, 3, 1)
    assert (item.item_id, item.title, item.price) == ("5555991584", "Memory of Trees", 9.49)
    review, item = first("magazine_2018")
    assert review == Review("A5QQOOZJOVPSF", "B00005N7P0", 1_393_372_800_000, 4.0, 0, 1)
    assert (item.title, item.category) == (None, "Professional & Educational Journals")
    assert item.brand == "Reason Magazine"
    review, item = first("electronics_2023")
    assert review == Review("AHF5P5FUVZ6S76VUDGNR3SP5OBRA", "B075KZTN4J", 1_546_297_654_677, 5.0, 0, 1)
    assert item[2:] == ("Hard Shell Cases", "iCasso", 27.99, 4.4)
    assert first("toys_2014")[0].rating is None


def test_real_metadata_are_clean(data_root: Path):
    for name in FILES:
        fmt = detect_format(data_root / name)
        for item in read_items(find_files(data_root / name, fmt).items, fmt):
            for text in (item.title, item.category, item.brand):
                assert text is None or text.strip()
                assert not any(junk in (text or "") for junk in ("&amp;", "<span", "{background"))
            assert item.price is None or item.price >= 0


def test_reviews_of_each_format(tmp_path: Path):
    expected = {
        ("2014", "a.json", R2014): Review("U1", "B1", 1_023_840_000_000, 5.0, 2, 1),
        ("2018", "b.json", R2018): Review("U1", "B1", 1_393_372_800_000, 3.0, 1234, 1),
        ("2023", "c.jsonl", R2023): Review("U1", "B1", 1_546_297_654_677, 4.0, 0, 1),
        ("2023", "d.csv", CSV): Review("U1", "B1", 1_546_297_654_677, 4.0, 0, 2),
    }
    for (fmt, name, text), review in expected.items():
        (tmp_path / name).write_text(text + "\n")  # a blank last line is ordinary
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
        assert list(read_reviews(tmp_path / name, fmt)) == [review]
        assert list(read_reviews(tmp_path / f"{name}.gz", fmt)) == [review]


def test_items_of_each_format(tmp_path: Path):
    path = tmp_path / "meta"
    path.write_text(
        "{'asin': 'B1', 'title': \"It's\", 'price': 9.5, 'brand': 'X &amp; Y', "
        "'categories': [['Books', 'Art &amp; Photography'], ['Other']]}\n{'asin': 'B2'}\n"
    )
    assert list(read_items(path, "2014")) == [
        ItemMeta("B1", "It's", "Art & Photography", "X & Y", 9.5),
        ItemMeta("B2"),
    ]
    lines = [
        {"asin": "B1", "category": ["Books", "</span>", "Art", "Oil"], "price": "$12.99", "brand": ""},
        {"asin": "B1", "category": ["Books"], "price": ".a-box-inner{background-color:#fff}", "title": "T"},
        {"asin": "B2", "category": [], "title": '<span class="a-size-medium a-color-secondary"'},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(read_items(path, "2018")) == [
        ItemMeta("B1", None, "Art", None, 12.99),
        ItemMeta("B1", "T", "Books"),
        ItemMeta("B2"),
    ]
    fields = {"parent_asin": "B1", "title": "T", "categories": ["Books", "Art"], "store": "S"}
    path.write_text(json.dumps({**fields, "price": None, "average_rating": 4.5}))
    assert list(read_items(path, "2023")) == [ItemMeta("B1", "T", "Art", "S", None, 4.5)]


def test_only_wanted_items(tmp_path: Path):
    path = tmp_path / "meta"
    path.write_text("{'asin': 'B1'}\n{'asin': 'B2'}\n{ 'asin' :'B3'}\n")
    assert [item.item_id for item in read_items(path, "2014", {"B2"})] == ["B2"]
    assert [item.item_id for item in read_items(path, "2014", {"B3"})] == ["B3"]
    path.write_text('{"asin": "B1"}\n{"asin": "B2"}\n')
    assert [item.item_id for item in read_items(path, "2018", {"B2"})] == ["B2"]


def test_text_and_price_clean_up():
    assert clean_text("Rock &amp; Roll") == clean_text(" Rock  &  Roll ") == "Rock & Roll"
    assert clean_text("<b>Bold</b> move") == "Bold move"
    assert clean_text("\ud800half") == "half"
    assert [clean_text(junk) for junk in ("", " ", "--", None, 7, "a{color: red}", "<script")] == [None] * 7
    assert [parse_price(price) for price in ("$1,000", "7", 7, "$0.99")] == [1000.0, 7.0, 7.0, 0.99]
    junk = ("", "free", "$1 - $2", None, True, float("nan"), float("inf"), 10**400, "-3", [], "9" * 400)
    assert [parse_price(price) for price in junk] == [None] * len(junk)


BAD_REVIEWS = {
    "not JSON": ("2014", R2014 + "{'reviewerID': 'U1'}\n", "line 2: not a JSON object"),
    "cut short": ("2014", R2014 + R2014[:40], "line 2: not a JSON object"),
    "not an object": ("2014", R2014 + "[1]\n", "line 2: not a JSON object"),
    "deep": ("2014", "[" * 100_000 + "\n", "line 1: not a JSON object"),
    "another format": ("2014", R2023, "line 1: no field 'reviewerID'; is this really the 2014 format"),
    "the other way": ("2023", R2014, "line 1: no field 'user_id'"),
    "empty ID": ("2014", R2014.replace("U1", ""), "line 1: reviewerID is not a text"),
    "long ID": ("2014", R2014.replace("U1", "U" * 129), "line 1: reviewerID is not a text"),
    "half a character": ("2014", R2014.replace("U1", "\\ud800"), "line 1: reviewerID is not a text"),
    "number as ID": ("2014", R2014.replace('"B1"', "17"), "line 1: asin is not a text"),
    "no time": ("2014", R2014.replace("1023840000", "null"), "line 1: unixReviewTime is not a whole number"),
    "early": ("2014", R2014.replace("1023840000", "-5"), "line 1: the time -5000 ms"),
    "seconds times 1000 twice": ("2014", R2014.replace("1023840000", "1" + "0" * 15), "out of range"),
    "rating of 6": ("2014", R2014.replace("5.0", "6.0"), "line 1: the rating '6.0'"),
    "rating NaN": ("2014", R2014.replace("5.0", "NaN"), "line 1: the rating 'nan'"),
    "votes": ("2014", R2014.replace("[2, 3]", "[]"), "line 1: "),
    "infinite votes": ("2023", R2023.replace("-1", "Infinity"), "line 1: the number of helpful votes"),
}


@pytest.mark.parametrize("case", BAD_REVIEWS)
def test_bad_reviews_name_file_and_line(tmp_path: Path, case: str):
    fmt, text, reason = BAD_REVIEWS[case]
    path = tmp_path / "reviews"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        list(read_reviews(path, fmt))
    assert f"{path}, " in str(caught.value)
    assert reason in str(caught.value)


def test_bad_csv(tmp_path: Path):
    path = tmp_path / "Books.csv"
    for text, reason in (
        ("a,b,c,d\n", "line 1: columns must be user_id,parent_asin,rating,timestamp"),
        ("", "line 1: columns must be"),
        (CSV + "U1,B1,4.0\n", "line 3: not enough values"),
        (CSV + "U1,B1,x,1\n", "line 3: could not convert"),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            list(read_reviews(path, "2023"))
        assert f"{path}, {reason}" in str(caught.value)


def test_bad_items_name_file_and_line(tmp_path: Path):
    path = tmp_path / "meta"
    for fmt, text, reason in (
        ("2014", "{'asin': 'B1'}\n{'asin': 'B2', 'price\n", "line 2: not a Python dict"),
        ("2014", "{'asin': 'B1'}\n__import__('os').getcwd()\n", "line 2: not a Python dict"),
        ("2014", '{"asin": "B1", "title": null}\n', "line 1: not a Python dict"),
        ("2018", "{'asin': 'B1'}\n", "line 1: not a JSON object"),
        ("2023", '{"asin": "B1"}\n', "line 1: no field 'parent_asin'"),
    ):
        path.write_text(text)
        with pytest.raises(DataError) as caught:
            list(read_items(path, fmt))
        assert f"{path}, {reason}" in str(caught.value)


def test_every_cut_of_a_gzip_file_is_an_error(tmp_path: Path):
    whole = gzip.compress((R2014 * 20).encode())
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(whole)
    assert len(list(read_reviews(path, "2014"))) == 20
    for length in range(2, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"reviews\.json\.gz, line \d+: the gzip file is cut short"):
            list(read_reviews(path, "2014"))
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    path.write_bytes(flipped)
    with pytest.raises(DataError, match=r"line \d+"):
        list(read_reviews(path, "2014"))


def test_unreadable_files(tmp_path: Path):
    with pytest.raises(DataError, match=r"absent\.json: cannot be read"):
        list(read_reviews(tmp_path / "absent.json", "2014"))
    path = tmp_path / "latin"
    path.write_bytes(R2014.encode() + b'{"reviewerID": "\xe9"}')
    with pytest.raises(DataError, match=r"latin, line \d: not UTF-8"):
        list(read_reviews(path, "2014"))


def test_file_names(tmp_path: Path):
    def folder(*names: str) -> Path:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        path.mkdir()
        for name in names:
            (path / name).touch()
        return path

    books = folder("reviews_Books_5.json.gz", "reviews_Books.json.gz", "meta_Books.json.gz", "notes.txt")
    assert detect_format(books) == "2014"
    assert [path.name for path in find_files(books, "2014")] == [
        "reviews_Books_5.json.gz",
        "meta_Books.json.gz",
    ]
    newer = folder("Books.json.gz", "Books_5.json.gz", "meta_Books.json.gz")
    assert detect_format(newer) == "2018"
    assert find_files(newer, "2018").reviews.name == "Books_5.json.gz"
    newest = folder("Books.csv", "Books.jsonl.gz", "meta_Books.jsonl.gz")
    assert detect_format(newest) == "2023"
    assert find_files(newest, "2023").reviews.name == "Books.csv"
    with pytest.raises(DataError, match=r"in the 2018 format \(it holds meta_Books\.json\.gz, notes\.txt"):
        find_files(books, "2018")
    with pytest.raises(DataError, match=r"it holds reviews_Books_5\.json\).*expected 2014: "):
        detect_format(folder("reviews_Books_5.json"))
    with pytest.raises(DataError, match="it is empty"):
        detect_format(folder())
    with pytest.raises(DataError, match="formats 2014 and 2023"):
        detect_format(folder("reviews_A.json", "meta_A.json", "A.jsonl", "meta_A.jsonl"))
    two = folder("A.jsonl", "meta_A.jsonl", "B.jsonl", "meta_B.jsonl")
    with pytest.raises(DataError, match=r"several data sets \(A, B\)"):
        find_files(two, "2023")
    with pytest.raises(DataError, match="cannot be read as a data folder"):
        detect_format(tmp_path / "absent")


def test_reading_takes_constant_memory(tmp_path: Path):
    path = tmp_path / "reviews.json.gz"
    path.write_bytes(gzip.compress((R2014 * 40_000).encode()))
    tracemalloc.start()
    num_reviews = sum(1 for _ in read_reviews(path, "2014"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_reviews == 40_000
    assert peak < 1_000_000
