"""Fixtures that several test folders share: the real Kafka broker, started only when a test asks for it; and
what keeps the memory of all tests together bounded.
"""

import gc
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from feature_store.store import FeatureStore

BROKER = Path(__file__).resolve().parent.parent / "deploy" / "kafka" / "broker.py"
JARS = BROKER.parent.parent.parent / "build" / "kafka" / "libs"

_GROWN_BYTES = 256 << 20
_collected_at = [0]

RunBroker = Callable[..., AbstractContextManager[str]]


def pytest_configure(config: pytest.Config) -> None:
    """Let kafka-python load its protocol: it does so by functions that Python 3.11 calls deprecated."""
    config.addinivalue_line("filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def _collected() -> Iterator[None]:
    """Take back the tables of trainers that have ended in this process: large objects in cycles, of which the
    collector sees the number alone. Together they took most of 24 GiB.
    """
    yield
    if _resident_bytes() > _collected_at[0] + _GROWN_BYTES:
        gc.collect()
        _collected_at[0] = _resident_bytes()


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def _running_broker(data: Path, port: int = 0) -> Iterator[str]:
    """Run the broker script on `data` and yield its address; stop it as an operator would."""
    command = [sys.executable, str(BROKER), "--port", str(port), "--data", str(data)]
    log = data / "broker.log"
    with log.open("ab") as errors:
        broker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert broker.stdout is not None
        try:
            address = broker.stdout.readline().strip()
            if not address:
                pytest.fail(f"the Kafka broker did not start:\n{log.read_text()[-4000:]}")
            yield address
        finally:
            broker.send_signal(signal.SIGTERM)
            broker.wait()
            broker.stdout.close()


@pytest.fixture(scope="session")
def kafka_broker() -> RunBroker:
    """A function that runs a broker of one's own on a data folder, for tests that stop it.

    Skips without Java, or without Maven while the jars are missing; in CI that is a failure.
    """
    needed = ["java"] if JARS.is_dir() else ["java", "mvn"]
    missing = [tool for tool in needed if shutil.which(tool) is None]
    if missing:
        reason = f"the Kafka broker needs {' and '.join(missing)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    return _running_broker


@pytest.fixture(scope="session")
def kafka_bootstrap(kafka_broker: RunBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a broker that the whole session shares: use topic names of your own."""
    with kafka_broker(tmp_path_factory.mktemp("kafka")) as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    """A feature store in `store`, open."""
    opened = FeatureStore(tmp_path / "store")
    yield opened
    opened.close()
