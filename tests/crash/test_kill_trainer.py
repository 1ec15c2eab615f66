"""`kill -9` at any moment changes nothing: the store ends as an undisturbed run's, every key, every value."""

import random
import time
import uuid
from pathlib import Path

import msgpack
import pytest
from trainer_runs import SMALL, TrainerProcess, assert_same_bytes, make_dataset, store_bytes, write_log

from feature_store.settings import load_configuration

NUM_KILLS = 10
NUM_POSITIVES = 3600
NUM_USERS = 1200  # more than the smallest memory tier holds
LEARNING = (
    *SMALL,
    "model.use_user_id=true",
    "learning.commit_every_batches=2",
    "store.row_memory_mib=1",
)
UNDISTURBED = (
    "store.row_memory_mib=64",
    "learning.commit_every_batches=0",
    "learning.commit_interval_seconds=1e9",
)
COMMIT = " stream_trainer.trainer: commit "
LIMIT_S = 20


@pytest.fixture(params=["file", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """The settings of a log that holds the events."""
    if request.param == "file":
        settings = [f"log.path={tmp_path / 'log'}"]
    else:
        settings = ["log.kind=kafka", f"log.bootstrap_servers={request.getfixturevalue('kafka_bootstrap')}"]
        prefix = f"kill-{uuid.uuid4().hex[:8]}"
        names = ("items", "users", "impressions", "clicks", "dead_letters")
        settings += [f"topics.{name}={prefix}-{name.replace('_', '-')}" for name in names]
    dataset = make_dataset(tmp_path / "data", NUM_USERS, 150, NUM_POSITIVES)
    write_log(load_configuration(None, settings, {}), dataset)
    return settings


def wal_bytes(store: Path) -> int:
    """How much is in RocksDB's log: it grows only while a commit is being written."""
    total = 0
    for path in store.glob("*.log"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # flushed meanwhile
            continue
    return total


def wait_for_growth(store: Path, trainer: TrainerProcess) -> None:
    """Return in the middle of the next commit."""
    before, deadline_s = wal_bytes(store), time.monotonic() + LIMIT_S
    while wal_bytes(store) <= before and trainer.process.poll() is None and time.monotonic() < deadline_s:
        pass


def kill_somewhere(trainer: TrainerProcess, store: Path, number: int, chance: random.Random) -> None:
    """Kill the first run while it makes the store, every other one inside a commit, the rest anywhere."""
    if number == 0:
        while not store.exists() and trainer.process.poll() is None:
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.05))
    else:
        trainer.wait_for(COMMIT, chance.randint(1, 12))
        if number % 2:
            wait_for_growth(store, trainer)
        else:
            time.sleep(chance.uniform(0, 0.05))
    trainer.kill()


def learned(trainer: TrainerProcess) -> int:
    """How many positives the last commit that was told of had learned."""
    commits = [line for line in trainer.lines if COMMIT in line and line.endswith("positives learned\n")]
    return int(commits[-1].split()[-3]) if commits else 0


def test_ten_kills_leave_no_trace(log: list[str], tmp_path: Path) -> None:
    chance = random.Random(11)
    store = tmp_path / "killed"
    settings = [*LEARNING, *log, f"store.path={store}"]
    progress = []
    for number in range(NUM_KILLS):
        trainer = TrainerProcess(settings, "--until-end")
        kill_somewhere(trainer, store, number, chance)
        assert trainer.process.returncode == -9, trainer.text
        progress.append(learned(trainer))
    last = TrainerProcess(settings, "--until-end")
    assert last.end() == 0, last.text
    middle = [count for count in progress if 0 < count < NUM_POSITIVES]
    assert len(middle) >= NUM_KILLS - 1
    assert middle == sorted(middle)

    quiet = TrainerProcess([*settings, *UNDISTURBED, f"store.path={tmp_path / 'quiet'}"], "--until-end")
    assert quiet.end() == 0, quiet.text
    assert quiet.text.count(COMMIT) == 1
    killed = store_bytes(store)
    assert msgpack.unpackb(killed["meta"][b"progress"])["num_positives"] == NUM_POSITIVES
    assert_same_bytes(killed, store_bytes(tmp_path / "quiet"))
