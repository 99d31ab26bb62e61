"""Emitting events without ever waiting for a disk or a network: observation must not slow or break generation.

`emit` puts the payload in a bounded queue. A writer thread takes what is queued, masks and encodes it, makes it durable
as one group and acknowledges the receipts: in the log itself when that lies on this machine, else in the outbox, from
where a second thread forwards it. Nothing reaches a disk unmasked; nothing acknowledged is lost. While the outbox
cannot be written, events wait in memory; when that is full too, new ones are refused.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from infra.errors import QuillError
from infra.identity import new_id
from streams.codec import encode_payload
from streams.events import Payload, text_size, topic_of
from streams.log import MAX_RECORD_BYTES, EventLog, check_appendable
from streams.masking import Masker, mask_payload
from streams.outbox import Outbox, OutboxStatus
from streams.outbox_forwarder import Forwarder
from streams.outbox_issued import Issued
from streams.segments import Outgoing

CAPACITY = 10_000
CAPACITY_BYTES = 256 << 20
WINDOW = 0.01
GROUP_BYTES = 1 << 20
ALWAYS_SHORT = MAX_RECORD_BYTES // 8
"""Bytes of a value below which its record is not too long for a log: the key is one of its fields."""
FORK_SECONDS = 1.0
"""Longest that a fork waits for a writer that masks one event, or writes a group."""
CLOSE_SECONDS = 5.0
RETRY_SECONDS = (0.05, 1.0)
_log = logging.getLogger(__name__)


class Receipt:
    """What became of an emitted event."""

    __slots__ = ("_emitter", "_settled", "event_id", "reason")

    def __init__(self, event_id: str, emitter: Emitter | None = None) -> None:
        self.event_id = event_id
        self.reason = ""
        """Why it failed; empty while it is under way and when it is durable."""
        self._settled = False
        self._emitter = emitter

    def wait(self, timeout: float | None = None) -> bool:
        """True once the event is durable; False when it failed, or is still under way after `timeout` seconds."""
        if not self._settled and self._emitter is not None:
            self._emitter._wait_for(lambda: self._settled, timeout)
        return self._settled and not self.reason

    @property
    def settled(self) -> bool:
        """It is durable or failed."""
        return self._settled

    def settle(self, reason: str = "") -> None:
        """Say how it ended. For the emitter, which then wakes who waits."""
        self.reason = reason
        self._settled = True


class _Queued(NamedTuple):
    sequence: int
    payload: Payload
    receipt: Receipt
    time: float
    size: int


class Emitter:
    """Masks and records events in the background. Safe for threads; after a fork the child has an empty queue.

    `outbox` is for events on their way to a log that may be away: a folder, or an outbox with limits of its own. None:
    the log lies on this machine, and appending to it is what makes an event durable. What is queued is written at
    `close` and at exit. At most `capacity` events of about `capacity_bytes` together wait in memory. A group is what
    half of `window` seconds suffice to mask and encode; the other half is for the disk, and where that takes longer
    groups grow with it.
    """

    def __init__(
        self,
        log: EventLog,
        *,
        masker: Masker,
        outbox: Path | Outbox | None,
        source: str,
        capacity: int = CAPACITY,
        capacity_bytes: int = CAPACITY_BYTES,
        window: float = WINDOW,
    ) -> None:
        self._events = log
        self._masker = masker
        self._source = source
        self._capacity = capacity
        self._capacity_bytes = capacity_bytes
        self._window = window
        self._outbox = Outbox(outbox) if isinstance(outbox, Path) else outbox
        self._reset()
        _EMITTERS.add(self)

    def _reset(self) -> None:
        """The state of a process that emitted nothing yet; also that of the child of a fork."""
        self._taking = threading.RLock()  # a signal handler or a finalizer may emit while its thread does
        self._working = threading.Lock()
        self._changed = threading.Condition()
        self._closing = threading.Event()
        self._queue: SimpleQueue[_Queued | None] = SimpleQueue()
        # Each is counted by one thread, or under `_taking`, and read by all.
        self._accepted = 0
        self._refused = 0
        self._taken_bytes = 0
        self._finished = 0
        self._finished_bytes = 0
        self._acknowledged = 0
        self._forwarded = 0
        self._trouble = ""
        self._put_seconds = 0.0
        self._give_up = float("inf")
        self._closed = False
        self._writer: threading.Thread | None = None
        self._issued: Issued | None = None
        self._forwarder: Forwarder | None = None

    def emit(self, payload: Payload, event_id: str | None = None) -> Receipt:
        """Take an event. Returns at once and never raises: a full queue or a closed emitter fails the receipt."""
        receipt = Receipt(event_id or new_id(), self)
        size = text_size(payload)
        with self._taking:
            reason = self._refusal(size)
            if reason:
                self._refused += 1
                receipt.settle(reason)
            else:
                self._accepted = sequence = self._accepted + 1
                self._taken_bytes += size
                if self._issued is not None:
                    self._issued.numbers[0] = sequence
                self._queue.put(_Queued(sequence, payload, receipt, time.time(), size))
        return receipt

    @property
    def counters(self) -> Mapping[str, int]:
        """Events accepted, acknowledged, failed and (with an outbox) forwarded, since the start of the process.

        `failed` counts those too that were refused, and so never accepted.
        """
        failed = self._finished - self._acknowledged + self._refused
        return {
            "accepted": self._accepted,
            "acknowledged": self._acknowledged,
            "failed": failed,
            "forwarded": self._forwarded,
        }

    @property
    def trouble(self) -> str:
        """Why events cannot be made durable or forwarded at the moment; empty when they can."""
        return self._trouble or (self._forwarder.stalled if self._forwarder is not None else "")

    def outbox_status(self) -> OutboxStatus | None:
        """What lies in the outbox, of all processes, and what killed ones lost. None without an outbox."""
        return self._outbox.status() if self._outbox is not None else None

    def flush(self, timeout: float) -> bool:
        """Wait until everything emitted before is in the log or has failed; False after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        accepted = self._accepted
        if not self._wait_for(lambda: self._finished >= accepted, timeout):
            return False
        while self._outbox is not None and self._outbox.waiting():
            if time.monotonic() >= deadline:
                return False
            self._forwarder_for(self._outbox).wake()
            time.sleep(0.01)
        return True

    def forward(self) -> None:
        """Start forwarding what an earlier process left in the outbox. `emit` starts it too."""
        if self._outbox is not None and self._outbox.left_over():
            self._forwarder_for(self._outbox).wake()

    def close(self, timeout: float = CLOSE_SECONDS) -> None:
        """Take no more, write what is queued, and forward what the log takes within `timeout` seconds.

        What stays in the outbox then is forwarded by another process, or after the next start.
        """
        deadline = time.monotonic() + timeout
        with self._taking:
            if not self._closed:
                self._closed = True
                self._give_up = deadline
                self._queue.put(None)
        self._closing.set()
        if self._writer is not None:
            self._writer.join(timeout)
        if self._outbox is None:
            return
        if self._writer is None or not self._writer.is_alive():
            self._outbox.close(self._accepted)
        if self._forwarder is not None:
            while self._outbox.waiting() and not self._forwarder.stalled and time.monotonic() < deadline:
                time.sleep(0.01)
            self._forwarder.stop(max(0.1, deadline - time.monotonic()))

    def _wait_for(self, done: Callable[[], bool], timeout: float | None) -> bool:
        with self._changed:
            return self._changed.wait_for(done, timeout)

    def _after_fork(self) -> None:
        # What was queued belongs to the parent, which writes it; its locks may be held by threads we do not have.
        if self._forwarder is not None:
            self._forwarder.abandon()
        if self._outbox is not None:
            self._outbox.abandon()
        closed = self._closed
        self._reset()
        self._closed = closed

    def _refusal(self, size: int) -> str:
        if self._closed:
            return "the emitter is closed"
        waiting = self._accepted - self._finished
        if waiting >= self._capacity:
            return self._full(f"{self._capacity} events")
        if waiting and self._taken_bytes - self._finished_bytes + size > self._capacity_bytes:
            return self._full(f"{self._capacity_bytes} bytes")
        if self._writer is None:
            self._issued = self._outbox.writer.issued if self._outbox is not None else None
            self._writer = threading.Thread(target=self._write_on, name="emitter", daemon=True)
            try:
                self._writer.start()
            except RuntimeError as error:
                self._writer = None
                return f"no thread can be started: {error}"
        return ""

    def _full(self, limit: str) -> str:
        return f"the queue is full ({limit})" + (f": {self._trouble}" if self._trouble else "")

    def _forwarder_for(self, outbox: Outbox) -> Forwarder:
        with self._taking:
            if self._forwarder is None:
                self._forwarder = Forwarder(outbox, self._events, self._count_forwarded)
            return self._forwarder

    def _count_forwarded(self, number: int) -> None:
        self._forwarded += number

    def _write_on(self) -> None:
        ended = False
        while not ended:
            group, ended = self._next_group()
            ready = [(queued, outgoing) for queued, outgoing in group if outgoing is not None]
            if self._outbox is not None:
                self._keep(self._outbox, ready, settled=group[-1][0].sequence if group else 0)
            else:
                for topic, part in groupby(sorted(ready, key=_topic), key=_topic):
                    self._append(topic, list(part))

    def _next_group(self) -> tuple[list[tuple[_Queued, Outgoing | None]], bool]:
        """Wait for an event, and take what is queued behind it; also whether the queue ended."""
        group: list[tuple[_Queued, Outgoing | None]] = []
        queued = self._queue.get()
        # While the disk is slower than half a window, groups grow with it: at most half of the time goes into syncs.
        until = time.monotonic() + max(self._window / 2, self._put_seconds)
        size = 0
        while queued is not None:
            group.append((queued, self._prepared(queued)))
            size += queued.size
            if size >= GROUP_BYTES or time.monotonic() >= until:
                return group, False
            try:
                queued = self._queue.get_nowait()
            except Empty:
                return group, False
        return group, True

    def _prepared(self, queued: _Queued) -> Outgoing | None:
        event_id = queued.receipt.event_id
        try:
            with self._working:
                masked = mask_payload(queued.payload, self._masker)
                taken = datetime.fromtimestamp(queued.time, UTC)
                record = encode_payload(masked, event_id, self._source, taken)
            topic = topic_of(masked)
            if len(record.value) > ALWAYS_SHORT or len(event_id) > ALWAYS_SHORT:
                check_appendable(topic, [record])
        except Exception as error:  # noqa: BLE001 - one strange payload must not end the thread that writes all others
            # The text of the error may quote the payload, which is not masked: only its kind may be logged.
            _log.warning("event %s could not be encoded: %s", event_id, type(error).__name__)
            self._settle([queued], f"it cannot be encoded: {error}")
            return None
        return Outgoing(event_id, topic, record)

    def _keep(self, outbox: Outbox, ready: Sequence[tuple[_Queued, Outgoing]], settled: int) -> None:
        """Make a group durable, in smaller parts while that fails, for as long as it fails."""
        rest, number, pause = ready, len(ready), RETRY_SECONDS[0]
        while True:
            part = rest[:number]
            last = settled if len(part) == len(rest) else part[-1][0].sequence
            began = time.monotonic()
            try:
                with self._working:
                    outbox.put([(queued.sequence, outgoing) for queued, outgoing in part], last)
            except QuillError as error:
                if not self._trouble:
                    _log.warning("events wait in memory: %s", error)
                self._trouble = str(error)
                if time.monotonic() + pause >= self._give_up:
                    self._settle([queued for queued, _ in rest], self._trouble)
                    return
                self._closing.wait(pause)
                if self._closing.is_set():
                    time.sleep(pause)
                number, pause = max(1, number // 2), min(2 * pause, RETRY_SECONDS[1])
                continue
            self._put_seconds = time.monotonic() - began
            self._settle([queued for queued, _ in part])
            rest = rest[len(part) :]
            if not rest:
                break
        self._trouble = ""
        self._forwarder_for(outbox).wake()

    def _append(self, topic: str, ready: Sequence[tuple[_Queued, Outgoing]]) -> None:
        reason = ""
        try:
            with self._working:
                self._events.append(topic, [outgoing.record for _, outgoing in ready])
        except QuillError as error:
            reason = str(error)
        self._settle([queued for queued, _ in ready], reason)

    def _settle(self, settled: Sequence[_Queued], reason: str = "") -> None:
        if reason:
            _log.warning("%d events were not kept", len(settled))
        for queued in settled:
            queued.receipt.settle(reason)
        with self._changed:
            self._finished += len(settled)
            self._finished_bytes += sum(queued.size for queued in settled)
            self._acknowledged += 0 if reason else len(settled)
            self._changed.notify_all()


def _topic(ready: tuple[_Queued, Outgoing]) -> str:
    return ready[1].topic


_EMITTERS: weakref.WeakSet[Emitter] = weakref.WeakSet()


def _close_all() -> None:
    for emitter in list(_EMITTERS):
        emitter.close()


def _forking() -> None:
    # RE2, SQLite and pydantic-core have locks of their own; the child waits for ever for one a writer held at the fork.
    _HELD.extend(each for each in list(_EMITTERS) if each._working.acquire(timeout=FORK_SECONDS))


def _has_forked() -> None:
    while _HELD:
        _HELD.pop()._working.release()


def _forked() -> None:
    _HELD.clear()
    for emitter in list(_EMITTERS):
        emitter._after_fork()


_HELD: list[Emitter] = []
"""Emitters whose writers stand still while this process forks."""
atexit.register(_close_all)
os.register_at_fork(before=_forking, after_in_parent=_has_forked, after_in_child=_forked)
