"""A child process that answers orders over two pipes: for work that would hold this one up.

Owns the process, the pipes and how an error comes back from there. What the messages say is their users'. The
child ends with this process, however that ends.
"""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from types import ModuleType

import msgspec

from feature_store import errors
from feature_store.errors import DualstreamError

_END_TIMEOUT_S = 60
_PIPE_BYTES = 1 << 20  # so that one side can work some messages ahead of the other
_FAILED = b"!"  # no msgpack array or map begins so
_PR_SET_PDEATHSIG = 1
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

Serve = Callable[[Connection, Connection], None]


class Worker:
    """The child. Messages to it and from it are in order; each is an array or a map in msgpack."""

    def __init__(self, module: ModuleType, error: type[DualstreamError], fds: Sequence[int] = ()) -> None:
        """Start `python -m module` with these file descriptors; `error` is raised if it ends unasked."""
        self.name = module.__name__
        self._error = error
        orders, self._orders = Pipe(duplex=False)
        self._answers, answers = Pipe(duplex=False)
        for end in (orders, answers):
            with suppress(OSError):  # the system allows so much to some users only
                fcntl.fcntl(end.fileno(), fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
        with orders, answers:
            ends = (orders.fileno(), answers.fileno())
            # A request to stop is for the parent, which then closes the orders: the child is born deaf to it.
            former = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-P", "-m", self.name, *map(str, ends), str(os.getpid())],
                    pass_fds=(*ends, *fds),
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                )
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, former)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._answers.closed

    def send(self, message: bytes) -> None:
        """Give an order. To a child that has ended it gives none: why it ended is said by `receive`."""
        with suppress(BrokenPipeError):
            self._orders.send_bytes(message)

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """Return the next answer; None if there is none for so long.

        Raises:
            DualstreamError: the one that ended the child, or that it ended without one.
        """
        try:
            if not self._answers.poll(timeout_s):
                return None
            answer = self._answers.recv_bytes()
        except (EOFError, OSError):  # OSError: it ended in the middle of a message
            code = self.process.wait(_END_TIMEOUT_S)
            raise self._error(
                f"the process {self.name} ended unasked, with exit code {code}; what it said stands above. "
                "Nothing that was committed is lost"
            ) from None
        if answer.startswith(_FAILED):
            name, text = msgspec.msgpack.decode(answer[len(_FAILED) :], type=tuple[str, str])
            raise getattr(errors, name)(text)
        return answer

    def close(self) -> None:
        """Let the child do what it was told, and end; a second call does nothing."""
        if self.is_closed:
            return
        self._orders.close()
        try:
            with self._answers:
                while self._answers.poll(_END_TIMEOUT_S) and os.read(self._answers.fileno(), _PIPE_BYTES):
                    pass  # it may be waiting to be rid of an answer
            self.process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        finally:
            self.process.wait()


def run_worker(serve: Serve) -> int:
    """Be the child: call `serve` with the pipe of orders and that of answers until the orders end."""
    orders_fd, answers_fd, parent = map(int, sys.argv[1:])
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we could ask to die with it
        return 0
    orders, answers = Connection(orders_fd, writable=False), Connection(answers_fd, readable=False)
    with orders, answers:
        try:
            _serve(serve, orders, answers)
        except (EOFError, BrokenPipeError):
            if not _have_ended(orders):  # it was another pipe that broke
                raise
    return 0


def _serve(serve: Serve, orders: Connection, answers: Connection) -> None:
    try:
        serve(orders, answers)
    except DualstreamError as error:
        answers.send_bytes(_FAILED + msgspec.msgpack.encode((type(error).__name__, str(error))))


def _have_ended(orders: Connection) -> bool:
    """Whether the parent gives no more: it closes the orders first, and with its death they close too."""
    try:
        while orders.poll(0):
            orders.recv_bytes()
    except (EOFError, OSError):
        return True
    return False
