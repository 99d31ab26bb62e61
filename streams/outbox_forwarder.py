"""The thread that brings what lies in the outbox to the log."""

from __future__ import annotations

import fcntl
import logging
import threading
from collections.abc import Callable
from typing import BinaryIO

from infra.errors import QuillError
from streams.log import EventLog
from streams.outbox import Outbox

IDLE_SECONDS = 0.5
RETRY_SECONDS = (0.2, 10.0)
_log = logging.getLogger(__name__)


class Forwarder:
    """Forwards an outbox while the log answers, and waits for the lock while another process does."""

    def __init__(self, outbox: Outbox, log: EventLog, forwarded: Callable[[int], None]) -> None:
        self._outbox = outbox
        self._events = log
        self._forwarded = forwarded
        self._stop = threading.Event()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: BinaryIO | None = None
        self.stalled = ""
        """Why the last attempt failed; empty when it did not. While it is set the outbox may take long to empty."""

    def wake(self) -> None:
        """There is something to forward; starts the thread the first time."""
        self._work.set()
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._run, name="outbox-forwarder", daemon=True)
            self._thread.start()

    def stop(self, timeout: float) -> None:
        """End after the batch in hand, waiting at most `timeout` seconds for it."""
        self._stop.set()
        self._work.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def abandon(self) -> None:
        """In the child of a fork: drop the copy of the parent's lock, which would outlive the parent."""
        if self._lock is not None:
            self._lock.close()

    def _run(self) -> None:
        pause = RETRY_SECONDS[0]
        try:
            while not self._stop.is_set():
                self._work.clear()
                try:
                    sent = self._outbox.forward(self._events) if self._has_lock() else 0
                except (QuillError, OSError) as error:
                    if not self.stalled:
                        _log.warning("events wait in the outbox: %s", error)
                    self.stalled = str(error)
                    self._stop.wait(pause)
                    pause = min(2 * pause, RETRY_SECONDS[1])
                    continue
                self.stalled, pause = "", RETRY_SECONDS[0]
                if sent:
                    self._forwarded(sent)
                else:
                    self._work.wait(IDLE_SECONDS)
        finally:
            self.abandon()

    def _has_lock(self) -> bool:
        if self._lock is not None:
            return True
        self._outbox.folder.mkdir(parents=True, exist_ok=True)
        file = (self._outbox.folder / "forwarder.lock").open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._lock = file
        self._outbox.inspect()
        return True
