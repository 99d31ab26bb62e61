"""Emitting events without ever waiting for a disk or a network: observation must not slow or break generation.

`emit` puts the payload in a bounded queue. A writer thread masks it, encodes it, makes it durable and acknowledges the
receipt: in the log itself when that lies on this machine, else in the outbox, from where a second thread forwards it.
Nothing reaches a disk unmasked; nothing acknowledged is lost.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from infra.errors import QuillError
from infra.identity import new_id
from streams.codec import encode
from streams.events import Event, Payload, now, topic_of
from streams.log import EventLog, check_appendable
from streams.masking import Masker, mask_payload
from streams.outbox import Forwarder, Outbox, Outgoing

CAPACITY = 10_000
BATCH = 256
CLOSE_SECONDS = 5.0
_log = logging.getLogger(__name__)


class Receipt:
    """What became of an emitted event."""

    def __init__(self, event_id: str) -> None:
        self.event_id = event_id
        self.reason = ""
        """Why it failed; empty while it is under way and when it is durable."""
        self._settled = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        """True once the event is durable; False when it failed, or is still under way after `timeout` seconds."""
        return self._settled.wait(timeout) and not self.reason

    @property
    def settled(self) -> bool:
        """It is durable or failed."""
        return self._settled.is_set()

    def settle(self, reason: str = "") -> None:
        """Say how it ended. For the emitter."""
        self.reason = reason
        self._settled.set()


class _Queued(NamedTuple):
    payload: Payload
    receipt: Receipt
    time: datetime


class Emitter:
    """Masks and records events in the background. Safe for threads; after a fork the child has an empty queue.

    `outbox` is a folder for events on their way to a log that may be away. None: the log lies on this machine,
    and appending to it is what makes an event durable. What is queued is written at `close` and at exit.
    """

    def __init__(
        self, log: EventLog, *, masker: Masker, outbox: Path | None, source: str, capacity: int = CAPACITY
    ) -> None:
        self._events = log
        self._masker = masker
        self._source = source
        self._capacity = capacity
        self._outbox = Outbox(outbox) if outbox else None
        self._reset()
        _EMITTERS.add(self)

    def emit(self, payload: Payload, event_id: str | None = None) -> Receipt:
        """Take an event. Returns at once and never raises: a full queue or a closed emitter fails the receipt."""
        receipt = Receipt(event_id or new_id())
        with self._changed:
            reason = self._refusal()
            if reason:
                self._counters["failed"] += 1
                receipt.settle(reason)
            else:
                self._counters["accepted"] += 1
                self._queue.append(_Queued(payload, receipt, now()))
                self._changed.notify_all()
        return receipt

    @property
    def counters(self) -> Mapping[str, int]:
        """Events accepted, acknowledged, failed and (with an outbox) forwarded, since the start of the process."""
        with self._changed:
            return {name: self._counters[name] for name in ("accepted", "acknowledged", "failed", "forwarded")}

    def flush(self, timeout: float) -> bool:
        """Wait until everything emitted before is in the log or has failed; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        with self._changed:
            accepted = self._counters["accepted"]
            if not self._changed.wait_for(lambda: self._finished >= accepted, timeout):
                return False
        while self._outbox is not None and self._outbox.waiting():
            if time.monotonic() >= deadline:
                return False
            self._forwarder_for(self._outbox).wake()
            time.sleep(0.01)
        return True

    def forward(self) -> None:
        """Start forwarding what an earlier process left in the outbox. `emit` starts it too."""
        if self._outbox is not None and self._outbox.waiting():
            self._forwarder_for(self._outbox).wake()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Take no more, write what is queued, and forward what the log takes within `timeout` seconds.

        What stays in the outbox then is forwarded by another process, or after the next start.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._writer is not None:
            self._writer.join(timeout)
        if self._outbox is not None and self._forwarder is not None:
            while self._outbox.waiting() and not self._forwarder.stalled and time.monotonic() < deadline:
                time.sleep(0.01)
            self._forwarder.stop(max(0.1, deadline - time.monotonic()))
        if self._outbox is not None:
            self._outbox.close()

    def _reset(self) -> None:
        """The state of a process that emitted nothing yet; also that of the child of a fork."""
        self._changed = threading.Condition()
        self._queue: deque[_Queued] = deque()
        self._counters: Counter[str] = Counter()
        self._finished = 0
        self._closed = False
        self._writer: threading.Thread | None = None
        self._forwarder: Forwarder | None = None

    def _after_fork(self) -> None:
        # What was queued belongs to the parent, which writes it; its locks may be held by threads we do not have.
        if self._forwarder is not None:
            self._forwarder.abandon()
        closed = self._closed
        self._reset()
        self._closed = closed

    def _refusal(self) -> str:
        if self._closed:
            return "the emitter is closed"
        if len(self._queue) >= self._capacity:
            return f"the queue is full ({self._capacity} events)"
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_on, name="emitter", daemon=True)
            try:
                self._writer.start()
            except RuntimeError as error:
                self._writer = None
                return f"no thread can be started: {error}"
        return ""

    def _forwarder_for(self, outbox: Outbox) -> Forwarder:
        with self._changed:
            if self._forwarder is None:
                self._forwarder = Forwarder(outbox, self._events, self._count_forwarded)
            return self._forwarder

    def _count_forwarded(self, number: int) -> None:
        with self._changed:
            self._counters["forwarded"] += number

    def _write_on(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            if not batch:
                return
            outgoing = [(queued, ready) for queued in batch if (ready := self._prepared(queued))]
            if self._outbox is not None:
                self._keep(self._outbox, outgoing)
            else:
                for topic, group in groupby(sorted(outgoing, key=_topic), key=_topic):
                    self._append(topic, list(group))

    def _prepared(self, queued: _Queued) -> Outgoing | None:
        event_id = queued.receipt.event_id
        try:
            masked = mask_payload(queued.payload, self._masker)
            record = encode(Event(id=event_id, source=self._source, time=queued.time, data=masked))
            topic = topic_of(masked)
            check_appendable(topic, [record])
        except Exception as error:  # noqa: BLE001 - one strange payload must not end the thread that writes all others
            # The text of the error may quote the payload, which is not masked: only its kind may be logged.
            _log.warning("event %s could not be encoded: %s", event_id, type(error).__name__)
            self._settle([queued], f"it cannot be encoded: {error}")
            return None
        return Outgoing(event_id, topic, record)

    def _keep(self, outbox: Outbox, outgoing: Sequence[tuple[_Queued, Outgoing]]) -> None:
        try:
            outbox.put([ready for _, ready in outgoing])
        except QuillError as error:
            self._settle([queued for queued, _ in outgoing], str(error))
            return
        self._forwarder_for(outbox).wake()
        self._settle([queued for queued, _ in outgoing])

    def _append(self, topic: str, outgoing: Sequence[tuple[_Queued, Outgoing]]) -> None:
        reason = ""
        try:
            self._events.append(topic, [ready.record for _, ready in outgoing])
        except QuillError as error:
            reason = str(error)
        self._settle([queued for queued, _ in outgoing], reason)

    def _settle(self, settled: Sequence[_Queued], reason: str = "") -> None:
        if reason:
            _log.warning("%d events were not kept", len(settled))
        for queued in settled:
            queued.receipt.settle(reason)
        with self._changed:
            self._finished += len(settled)
            self._counters["failed" if reason else "acknowledged"] += len(settled)
            self._changed.notify_all()


def _topic(outgoing: tuple[_Queued, Outgoing]) -> str:
    return outgoing[1].topic


_EMITTERS: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _close_all() -> None:
    for emitter in list(_EMITTERS):
        emitter.close()


def _forked() -> None:
    for emitter in list(_EMITTERS):
        emitter._after_fork()


atexit.register(_close_all)
os.register_at_fork(after_in_child=_forked)
