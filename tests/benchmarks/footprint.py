"""What a trainer takes: memory of its processes, and disk of its store."""

from pathlib import Path

from feature_store.store import FAMILIES, FeatureStore


class Footprint:
    """Peak resident memory of a process and its children, seen while they live."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak_kib: dict[int, int] = {}

    def look(self) -> None:
        """Take note of how far the processes have come; those that have ended keep what was seen."""
        for pid in (self._pid, *_children(self._pid)):
            peak_kib = _peak_kib(pid)
            if peak_kib:
                self._peak_kib[pid] = peak_kib

    def peaks_mib(self) -> list[int]:
        """Return the peak of each process, the learning one first. Memory that they share counts in each."""
        return [kib // 1024 for kib in self._peak_kib.values()]


def folder_bytes(path: Path) -> int:
    """Return the size of all files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def live_bytes(path: Path) -> int:
    """Return the size of all keys and values that a store holds."""
    store = FeatureStore(path)
    try:
        return sum(len(key) + len(value) for family in FAMILIES for key, value in store.items(family))
    finally:
        store.close()


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _peak_kib(pid: int) -> int:
    """Return the peak resident memory of a process, 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)
