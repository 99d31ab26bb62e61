"""A process with one group member that stores what it gets, and joins, leaves and hangs on command.

    python consumer_member.py HOME [BOOTSTRAP]

Commands, one a line: join, leave, hang (after the next batch is stored, before it is committed), go on. Answers, one
JSON object a line: joined, left, hung, rejected (a commit of a partition that is another's by now); at the end of
stdin, stored (events that were new to the store when this process put them there) and handled.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from infra.settings import LogSettings, Settings
from store.opening import open_store
from streams.consumer import DELAYS, Batched, Consumer
from streams.embedded import EmbeddedLog
from streams.events import LLM_INTERACTIONS, Event
from streams.kafka import KafkaLog
from streams.log import EventLog, LostPartition, StoredRecord

GROUP = "members"
SESSION_SECONDS = 1.5
BATCH = 20


class Rejections(logging.Handler):
    """Tells of each commit that the log refused."""

    def emit(self, record: logging.LogRecord) -> None:
        """Called for each warning of the consumer."""
        if isinstance(record.args, tuple) and any(isinstance(each, LostPartition) for each in record.args):
            say(rejected=1)


class Member:
    """The store behind a consumer that can be told to hang."""

    def __init__(self, home: Path, log: EventLog) -> None:
        self._store = open_store(Settings(home=home))
        self._log = log
        self._hang, self._go_on = threading.Event(), threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.stored = self.handled = 0

    def handle(self, events: Sequence[tuple[Event, StoredRecord]]) -> None:
        """Store a batch, and hang if that was asked for."""
        self.stored += self._store.interactions.put_many([event for event, _ in events])
        self.handled += len(events)
        if self._hang.is_set():
            self._hang.clear()
            say(hung=len(events))
            self._go_on.wait()
            self._go_on.clear()

    def obey(self, command: str) -> None:
        """Do what a line says."""
        if command == "join":
            self._stop = threading.Event()
            consumer = Consumer(self._log, GROUP, {LLM_INTERACTIONS: Batched(self.handle, BATCH)}, delays=DELAYS)
            self._thread = threading.Thread(target=consumer.run, args=(self._stop,))
            self._thread.start()
            say(joined=1)
        elif command == "leave" and self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None
            say(left=1)
        elif command == "hang":
            self._hang.set()
        elif command == "go on":
            self._go_on.set()


def say(**what: int) -> None:
    """One line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def main(home: str, bootstrap: str = "") -> None:
    """Obey until stdin ends, then leave."""
    logging.getLogger("streams.consumer").addHandler(Rejections())
    log: EventLog
    if bootstrap:
        log = KafkaLog(LogSettings(bootstrap_servers=bootstrap), session_timeout=SESSION_SECONDS)
    else:
        log = EmbeddedLog(Path(home) / "log.db", session_timeout=SESSION_SECONDS)
    member = Member(Path(home), log)
    for line in sys.stdin:
        member.obey(line.strip())
    member.obey("leave")
    say(stored=member.stored, handled=member.handled)
    log.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
