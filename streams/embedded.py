"""The event log without a service: one SQLite file that several processes append to and read at once.

A record is durable when `append` returns: WAL with synchronous=FULL syncs the file at each commit. SQLite lets one
writer in at a time, so appends of several processes queue up, and those of threads of one process go together.
`benchmarks/embedded_log.py` measures it beside Kafka.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time as clock
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from infra.errors import QuillError
from streams.embedded_cleaning import Cleaner
from streams.embedded_group import EmbeddedReader
from streams.embedded_records import EPOCH, SCHEMA, fetch, pack_headers
from streams.log import (
    MAX_POLL_INTERVAL,
    SESSION_TIMEOUT,
    GroupReader,
    Record,
    StoredRecord,
    check_appendable,
    partitions_of,
)
from streams.sqlite import SqliteFile

GROUP_BYTES = 16 << 20
"""Appends that wait for each other are written in transactions of about this size."""


@dataclass(eq=False)
class _Append:
    """One call of `append`, waiting for its turn."""

    topic: str
    records: Sequence[Record]
    places: list[tuple[int, int]] | None = None
    error: QuillError | None = None


class EmbeddedLog:
    """`EventLog` in the SQLite file at `path`; `partitions` is for topics it creates. Safe for threads and forks.

    Records are kept for `streams.retention.retention(topic, retention_days)`; compacted topics are compacted. Whoever
    appends or is member of a group removes the rest, a little at a time.
    """

    def __init__(
        self,
        path: Path,
        *,
        partitions: int = 3,
        retention_days: float = 0.0,
        session_timeout: float = SESSION_TIMEOUT,
        max_poll_interval: float = MAX_POLL_INTERVAL,
    ) -> None:
        self._file = SqliteFile(path, SCHEMA, "the event log")
        self._cleaner = Cleaner(self._file, retention_days)
        self._new_partitions = partitions
        self._session_timeout = session_timeout
        self._max_poll_interval = max_poll_interval
        # Keyed by process: another thread may have held the lock when the parent forked.
        self._waiting: dict[int, tuple[deque[_Append], threading.Lock]] = {}

    def ensure_topics(self, topics: Sequence[str]) -> None:
        """See `EventLog`."""
        for topic in topics:
            check_appendable(topic, [])
        if all(self.partitions(topic) for topic in topics):
            return
        with self._file.writing() as connection:
            for topic in topics:
                self._create(connection, topic)

    def append(self, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """See `EventLog`. All or none of the records are appended."""
        check_appendable(topic, records)
        if not records:
            return []
        mine = _Append(topic, records)
        waiting, turn = self._waiting.setdefault(os.getpid(), (deque(), threading.Lock()))
        waiting.append(mine)
        with turn:
            while mine.places is None and mine.error is None:
                self._write(waiting, mine)
        if mine.places is None:
            raise mine.error or AssertionError
        self._cleaner.step_if_due()
        return mine.places

    def read(self, topic: str, partition: int, offset: int, *, limit: int = 1000) -> list[StoredRecord]:
        """See `EventLog`."""
        with self._file.reading() as connection:
            tail = _tails(connection, topic).get(partition)
            return fetch(connection, tail[0], topic, partition, offset, limit=limit) if tail else []

    def partitions(self, topic: str) -> int:
        """See `EventLog`."""
        return len(self.end_offsets(topic))

    def end_offsets(self, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        with self._file.reading() as connection:
            return {number: end for number, (_, end, _) in _tails(connection, topic).items()}

    def offsets_at(self, topic: str, time: datetime) -> dict[int, int]:
        """See `EventLog`; exact to the microsecond."""
        wanted = (time - EPOCH) // timedelta(microseconds=1)
        query = 'SELECT "offset" FROM records WHERE partition = ? AND time >= ? ORDER BY time, rowid LIMIT 1'
        found: dict[int, int] = {}
        with self._file.reading() as connection:
            for number, (key, end, _) in _tails(connection, topic).items():
                row = connection.execute(query, (key, wanted)).fetchone()
                found[number] = row[0] if row else end
        return found

    def committed(self, group: str, topic: str) -> dict[int, int]:
        """See `EventLog`."""
        with self._file.reading() as connection:
            rows = connection.execute(
                "SELECT number, max(coalesce(positions.next_offset, 0), coalesce("
                '(SELECT min("offset") FROM records WHERE partition = partitions.id), partitions.next_offset))'
                " FROM partitions LEFT JOIN positions"
                " ON positions.partition = partitions.id AND consumer_group = ? WHERE topic = ? ORDER BY number",
                (group, topic),
            )
            return dict(rows.fetchall())

    def count(self, topic: str, partition: int, start: int, end: int) -> int:
        """See `EventLog`; exact."""
        query = 'SELECT count(*) FROM records WHERE partition = ? AND "offset" >= ? AND "offset" < ?'
        with self._file.reading() as connection:
            tail = _tails(connection, topic).get(partition)
            return int(connection.execute(query, (tail[0], start, end)).fetchone()[0]) if tail else 0

    def join(self, group: str, topics: Sequence[str]) -> GroupReader:
        """See `EventLog`."""
        self.ensure_topics(topics)
        reader = EmbeddedReader(
            self._file,
            group,
            topics,
            append=self._append,
            clean=self._cleaner.step_if_due,
            session_timeout=self._session_timeout,
            max_poll_interval=self._max_poll_interval,
        )
        reader.start()
        return reader

    def clean(self) -> bool:
        """Remove some of what need not be kept, now; True when there may be more. It is done without being asked."""
        return self._cleaner.step()

    def close(self) -> None:
        """See `EventLog`."""
        self._file.close()

    def _write(self, waiting: deque[_Append], mine: _Append) -> None:
        """Write what waits in one transaction: threads that append at the same time share one wait for the disk."""
        group: list[_Append] = []
        size = 0
        while waiting and size < GROUP_BYTES:
            group.append(waiting.popleft())
            size += sum(len(record.value) for record in group[-1].records)
        try:
            with self._file.writing() as connection:
                placed = [self._append(connection, each.topic, each.records) for each in group]
        except QuillError as error:
            for each in group:
                each.error = error
        except BaseException:
            # An interrupt, say, concerns this thread alone: the others try for themselves.
            waiting.extendleft(reversed([each for each in group if each is not mine]))
            raise
        else:
            for each, places in zip(group, placed, strict=True):
                each.places = places

    def _append(self, connection: sqlite3.Connection, topic: str, records: Sequence[Record]) -> list[tuple[int, int]]:
        """`append` inside a write transaction."""
        tails = _tails(connection, topic) or self._create(connection, topic)
        now = clock.time_ns() // 1000
        # Times never fall inside a partition, or reading from a time would skip what came after a clock step.
        heads = {number: (key, max(now, last)) for number, (key, _, last) in tails.items()}
        ends = {number: end for number, (_, end, _) in tails.items()}
        places: list[tuple[int, int]] = []
        rows: list[tuple[int, int, int, str, bytes | str, bytes]] = []
        numbers = partitions_of([record.key for record in records], len(tails))
        for record, number in zip(records, numbers, strict=True):
            offset = ends[number]
            ends[number] = offset + 1
            key, time = heads[number]
            places.append((number, offset))
            rows.append((key, offset, time, record.key, pack_headers(record.headers), record.value))
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)", rows)
        connection.executemany(
            "UPDATE partitions SET next_offset = ?, last_time = ? WHERE id = ?",
            [(ends[number], heads[number][1], heads[number][0]) for number in {number for number, _ in places}],
        )
        return places

    def _create(self, connection: sqlite3.Connection, topic: str) -> dict[int, tuple[int, int, int]]:
        if not _tails(connection, topic):
            connection.executemany(
                "INSERT INTO partitions (topic, number) VALUES (?, ?)",
                [(topic, number) for number in range(self._new_partitions)],
            )
        return _tails(connection, topic)


def _tails(connection: sqlite3.Connection, topic: str) -> dict[int, tuple[int, int, int]]:
    """Number of each partition of a topic to (key, next offset, time of the last record in microseconds)."""
    rows = connection.execute(
        "SELECT number, id, next_offset, last_time FROM partitions WHERE topic = ? ORDER BY number", (topic,)
    )
    return {number: (key, end, last) for number, key, end, last in rows}
