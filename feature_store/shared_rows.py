"""Memory that two processes see: rows pass from the one that learns to the one that writes without a pipe.

Owns the file behind it, which has no name and goes with the processes.
"""

import mmap
import os

import numpy as np
import numpy.typing as npt

_STEP_BYTES = 64 << 20


class SharedRows:
    """A buffer that grows. One side writes and tells the other where; meanwhile that does not read."""

    def __init__(self, fd: int | None = None) -> None:
        """Make one, or open the one that another process made, by its file descriptor."""
        self.fd = os.memfd_create("rows") if fd is None else fd
        self._map: mmap.mmap | None = None

    def write(self, start: int, rows: npt.NDArray[np.float32]) -> int:
        """Copy contiguous rows to a place; return the place after them."""
        end = start + rows.nbytes
        if os.fstat(self.fd).st_size < end:
            os.ftruncate(self.fd, -(-end // _STEP_BYTES) * _STEP_BYTES)
        self._view(end)[start:end] = rows.reshape(-1).view(np.uint8)
        return end

    def read(self, start: int, order: npt.NDArray[np.int64], row_bytes: int) -> list[bytes]:
        """Return a copy of some of the rows from a place on, in this order."""
        end = start + (int(order.max()) + 1) * row_bytes
        values: list[bytes] = self._view(end)[start:end].view(f"V{row_bytes}")[order].tolist()
        return values

    def close(self) -> None:
        """Release this side of it."""
        self._map = None  # unmapped with its last view
        os.close(self.fd)

    def _view(self, end: int) -> npt.NDArray[np.uint8]:
        if self._map is None or len(self._map) < end:
            self._map = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
        return np.frombuffer(self._map, np.uint8)
