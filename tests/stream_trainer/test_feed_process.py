"""The feed's own process: it dies with the trainer, and its death is told."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

from feature_store.codec import encode
from feature_store.configuration import Configuration
from feature_store.errors import LogError, SettingsError
from feature_store.schema import ItemFeatures
from feature_store.settings import load_configuration
from stream_trainer.chunk import Marks, Position
from stream_trainer.feed_process import FeedProcess
from stream_trainer.file_log import FileEventLog
from stream_trainer.topics import create_topics

NOWHERE = Position([], {}, Marks(), [])
LIMIT_S = 20
TRAINER = """
import sys, time
from feature_store.settings import load_configuration
from stream_trainer.chunk import Marks, Position
from stream_trainer.feed_process import FeedProcess

feed = FeedProcess(load_configuration(None, ["log.path=" + sys.argv[1]], {}), until_end=False)
feed.start(Position([], {}, Marks(), []))
print(feed._worker.process.pid, flush=True)
time.sleep(100)
"""


@pytest.fixture
def config(tmp_path: Path) -> Configuration:
    create_topics(FileEventLog(tmp_path), Configuration().topics)
    return load_configuration(None, [f"log.path={tmp_path}"], {})


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def drain(feed: FeedProcess) -> None:
    """Take what was sent before the end, and go on."""
    while True:
        feed.next_chunk(LIMIT_S)


def test_it_ends_with_a_trainer_that_is_killed(config: Configuration) -> None:
    command = [sys.executable, "-c", TRAINER, str(config.log.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        pid = int(trainer.stdout.readline())
        assert is_running(pid)
        trainer.kill()
    deadline_s = time.monotonic() + LIMIT_S
    while is_running(pid) and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not is_running(pid)


def test_its_death_is_an_error_that_says_so(config: Configuration) -> None:
    feed = FeedProcess(config, until_end=False)
    feed.start(NOWHERE)
    os.kill(feed._worker.process.pid, signal.SIGKILL)
    feed._worker.process.wait()
    with pytest.raises(LogError, match="exit code -9"):
        drain(feed)
    feed.report_progress({})  # a commit that comes after is no second error
    feed.close()


def test_its_death_in_the_middle_of_a_message_is_no_other_error(config: Configuration) -> None:
    """Chunks that nobody takes fill the pipe, and it waits inside one."""
    writer = FileEventLog(config.log.path).writer()
    for number in range(20_000):
        item = ItemFeatures(id=f"{number:0>100}", ts_ms=number)
        writer.send("items", item.id.encode(), encode(item), 0)
    writer.close()
    feed = FeedProcess(config, until_end=True)
    feed.start(NOWHERE)
    time.sleep(2)
    feed._worker.process.kill()
    with pytest.raises(LogError, match="exit code -9"):
        drain(feed)
    feed.close()


def test_a_broken_pipe_that_is_not_the_trainers_is_no_quiet_end() -> None:
    """The child shows the error and ends with a code that says so."""
    code = (
        "from feature_store.worker import run_worker\ndef serve(o, a): raise BrokenPipeError('the broker')\n"
    )
    (orders, ours), (theirs, answers) = Pipe(duplex=False), Pipe(duplex=False)
    fds = (orders.fileno(), answers.fileno())
    command = [sys.executable, "-c", code + "run_worker(serve)", *map(str, fds), str(os.getpid())]
    with orders, ours, theirs, answers:
        ended = subprocess.run(command, pass_fds=fds, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "BrokenPipeError: the broker" in ended.stderr


def test_signals_are_the_trainers_to_answer(config: Configuration) -> None:
    feed = FeedProcess(config, until_end=False)
    feed.start(NOWHERE)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(feed._worker.process.pid, number)
    time.sleep(0.3)
    assert feed.next_chunk(5.0) is not None
    feed.close()
    assert feed._worker.process.returncode == 0
    feed.close()


def test_who_learns_goes_first(config: Configuration) -> None:
    feed = FeedProcess(config, until_end=True)
    try:
        feed.start(NOWHERE)
        ours, theirs = (os.getpriority(os.PRIO_PROCESS, pid) for pid in (0, feed._worker.process.pid))
    finally:
        feed.close()
    assert theirs == min(ours + 10, 19)


def test_wrong_settings_are_refused_before_it_starts() -> None:
    config = load_configuration(None, ["log.kind=kafka", "log.client={ no_such_key = 1 }"], {})
    with pytest.raises(SettingsError, match="no_such_key"):
        FeedProcess(config, until_end=True)
