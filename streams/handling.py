"""Handing records to handlers, in batches that are split when they fail, and where a record goes that keeps failing.

A record of which an earlier one with the same key waits for a retry follows it there. A handler's `Unavailable` is
never the record's fault: the batch waits until it works. `InputError` is: no retry will mend the record.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from infra.errors import InputError, Unavailable
from streams.codec import UndecodableEvent, decode
from streams.dead_letters import dead_letter_topic, letter_of, reason_of
from streams.events import Event
from streams.log import EventLog, Record, StoredRecord
from streams.retry import Delivery, Partition, Retries

BatchHandler = Callable[[Sequence[tuple[Event, StoredRecord]]], None]

BATCH = 500
BATCH_BYTES = 8 << 20
"""Values handed to a handler at once; a single longer one goes alone."""
MAX_BACKOFF_SECONDS = 5.0
"""Longest pause before what was away is asked again: what waits for it is soon under way when it is back."""
_log = logging.getLogger(__name__)


class Batched(NamedTuple):
    """A handler of up to `size` events at once, in the order of their partitions.

    When it raises, its events come again in halves, down to the one that is at fault: let a call be one transaction.
    """

    handle: BatchHandler
    size: int = BATCH


class Outgoing(NamedTuple):
    """A record to append before the one it came from counts as handled."""

    topic: str
    record: Record
    delivery: Delivery


Pair = tuple[Event, Delivery]


class Handling:
    """Handles deliveries of one member, one call at a time."""

    def __init__(
        self, log: EventLog, handlers: Mapping[str, Batched], waiting: Retries, *, retries: int, backoff: float
    ) -> None:
        self._events = log
        self._handlers = handlers
        self._waiting = waiting
        self._retries = retries
        self._backoff = backoff
        self._outgoing: list[Outgoing] = []
        self.counters: Counter[str] = Counter()

    def runs(self, deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
        """Neighbours of one topic, no more than its handler takes at once."""
        run: list[Delivery] = []
        size = 0
        for delivery in deliveries:
            topic = delivery.record.topic
            size += len(delivery.record.value)
            other = run and run[0].record.topic != topic
            if run and (other or len(run) >= self._handlers[topic].size or size > BATCH_BYTES):
                yield run
                run, size = [], len(delivery.record.value)
            run.append(delivery)
        if run:
            yield run

    def handle(self, run: Sequence[Delivery], stop: threading.Event) -> bool:
        """Handle a run or put aside what fails; False when `stop` came before all of it was either."""
        self._outgoing = []
        pairs: list[Pair] = []
        for delivery in run:
            try:
                pairs.append((decode(delivery.record), delivery))
            except UndecodableEvent as error:
                self._put_aside(delivery, error)
        return self._try(pairs, stop) and self._send_off(stop)

    def _try(self, pairs: Sequence[Pair], stop: threading.Event) -> bool:
        ready = self._ready(pairs)
        failed, pause = 0, self._backoff
        while ready:
            try:
                self._call(ready)
                return True
            except Unavailable as error:
                _log.warning("%s waits: %s", _name(ready[0][1]), error)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises, its record must not stop the others
                if len(ready) > 1:
                    middle = len(ready) // 2
                    return self._try(ready[:middle], stop) and self._try(ready[middle:], stop)
                failed += 1
                if self._has_failed(ready[0][1], error, failed):
                    return True
            if stop.wait(pause):
                return False
            pause = min(2 * pause, MAX_BACKOFF_SECONDS)
        return True

    def _call(self, ready: Sequence[Pair]) -> None:
        handler = self._handlers[ready[0][1].record.topic]
        handler.handle([(event, delivery.record) for event, delivery in ready])
        for _, delivery in ready:
            self._done(delivery)
        self.counters["handled"] += len(ready)

    def _ready(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those before which nothing of their key waits; the others wait too."""
        ready: list[Pair] = []
        passed: Counter[tuple[Partition, str]] = Counter()
        now = time.time()
        for event, delivery in pairs:
            room = self._waiting.room(delivery)
            name = delivery.partition, delivery.record.key
            line = room.of_key(delivery.record.key) if room is not None else ()
            if not line or (passed[name] < len(line) and line[passed[name]] is delivery and delivery.due <= now):
                passed[name] += 1
                ready.append((event, delivery))
            elif room is not None and not room.holds(delivery):
                self._wait(delivery)
        return ready

    def _has_failed(self, delivery: Delivery, error: Exception, failed: int) -> bool:
        """A handler failed on it once more; False when it is to be tried again at once."""
        hopeless = isinstance(error, InputError)
        if failed <= (0 if delivery.place or hopeless else self._retries):
            return False
        delivery.failed += failed
        delivery.error = reason_of(error)
        delay = None if hopeless else self._waiting.delay(delivery)
        if delay is None:
            self._put_aside(delivery, error)
            return True
        _log.warning("%s is tried again in %g s: %s", _name(delivery), delay, error)
        delivery.stage += 1
        delivery.due = time.time() + delay
        self._wait(delivery)
        self.counters["put_off"] += 1
        return True

    def _wait(self, delivery: Delivery) -> None:
        room = self._waiting.room(delivery)
        if room is not None and not room.holds(delivery):
            room.add(delivery)
        self._outgoing.append(Outgoing(*self._waiting.to_record(delivery), delivery))

    def _put_aside(self, delivery: Delivery, error: Exception) -> None:
        letter = letter_of(delivery.record, error, max(1, delivery.failed))
        delivery.error = str(error)
        self._outgoing.append(Outgoing(dead_letter_topic(delivery.record.topic), letter, delivery))

    def _done(self, delivery: Delivery) -> None:
        if delivery.place and (room := self._waiting.room(delivery)) is not None:
            room.remove(delivery)
            self.counters["retried"] += 1

    def _send_off(self, stop: threading.Event) -> bool:
        """Make durable what waits or is put aside; False when `stop` came first."""
        pause = self._backoff
        while self._outgoing:
            topic = self._outgoing[0].topic
            try:
                self._append(topic, [each for each in self._outgoing if each.topic == topic])
            except Unavailable as error:
                _log.warning("%d records on their way to %s wait: %s", len(self._outgoing), topic, error)
                if stop.wait(pause):
                    return False
                pause = min(2 * pause, MAX_BACKOFF_SECONDS)
        return True

    def _append(self, topic: str, group: Sequence[Outgoing]) -> None:
        places = self._events.append(topic, [each.record for each in group])
        if _is_letter(group[0]):
            # One line for all: poison comes in floods, and each letter tells its own reason.
            first = group[0].delivery
            _log.error("%d records went to %s, the first was %s: %s", len(group), topic, _name(first), first.error)
        for outgoing, place in zip(group, places, strict=True):
            self._appended(outgoing, place)
        self._outgoing = [each for each in self._outgoing if each.topic != topic]

    def _appended(self, outgoing: Outgoing, place: tuple[int, int]) -> None:
        delivery = outgoing.delivery
        if not _is_letter(outgoing):
            self._waiting.placed(delivery, place)
            return
        self.counters["dead"] += 1
        if room := self._waiting.room(delivery):
            room.remove(delivery)


def _is_letter(outgoing: Outgoing) -> bool:
    return outgoing.topic == dead_letter_topic(outgoing.delivery.record.topic)


def _name(delivery: Delivery) -> str:
    return f"{delivery.record.topic}/{delivery.record.partition}/{delivery.record.offset}"
