"""A consumer group member that hands events to handlers: retries, dead letters, commit after handling.

Records of a partition are handled one after the other, so events with one key keep their order. A record whose handler
keeps failing waits in the group's retry topic, where it holds up only its own key; after the last retry, or when it is
no event at all, it goes to `<topic>.dlq` with its bytes as they were and the reason. A record whose handler raises
`Unavailable` does neither, because the fault lies elsewhere: it is tried until it works.

Scaling out is starting another process. In flight is at most one poll, and what waits for a retry.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from infra.errors import Unavailable
from streams.dead_letters import dead_letter_topic
from streams.events import Event
from streams.handling import MAX_BACKOFF_SECONDS, Batched, Handling
from streams.log import EventLog, GroupReader, LostPartition, StoredRecord
from streams.retry import DELAYS, Delivery, Retries

__all__ = ["DELAYS", "Batched", "Consumer", "Handler"]

Handler = Callable[[Event, StoredRecord], None]

POLL = 16
"""Records per poll for handlers of single events: few enough that even slow ones poll every few minutes."""
POLL_BYTES = 32 << 20
POLL_SECONDS = 0.5
LEAST_POLL_SECONDS = 0.05
COMMIT_SECONDS = 1.0
BACKOFF_SECONDS = 0.02
_log = logging.getLogger(__name__)


class Consumer:
    """Member of `group` for the topics of `handlers`. A handler may see a record again: be idempotent by event id.

    A failing handler is called once and then up to `retries` times more, `backoff` seconds apart at first, doubling.
    Then the record waits in the retry topic for each of the `delays` (seconds) in turn and is tried once after each.
    Without delays it goes to the dead letters at once.
    """

    def __init__(
        self,
        log: EventLog,
        group: str,
        handlers: Mapping[str, Handler | Batched],
        *,
        retries: int = 3,
        backoff: float = BACKOFF_SECONDS,
        delays: Sequence[float] = (),
    ) -> None:
        self._events = log
        self._group = group
        self._handlers = {topic: _batched(handler) for topic, handler in handlers.items()}
        self._limit = min(max(POLL, handler.size) for handler in self._handlers.values())
        self._backoff = backoff
        self._retries = retries
        self._delays = delays
        self._counters: Counter[str] = Counter()
        self._waiting: Retries | None = None

    @property
    def counters(self) -> Mapping[str, int]:
        """Records handled, put off (to be tried again later), retried with success and dead, since the start; and
        how many wait for a retry here now."""
        counted = {name: self._counters[name] for name in ("handled", "put_off", "retried", "dead")}
        return counted | {"waiting": self._waiting.waiting() if self._waiting else 0}

    def run(self, stop: threading.Event) -> None:
        """Handle records until `stop` is set; what is in hand is finished and committed first."""
        self._run(stop, lambda: False)

    def run_until(self, targets: Mapping[str, Mapping[int, int]], timeout: float) -> int:
        """Handle records until the group has committed up to `targets` (topic to partition to next offset).

        What is put off then waits for the group's next member. Returns the number of records that this member
        handled. Raises `Unavailable` after `timeout` seconds.
        """
        stop = threading.Event()
        timer = threading.Timer(timeout, stop.set)
        timer.daemon = True
        timer.start()
        try:
            handled = self._run(stop, lambda: self._reached(targets))
        finally:
            timer.cancel()
        if not self._reached(targets):
            committed = {topic: self._events.committed(self._group, topic) for topic in targets}
            raise Unavailable(
                f"group {self._group} did not reach its target in {timeout:.0f} s",
                seen=committed,
                rule=f"target {dict(targets)}",
            )
        return handled

    def _run(self, stop: threading.Event, done: Callable[[], bool]) -> int:
        waiting = Retries(self._events, self._group, self._handlers, self._delays)
        handling = Handling(self._events, self._handlers, waiting, retries=self._retries, backoff=self._backoff)
        handling.counters = self._counters
        self._waiting = waiting
        self._events.ensure_topics([dead_letter_topic(topic) for topic in self._handlers])
        if done():
            return 0
        pause = self._backoff
        with self._events.join(self._group, sorted(self._handlers)) as reader:
            waiting.open()
            member = _Member(self._group, reader, waiting, handling)
            while not stop.is_set():
                try:
                    member.turn(self._limit, stop)
                    if done():
                        break
                    pause = self._backoff
                except Unavailable as error:
                    _log.warning("group %s waits: %s", self._group, error)
                    stop.wait(pause)
                    pause = min(2 * pause, MAX_BACKOFF_SECONDS)
        return member.handled

    def _reached(self, targets: Mapping[str, Mapping[int, int]]) -> bool:
        for topic, wanted in targets.items():
            committed = self._events.committed(self._group, topic)
            if any(committed.get(partition, 0) < offset for partition, offset in wanted.items()):
                return False
        return True


class _Member:
    """One membership: what was polled, and how far it is handled."""

    def __init__(self, group: str, reader: GroupReader, waiting: Retries, handling: Handling) -> None:
        self._group = group
        self._reader = reader
        self._waiting = waiting
        self._handling = handling
        self._polled: list[Delivery] = []
        self._progress: dict[tuple[str, int], int] = {}
        self._asked = POLL
        self.handled = 0

    def turn(self, limit: int, stop: threading.Event) -> None:
        """Poll, handle what came and what is due, and commit. What `Unavailable` interrupts is kept for the next."""
        if not self._polled:
            self._polled = [Delivery(record) for record in self._poll(limit)]
        self._waiting.own(self._reader.assignment())
        self._handle_polled(stop)
        self._handle_due(limit, stop)
        self._commit()

    def _poll(self, limit: int) -> list[StoredRecord]:
        """Records of `POLL_BYTES`, twice that at most once their length is known: it begins with few records, and asks
        for fewer after long ones."""
        self._asked = min(self._asked, limit)
        # Never without any patience: on Kafka a member that only looks in does not get through a rebalance.
        timeout = max(LEAST_POLL_SECONDS, self._waiting.seconds(POLL_SECONDS))
        records = self._reader.poll(max_records=self._asked, timeout=timeout)
        size = sum(len(record.value) for record in records)
        if size > POLL_BYTES:
            self._asked = max(1, self._asked * POLL_BYTES // size)
        elif len(records) == self._asked:
            self._asked *= 2
        return records

    def _handle_polled(self, stop: threading.Event) -> None:
        began = time.monotonic()
        for run in list(self._handling.runs(self._polled)):
            if any(self._waiting.full(delivery.partition) for delivery in run):
                # Back-pressure: nothing more is read before some of what waits is done.
                stop.wait(self._waiting.seconds(POLL_SECONDS))
                break
            if stop.is_set() or not self._handling.handle(run, stop):
                break
            self.handled += len(run)
            self._progress.update((each.partition, each.record.offset + 1) for each in run)
            del self._polled[: len(run)]
            if time.monotonic() - began > COMMIT_SECONDS:
                break  # the rest follows when this is committed

    def _handle_due(self, limit: int, stop: threading.Event) -> None:
        began = time.monotonic()
        while due := self._waiting.due(limit):
            for run in self._handling.runs(due):
                if stop.is_set() or not self._handling.handle(run, stop):
                    return
            if time.monotonic() - began > COMMIT_SECONDS:
                return

    def _commit(self) -> None:
        """Commit what was handled; what the log cannot take now is committed the next time."""
        offsets = {**self._progress, **self._waiting.positions()}
        try:
            if offsets:
                self._reader.commit(offsets)
            self._committed(offsets)
        except LostPartition:
            for name, offset in offsets.items():
                self._commit_one(name, offset)
        except Unavailable as error:
            _log.warning("group %s commits later: %s", self._group, error)

    def _commit_one(self, name: tuple[str, int], offset: int) -> None:
        try:
            self._reader.commit({name: offset})
        except LostPartition as error:
            # Its new owner handles these records again, and recognises their ids.
            _log.warning("group %s: %s", self._group, error)
            self._progress.pop(name, None)
            self._polled = [each for each in self._polled if each.partition != name]
            self._waiting.forget(name)
        except Unavailable as error:
            _log.warning("group %s commits later: %s", self._group, error)
        else:
            self._committed({name: offset})

    def _committed(self, offsets: Mapping[tuple[str, int], int]) -> None:
        self._waiting.committed(offsets)
        for name in offsets:
            self._progress.pop(name, None)


def _batched(handler: Handler | Batched) -> Batched:
    if isinstance(handler, Batched):
        return handler

    def handle(events: Sequence[tuple[Event, StoredRecord]]) -> None:
        for event, record in events:
            handler(event, record)

    return Batched(handle, 1)
