"""A consumer group member that hands events to handlers: retries, dead letters, commit after handling.

Records of a partition are handled one after the other, so events with one key keep their order. A record whose handler
keeps failing, or that is no event at all, goes to `<topic>.dlq` with its bytes as they were and the reason; a record
whose handler raises `Unavailable` does not, because the fault lies elsewhere: it is tried until it works.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from infra.errors import Unavailable
from streams.codec import UndecodableEvent, decode
from streams.dead_letters import dead_letter_topic, letter_of
from streams.events import Event
from streams.log import EventLog, GroupReader, LostPartition, StoredRecord

Handler = Callable[[Event, StoredRecord], None]

BATCH = 16
"""Records per poll: few enough that even slow handlers poll, and so share partitions, every few minutes."""
POLL_SECONDS = 0.5
COMMIT_SECONDS = 1.0
BACKOFF_SECONDS = 0.1
MAX_BACKOFF_SECONDS = 30.0
_log = logging.getLogger(__name__)


class Consumer:
    """Member of `group` for the topics of `handlers`. A handler may see a record again: be idempotent by event id.

    A failing handler is called once and then up to `retries` times more, `backoff` seconds apart at first, doubling.
    """

    def __init__(
        self,
        log: EventLog,
        group: str,
        handlers: Mapping[str, Handler],
        *,
        retries: int = 3,
        backoff: float = BACKOFF_SECONDS,
    ) -> None:
        self._events = log
        self._group = group
        self._handlers = dict(handlers)
        self._retries = retries
        self._backoff = backoff

    def run(self, stop: threading.Event) -> None:
        """Handle records until `stop` is set; the record in hand is finished and committed first."""
        self._run(stop, lambda: False)

    def run_until(self, targets: Mapping[str, Mapping[int, int]], timeout: float) -> int:
        """Handle records until the group has committed up to `targets` (topic to partition to next offset).

        Returns the number of records that this member handled. Raises `Unavailable` after `timeout` seconds.
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
        self._events.ensure_topics([dead_letter_topic(topic) for topic in self._handlers])
        if done():
            return 0
        handled, pause = 0, self._backoff
        progress: dict[tuple[str, int], int] = {}
        with self._events.join(self._group, sorted(self._handlers)) as reader:
            while not stop.is_set():
                try:
                    batch = reader.poll(max_records=BATCH, timeout=POLL_SECONDS)
                    handled += self._handle_batch(reader, batch, progress, stop)
                    if done():
                        break
                    pause = self._backoff
                except Unavailable as error:
                    _log.warning("group %s waits: %s", self._group, error)
                    stop.wait(pause)
                    pause = min(2 * pause, MAX_BACKOFF_SECONDS)
        return handled

    def _reached(self, targets: Mapping[str, Mapping[int, int]]) -> bool:
        for topic, wanted in targets.items():
            committed = self._events.committed(self._group, topic)
            if any(committed.get(partition, 0) < offset for partition, offset in wanted.items()):
                return False
        return True

    def _handle_batch(
        self,
        reader: GroupReader,
        batch: Sequence[StoredRecord],
        progress: dict[tuple[str, int], int],
        stop: threading.Event,
    ) -> int:
        """Handle records and commit what was handled; the number of them. `progress` is what is not committed yet."""
        handled = 0
        last_commit = time.monotonic()
        for record in batch:
            if stop.is_set() or not self._handle(record, stop):
                break
            handled += 1
            progress[record.topic, record.partition] = record.offset + 1
            if time.monotonic() - last_commit > COMMIT_SECONDS:
                self._commit(reader, progress)
                last_commit = time.monotonic()
        self._commit(reader, progress)
        return handled

    def _commit(self, reader: GroupReader, progress: dict[tuple[str, int], int]) -> None:
        """Commit and clear `progress`; what the log cannot take now stays in it for the next time."""
        try:
            if progress:
                reader.commit(progress)
            progress.clear()
        except LostPartition:
            for name in list(progress):
                self._commit_one(reader, name, progress)
        except Unavailable as error:
            _log.warning("group %s commits later: %s", self._group, error)

    def _commit_one(self, reader: GroupReader, name: tuple[str, int], progress: dict[tuple[str, int], int]) -> None:
        try:
            reader.commit({name: progress[name]})
        except LostPartition as error:
            # Its new owner handles these records again, and recognises their ids.
            _log.warning("group %s: %s", self._group, error)
        except Unavailable as error:
            _log.warning("group %s commits later: %s", self._group, error)
            return
        del progress[name]

    def _handle(self, record: StoredRecord, stop: threading.Event) -> bool:
        """Handle a record or put it aside; False when `stop` came before either."""
        failed, pause = 0, self._backoff
        while True:
            try:
                self._handlers[record.topic](decode(record), record)
                return True
            except Unavailable as error:
                _log.warning("%s/%d/%d waits: %s", record.topic, record.partition, record.offset, error)
            except UndecodableEvent as error:
                return self._put_aside(record, error, failed + 1, stop)
            except Exception as error:  # noqa: BLE001 - whatever a handler raises, its record must not stop the others
                failed += 1
                if failed > self._retries:
                    return self._put_aside(record, error, failed, stop)
            if stop.wait(pause):
                return False
            pause = min(2 * pause, MAX_BACKOFF_SECONDS)

    def _put_aside(self, record: StoredRecord, error: Exception, attempts: int, stop: threading.Event) -> bool:
        _log.error("%s/%d/%d goes to the dead letters: %s", record.topic, record.partition, record.offset, error)
        letter = letter_of(record, error, attempts)
        pause = self._backoff
        while True:
            try:
                self._events.append(dead_letter_topic(record.topic), [letter])
                return True
            except Unavailable as unavailable:
                _log.warning("the dead letter waits: %s", unavailable)
            if stop.wait(pause):
                return False
            pause = min(2 * pause, MAX_BACKOFF_SECONDS)
