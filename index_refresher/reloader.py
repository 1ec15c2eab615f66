"""When the server looks for what is new.

Owns the thread that does, and with it the recommender's views of the store. Never answers (`serving.py`).
"""

import logging
import threading

from feature_store.errors import DualstreamError
from index_refresher.metrics import ServerMetrics
from index_refresher.serving import Recommender

log = logging.getLogger(__name__)

_END_TIMEOUT_S = 20


class Reloader:
    """A thread that looks for a new generation and commit every so often, and closes all when it is left."""

    def __init__(self, recommender: Recommender, seconds: float, metrics: ServerMetrics) -> None:
        self._recommender = recommender
        self._seconds = seconds
        self._metrics = metrics
        self._stop = threading.Event()
        self._last_failure = ""
        self._thread = threading.Thread(target=self._run, name="reloader", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(_END_TIMEOUT_S)  # one whose view hangs ends with the process, and its view with it

    def look(self) -> None:
        """Reload once; a failure is counted, and logged when it is another than the last."""
        try:
            self._recommender.reload()
            self._last_failure = ""
        except Exception as error:
            self._metrics.reload_failures.inc()
            if str(error) != self._last_failure:
                self._last_failure = str(error)
                expected = isinstance(error, DualstreamError)
                log.warning("what was served stays: %s", error, exc_info=None if expected else error)

    def _run(self) -> None:
        try:
            self.look()
            while not self._stop.wait(self._seconds):
                self.look()
        finally:
            self._recommender.close()  # here: its views' processes end with the thread that began them
