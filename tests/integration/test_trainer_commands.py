"""`stream-trainer create-topics` and `dead-letters` as processes over either log; what `run` checks first."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from process_shop import START_MS, Shop
from trainer_runs import ROOT

from feature_store.configuration import Configuration
from stream_trainer.open_log import open_log


@pytest.fixture(params=["shop", "kafka_shop"])
def any_shop(request: pytest.FixtureRequest) -> Shop:
    """A shop on the embedded log, then one on the broker."""
    shop: Shop = request.getfixturevalue(request.param)
    return shop


def stream_trainer(shop: Shop, *arguments: object) -> subprocess.CompletedProcess[str]:
    settings = [flag for setting in shop.settings for flag in ("--set", setting)]
    return subprocess.run(
        [sys.executable, "-m", "stream_trainer", *map(str, arguments), *settings],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def names(config: Configuration) -> list[str]:
    return [*config.topics.kinds(), config.topics.dead_letters]


def test_topics_are_made_where_they_are_missing(any_shop: Shop) -> None:
    code, why = any_shop.refusal()
    assert code == 5
    assert "stream-trainer create-topics, with the same settings" in why
    topics = any_shop.config.topics
    log = open_log(any_shop.config.log)
    log.create_topics({topics.clicks: 2})
    made = lines(stream_trainer(any_shop, "create-topics", "--partitions", 3))
    expected = dict.fromkeys(names(any_shop.config), ("made", 3))
    expected |= {
        topics.clicks: ("was there", 2),
        topics.impressions: ("made", 2),
        topics.dead_letters: ("made", 1),
    }
    assert made == [f"{name}: {what}, partitions: {count}" for name, (what, count) in expected.items()]
    for name, (_, count) in expected.items():
        assert len(log.partitions([name])) == count
    log.close()
    again = lines(stream_trainer(any_shop, "create-topics"))
    assert again == [line.replace(": made", ": was there") for line in made]
    any_shop.learn_all()


def test_dead_letters_are_printed_oldest_first(any_shop: Shop) -> None:
    any_shop.create_topics()
    topics = any_shop.config.topics
    assert lines(stream_trainer(any_shop, "dead-letters")) == [
        f"no dead letters in topic '{topics.dead_letters}'"
    ]
    any_shop.write_items()
    any_shop.write_clicks(5)
    writer = any_shop.writer()
    for number in range(3):
        writer.send(topics.clicks, b"ann", b"\x1b[2J%d" % number + b"\0" * 1000, START_MS + number)
    writer.close()
    done = stream_trainer(any_shop, "run", "--until-end", "--set", "learning.batch_size=4")
    assert done.returncode == 0, done.stderr
    *_, last = (line for line in done.stderr.splitlines() if ": done: " in line)
    assert re.search(
        r"done: \d+ events, 5 positives learned in [\d.]+ s, \d+ commits; join: 5 joined, ", last
    )
    assert last.endswith("; dead letters: 3 malformed")
    done = stream_trainer(any_shop, "run", "--until-end", "--set", "learning.batch_size=4")
    assert ": done: 0 events, 0 positives learned in " in done.stderr
    letters = lines(stream_trainer(any_shop, "dead-letters"))
    assert len(letters) == 3
    for number, letter in enumerate(letters):
        assert letter.isprintable()
        assert letter.startswith(f"{topics.clicks}[")
        assert ": malformed: " in letter
        assert f"; key b'ann', value b'\\x1b[2J{number}\\x00" in letter
        assert letter.endswith("... of 1,005 bytes")
    limited = lines(stream_trainer(any_shop, "dead-letters", "--limit", 2))
    assert limited == [*letters[:2], "these are the oldest 2 of 3; --limit N shows more"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("create-topics", "--partitions", "0"), "error: --partitions is 0; a topic has at least 1\n"),
        (("dead-letters", "--limit", "0"), "error: --limit is 0; it must be at least 1\n"),
    ],
)
def test_impossible_numbers_are_refused(shop: Shop, arguments: tuple[str, ...], why: str) -> None:
    done = stream_trainer(shop, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", why)
    assert not shop.config.log.path.exists()


def test_a_summary_that_cannot_be_written_is_refused_before_the_run(shop: Shop, tmp_path: Path) -> None:
    shop.create_topics()
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "summary.json", tmp_path):
        done = stream_trainer(shop, "run", "--until-end", "--summary", path)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: --summary: cannot write {path}: ")
        assert done.stderr.count("\n") == 1
    assert not shop.config.store.path.exists()


def test_a_store_that_is_a_file_is_refused_by_name(shop: Shop, tmp_path: Path) -> None:
    shop.create_topics()
    (tmp_path / "file").touch()
    code, why = shop.refusal(f"store.path={tmp_path / 'file'}")
    assert code == 8
    assert f"cannot open the feature store {tmp_path / 'file'}: " in why
