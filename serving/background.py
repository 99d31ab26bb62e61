"""A consumer that keeps running beside the API."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from infra.errors import QuillError
from serving.surface import Part

FIRST_WAIT = 1.0
LONGEST_WAIT = 30.0

_logger = logging.getLogger(__name__)


class Background(threading.Thread):
    """Runs `work(stop)` in a thread until it returns. A `QuillError` (a broker that is away, an index that another
    process owns) is tried again after 1 s, then 2, up to 30; any other error ends the thread with its traceback,
    and `part()` says so."""

    def __init__(self, name: str, work: Callable[[threading.Event], None], stop: threading.Event) -> None:
        super().__init__(name=f"quill-{name}", daemon=True)
        self._work = work
        self._halt = stop
        self._problem = ""

    def run(self) -> None:
        """What the thread does."""
        wait = FIRST_WAIT
        while not self._halt.is_set():
            self._problem = ""
            try:
                self._work(self._halt)
                return
            except QuillError as error:
                self._problem = str(error)
                _logger.warning("%s: %s; trying again in %g s", self.name, error, wait)
            self._halt.wait(wait)
            wait = min(2 * wait, LONGEST_WAIT)

    def part(self) -> Part:
        """How it is, for `/healthz`."""
        if not self.is_alive():
            return Part(state="failed", detail={"problem": self._problem or "the thread ended; see the server's log"})
        return Part(state="waiting", detail={"problem": self._problem}) if self._problem else Part(state="ok")
