"""Masked events on their way to a log that may be away: kept in a file until the log has them.

All processes of an installation share one outbox, and whichever holds its lock forwards for all, oldest first. Before
a batch is sent the ends of its topics are noted; after a crash or an unclear answer the log is searched from there,
and what already arrived is not sent again. Only a broker that takes a record later than that can still double it.
"""

from __future__ import annotations

import fcntl
import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NamedTuple

from infra.errors import InputError, QuillError
from streams.embedded_records import pack_headers, unpack_headers
from streams.log import EventLog, Record
from streams.sqlite import SqliteFile

BATCH = 256
IDLE_SECONDS = 0.5
RETRY_SECONDS = (0.2, 10.0)
SCHEMA = """
CREATE TABLE IF NOT EXISTS waiting (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, event_id TEXT NOT NULL, topic TEXT NOT NULL,
    key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS attempt (last_seq INTEGER NOT NULL, ends TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rejected (
    event_id TEXT NOT NULL, topic TEXT NOT NULL, key TEXT NOT NULL, headers TEXT NOT NULL, value BLOB NOT NULL,
    reason TEXT NOT NULL);
"""
_log = logging.getLogger(__name__)


class Outgoing(NamedTuple):
    """A record and where it goes."""

    event_id: str
    topic: str
    record: Record


class Outbox:
    """The outbox in a folder. Safe for threads, processes and forks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = SqliteFile(folder / "outbox.db", SCHEMA, "the outbox")

    def put(self, outgoing: Sequence[Outgoing]) -> None:
        """Keep records; on disk when this returns. Raises `Unavailable`, and then none is kept."""
        with self._file.writing() as connection:
            connection.executemany(
                "INSERT INTO waiting (event_id, topic, key, headers, value) VALUES (?, ?, ?, ?, ?)",
                [
                    (event_id, topic, record.key, pack_headers(record.headers), record.value)
                    for event_id, topic, record in outgoing
                ],
            )

    def waiting(self) -> int:
        """Records that the log does not have yet; 0 when the outbox was never used."""
        return self._count("waiting")

    def rejected(self) -> int:
        """Records that the log refused for good; they stay in the file with the reason."""
        return self._count("rejected")

    def forward(self, log: EventLog) -> int:
        """Send the oldest batch and forget it; the number of records sent. Only for the holder of the lock.

        Raises `Unavailable` when the log cannot be reached; everything stays for the next call.
        """
        attempt = self._attempt()
        batch = self._oldest(attempt[0] if attempt else None)
        if not batch:
            return 0
        arrived: set[str] = set()
        if attempt:
            arrived = _arrived(log, attempt[1], {each.event_id for _, each in batch})
        else:
            topics = sorted({each.topic for _, each in batch})
            log.ensure_topics(topics)
            self._note(batch[-1][0], {topic: log.end_offsets(topic) for topic in topics})
        missing = [each for _, each in batch if each.event_id not in arrived]
        refused: list[tuple[Outgoing, str]] = []
        for topic, group in groupby(sorted(missing, key=lambda each: each.topic), key=lambda each: each.topic):
            refused += _send(log, topic, list(group))
        self._forget(batch[-1][0], refused)
        return len(batch) - len(refused)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def _count(self, table: str) -> int:
        if not self._file.path.exists():
            return 0
        with self._file.reading() as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def _oldest(self, last_seq: int | None) -> list[tuple[int, Outgoing]]:
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT seq, event_id, topic, key, headers, value FROM waiting"
                " WHERE seq <= coalesce(?, seq) ORDER BY seq LIMIT ?",
                (last_seq, BATCH),
            ).fetchall()
        return [
            (seq, Outgoing(event_id, topic, Record(key=key, value=value, headers=unpack_headers(headers))))
            for seq, event_id, topic, key, headers, value in rows
        ]

    def _attempt(self) -> tuple[int, dict[str, dict[str, int]]] | None:
        with self._file.reading() as connection:
            row = connection.execute("SELECT last_seq, ends FROM attempt").fetchone()
        return (row[0], json.loads(row[1])) if row else None

    def _note(self, last_seq: int, ends: Mapping[str, Mapping[int, int]]) -> None:
        with self._file.writing() as connection:
            connection.execute("INSERT INTO attempt VALUES (?, ?)", (last_seq, json.dumps(ends)))

    def _forget(self, last_seq: int, refused: Sequence[tuple[Outgoing, str]]) -> None:
        with self._file.writing() as connection:
            for each, reason in refused:
                _log.error("event %s was refused by the log: %s", each.event_id, reason)
                connection.execute(
                    "INSERT INTO rejected SELECT event_id, topic, key, headers, value, ? FROM waiting"
                    " WHERE event_id = ? AND seq <= ?",
                    (reason, each.event_id, last_seq),
                )
            connection.execute("DELETE FROM waiting WHERE seq <= ?", (last_seq,))
            connection.execute("DELETE FROM attempt")


class Forwarder:
    """A thread that forwards an outbox while the log answers, and waits for the lock while another process does."""

    def __init__(self, outbox: Outbox, log: EventLog, forwarded: Callable[[int], None]) -> None:
        self._outbox = outbox
        self._events = log
        self._forwarded = forwarded
        self._stop = threading.Event()
        self._work = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: BinaryIO | None = None
        self.stalled = False
        """The last attempt failed: waiting for the outbox to empty may take long."""

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
                try:
                    sent = self._outbox.forward(self._events) if self._has_lock() else 0
                except QuillError as error:
                    if not self.stalled:
                        _log.warning("events wait in the outbox: %s", error)
                    self.stalled = True
                    self._stop.wait(pause)
                    pause = min(2 * pause, RETRY_SECONDS[1])
                    continue
                self.stalled, pause = False, RETRY_SECONDS[0]
                if sent:
                    self._forwarded(sent)
                else:
                    self._work.wait(IDLE_SECONDS)
                    self._work.clear()
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
        return True


def _send(log: EventLog, topic: str, batch: Sequence[Outgoing]) -> list[tuple[Outgoing, str]]:
    """Append; records that the log refuses for good come back with the reason, so that they do not hold up others."""
    try:
        log.append(topic, [each.record for each in batch])
    except InputError as error:
        if len(batch) == 1:
            return [(batch[0], str(error))]
        return [refused for each in batch for refused in _send(log, topic, [each])]
    return []


def _arrived(log: EventLog, ends: Mapping[str, Mapping[str, int]], wanted: set[str]) -> set[str]:
    """Which of the wanted event ids stand in the log after the noted ends."""
    found: set[str] = set()
    for topic, partitions in ends.items():
        for partition, end in log.end_offsets(topic).items():
            offset = partitions.get(str(partition), 0)
            while offset < end and (page := log.read(topic, partition, offset)):
                found |= {dict(record.headers).get("ce_id", b"").decode("utf-8", "replace") for record in page}
                offset = page[-1].offset + 1
    return found & wanted
