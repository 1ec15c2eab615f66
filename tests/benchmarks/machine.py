"""The machine under the bench: when it is idle, and a broker on it."""

import os
import subprocess
import sys
import time
from pathlib import Path

_SETTLE_LIMIT_S = 60
_BROKER = Path(__file__).parents[2] / "deploy" / "kafka" / "broker.py"


def settle() -> None:
    """Wait until the processors that we may use are idle: what one row leaves behind (RocksDB's compactions)
    must not burden the next one.
    """
    deadline_s = time.monotonic() + _SETTLE_LIMIT_S
    while time.monotonic() < deadline_s:
        before = _cpu_ticks()
        time.sleep(1)
        total, idle = (now - then for now, then in zip(_cpu_ticks(), before, strict=True))
        if idle > 0.9 * total:
            return


def start_broker(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start our own broker on a free port; return it and its address."""
    command = [sys.executable, str(_BROKER), "--port", "0", "--data", str(folder / "kafka")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("127.0.0.1:"):
            return process, line.strip()
    raise RuntimeError("the broker did not start; run `make kafka` to see why")


def _cpu_ticks() -> tuple[int, int]:
    """Return all ticks of the processors that we may use so far, and the idle ones among them; of all
    processors where none there has the number of one of ours (in some containers).
    """
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    counted = [line for line in lines if line[0] in ours] or lines[:1]
    ticks = [[int(field) for field in line[1:9]] for line in counted]
    return sum(map(sum, ticks)), sum(each[3] + each[4] for each in ticks)
