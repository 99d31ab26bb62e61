"""Retention and compaction of the embedded log, in steps that hold the write lock for a moment each.

Offsets are never used again, and the last record of a compacted partition always stays: a reader that comes late goes
on at the first record that is left, and the end of what is left is the end of the partition. What to remove is found
while others write; removing it is one transaction, which a kill leaves done or not begun.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta

from infra.errors import QuillError
from streams.events import COMPACTED
from streams.retention import SUPERSEDED_FOR, TOMBSTONE_FOR, retention
from streams.sqlite import SqliteFile

INTERVAL_SECONDS = 30.0
PAUSE_SECONDS = 0.2
"""Between two steps of a process while there is more to do."""
STEP_RECORDS = 1000
STEP_BYTES = 8 << 20
"""Records of one step, and their length, but for the one that passes it."""
STEP_PAGES = 1000
FREE_SHARE = 0.25
"""Free pages up to this share of the file are left for the records to come."""
_log = logging.getLogger(__name__)


@dataclass
class _Compaction:
    """A stretch of a partition whose records are the newest of their keys, as far as it goes."""

    partition: int
    start: int
    end: int
    newest: dict[str, tuple[int, int | None]] = field(default_factory=dict)
    """Key to the offset of its last record, and the time of that one when it has no value."""
    superseded: list[int] = field(default_factory=list)


@dataclass
class _Plan:
    """What one step does."""

    records: int = STEP_RECORDS
    bytes: int = STEP_BYTES
    expired: list[tuple[int, int]] = field(default_factory=list)
    """Partition, and the last offset to delete."""
    compactions: list[_Compaction] = field(default_factory=list)
    tombstones: list[tuple[int, str, int]] = field(default_factory=list)
    """Partition, key and offset."""

    @property
    def full(self) -> bool:
        """Whether the step should end here."""
        return self.records <= 0 or self.bytes <= 0

    @property
    def empty(self) -> bool:
        """Whether there is nothing to do."""
        return not (self.expired or self.compactions or self.tombstones)


class Cleaner:
    """Cleans the log in `file`, whose records are kept for `retention(topic, days)`. Processes may do it at once."""

    def __init__(self, file: SqliteFile, days: float) -> None:
        self._file = file
        self._days = days
        self._due = time.monotonic() + PAUSE_SECONDS
        self._removed = False

    def step_if_due(self) -> None:
        """Take the next step when it is time for it. A failure is logged: what called this has done its own work."""
        if time.monotonic() < self._due:
            return
        self._due = time.monotonic() + INTERVAL_SECONDS  # other threads go by
        try:
            if self.step():
                self._due = time.monotonic() + PAUSE_SECONDS
        except QuillError as error:
            _log.warning("the event log is cleaned later: %s", error)

    def step(self) -> bool:
        """Remove some of what need not be kept, and return space to the disk; True when there may be more to do."""
        with self._file.reading() as connection:
            plan = _plan(connection, self._days, time.time_ns() // 1000)
            pages = _pages_to_return(connection)
        if plan.empty and not pages:
            # Only now: what was removed is still in the WAL, readable, until it is cut.
            self._removed = self._removed and not self._file.checkpoint()
            return False
        with self._file.writing() as connection:
            _carry_out(connection, plan)
            if pages:
                connection.execute(f"PRAGMA incremental_vacuum({min(pages, STEP_PAGES)})").fetchall()
        self._removed = True
        return True


def _plan(connection: sqlite3.Connection, days: float, now: int) -> _Plan:
    plan = _Plan()
    partitions = connection.execute("SELECT id, topic FROM partitions ORDER BY id").fetchall()
    for partition, topic in partitions:
        kept = retention(topic, days)
        if kept is not None:
            _expire(connection, plan, partition, now - _microseconds(kept))
        elif topic in COMPACTED:
            _compact(connection, plan, partition, now - _microseconds(SUPERSEDED_FOR))
            _bury(connection, plan, partition, now - _microseconds(TOMBSTONE_FOR))
        if plan.full:
            break
    return plan


def _expire(connection: sqlite3.Connection, plan: _Plan, partition: int, before: int) -> None:
    rows = connection.execute(
        'SELECT "offset", length(value) FROM records WHERE partition = ? AND time < ? ORDER BY time, rowid',
        (partition, before),
    )
    last = None
    for offset, size in rows:
        last = offset
        if _counted(plan, size):
            break
    if last is not None:
        plan.expired.append((partition, last))


def _compact(connection: sqlite3.Connection, plan: _Plan, partition: int, before: int) -> None:
    row = connection.execute("SELECT next_offset FROM compacted WHERE partition = ?", (partition,)).fetchone()
    found = _Compaction(partition, row[0] if row else 0, 0)
    for offset, moment, key, size in _from(connection, partition, found.start):
        if moment > before:
            break
        if key in found.newest:
            found.superseded.append(found.newest[key][0])
        found.newest[key] = (offset, None if size else moment)
        found.end = offset + 1
        if _counted(plan, size):
            break
    if found.newest:
        plan.compactions.append(found)


def _from(connection: sqlite3.Connection, partition: int, offset: int) -> Iterator[tuple[int, int, str, int]]:
    # The length of a value is known without reading it.
    return connection.execute(
        'SELECT "offset", time, key, length(value) FROM records WHERE partition = ? AND "offset" >= ?'
        ' ORDER BY "offset"',
        (partition, offset),
    )


def _bury(connection: sqlite3.Connection, plan: _Plan, partition: int, before: int) -> None:
    rows = connection.execute(
        'SELECT newest.partition, key, "offset" FROM newest JOIN partitions ON partitions.id = newest.partition'
        ' WHERE newest.partition = ? AND tombstone < ? AND "offset" < next_offset - 1 LIMIT ?',
        (partition, before, max(0, plan.records)),
    )
    found = rows.fetchall()
    plan.tombstones += found
    plan.records -= len(found)


def _counted(plan: _Plan, size: int) -> bool:
    plan.records -= 1
    plan.bytes -= size
    return plan.full


def _carry_out(connection: sqlite3.Connection, plan: _Plan) -> None:
    delete = 'DELETE FROM records WHERE partition = ? AND "offset" '
    connection.executemany(f"{delete} <= ?", plan.expired)
    for each in plan.compactions:
        _carry_out_compaction(connection, each)
    for partition, key, offset in plan.tombstones:
        same = 'DELETE FROM newest WHERE partition = ? AND key = ? AND "offset" = ?'
        if connection.execute(same, (partition, key, offset)).rowcount:
            connection.execute(f"{delete} = ?", (partition, offset))


def _carry_out_compaction(connection: sqlite3.Connection, found: _Compaction) -> None:
    claimed = connection.execute(
        "INSERT INTO compacted VALUES (?1, ?3) ON CONFLICT DO UPDATE SET next_offset = ?3 WHERE next_offset = ?2",
        (found.partition, found.start, found.end),
    )
    if not claimed.rowcount:
        return  # another process was there first
    older = 'SELECT "offset" FROM newest WHERE partition = ? AND key = ?'
    superseded = found.superseded + [
        row[0] for key in found.newest for row in connection.execute(older, (found.partition, key))
    ]
    connection.executemany(
        'DELETE FROM records WHERE partition = ? AND "offset" = ?', [(found.partition, each) for each in superseded]
    )
    connection.executemany(
        "INSERT OR REPLACE INTO newest VALUES (?, ?, ?, ?)",
        [(found.partition, key, *last) for key, last in found.newest.items()],
    )


def _pages_to_return(connection: sqlite3.Connection) -> int:
    """Free pages above the share that is left; none in files that were made without auto_vacuum."""
    ask = ("auto_vacuum", "freelist_count", "page_count")
    mode, free, pages = (connection.execute(f"PRAGMA {each}").fetchone()[0] for each in ask)
    return max(0, free - int(pages * FREE_SHARE)) if mode == 2 else 0


def _microseconds(time: timedelta) -> int:
    return time // timedelta(microseconds=1)
