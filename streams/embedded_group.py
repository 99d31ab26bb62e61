"""Consumer groups of the embedded log: membership, shares of the partitions, fenced commits.

Each member works its own share out from the list of live members, the same list for all, and takes over only
partitions that are free: a member gives up what is no longer its share at its next `poll`, a dead one when its
heartbeat is older than the session timeout. Each takeover raises the partition's generation, and a commit must
name the generation it was read under: a member that was suspended and wakes up cannot move the offset back.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from infra.errors import QuillError
from infra.identity import new_id
from streams.embedded_records import fetch
from streams.log import LostPartition, Record, StoredRecord, check_appendable, owned_by_way_of
from streams.sqlite import SqliteFile

POLL_SECONDS = 0.01
POLL_BYTES = 32 << 20
"""Length of the values of one poll, after which no further record is taken."""


@dataclass
class _Claim:
    """A partition this member owns."""

    key: int
    generation: int
    next_offset: int


@dataclass(frozen=True)
class _Position:
    """A partition as the group sees it."""

    key: int
    topic: str
    number: int
    next_offset: int
    member: str | None
    generation: int

    @property
    def name(self) -> tuple[str, int]:
        return self.topic, self.number


class EmbeddedReader:
    """`GroupReader` of the embedded log. Use it from one thread at a time."""

    def __init__(
        self,
        file: SqliteFile,
        group: str,
        topics: Sequence[str],
        *,
        append: Callable[[sqlite3.Connection, str, Sequence[Record]], object],
        clean: Callable[[], None],
        session_timeout: float,
        max_poll_interval: float,
    ) -> None:
        self.member = new_id()
        self._file = file
        self._group = group
        self._topics = sorted(set(topics))
        self._append = append
        self._clean = clean
        self._session_timeout = session_timeout
        self._max_poll_interval = max_poll_interval
        self._claims: dict[tuple[str, int], _Claim] = {}
        self._turn = 0
        self._last_poll = self._look_again = time.monotonic()
        self._found_none: tuple[int, int, int] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Register with the group, take what is free, and start the heartbeat."""
        self._rebalance()
        self._thread = threading.Thread(
            target=_beat,
            args=(weakref.ref(self), self._file, self._closed, self._session_timeout / 3),
            name=f"heartbeat-{self._group}",
            daemon=True,
        )
        self._thread.start()

    def poll(self, *, max_records: int = 100, timeout: float = 1.0) -> list[StoredRecord]:
        """See `GroupReader`."""
        deadline = time.monotonic() + timeout
        while True:
            self._last_poll = time.monotonic()
            records = self._next(max_records)
            left = deadline - time.monotonic()
            if records or left <= 0:
                return records
            time.sleep(min(POLL_SECONDS, left))

    def commit(self, next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`. A power cut may take the last commits back: their records come again."""
        with self._file.writing(durable=False) as connection:
            self._move(connection, next_offsets)

    def publish(self, outputs: Sequence[tuple[str, Record]], next_offsets: Mapping[tuple[str, int], int]) -> None:
        """See `GroupReader`. The file is the same for both, so one transaction of it does both."""
        records: dict[str, list[Record]] = {}
        for topic, record in outputs:
            records.setdefault(topic, []).append(record)
        for topic, its_records in records.items():
            check_appendable(topic, its_records)
        try:
            with self._file.writing() as connection:
                self._move(connection, next_offsets)
                for topic, its_records in records.items():
                    self._append(connection, topic, its_records)
        except LostPartition:
            # What is still ours is taken anew, from the committed offset: its records were not handled either.
            for name in next_offsets:
                self._claims.pop(name, None)
            raise

    def assignment(self) -> set[tuple[str, int]]:
        """See `GroupReader`."""
        return set(self._claims)

    def close(self) -> None:
        """See `GroupReader`. Does nothing the second time."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._thread is not None:
            self._thread.join()
        self._claims.clear()
        with self._file.writing() as connection:
            connection.execute("DELETE FROM members WHERE id = ?", (self.member,))
            connection.execute("UPDATE positions SET member = NULL WHERE member = ?", (self.member,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _move(self, connection: sqlite3.Connection, next_offsets: Mapping[tuple[str, int], int]) -> None:
        for name, offset in next_offsets.items():
            owned = owned_by_way_of(name, self._group)
            claim = self._claims.get(owned)
            values = (self._group, claim and claim.key, self.member, claim and claim.generation)
            # Without a claim both parameters are NULL, which equals nothing.
            moved = connection.execute(
                "UPDATE positions SET next_offset = iif(?, next_offset, ?)"
                " WHERE consumer_group = ? AND partition = ? AND member = ? AND generation = ?",
                (name != owned, offset, *values),
            )
            if moved.rowcount == 0:
                self._claims.pop(owned, None)
                raise LostPartition(
                    "this member no longer owns the partition",
                    seen=f"{name[0]}/{name[1]} in group {self._group}",
                    rule="what was not committed is handled by its new owner",
                )
            if name != owned:
                connection.execute(
                    "INSERT INTO positions (consumer_group, partition, next_offset)"
                    " SELECT ?, id, ? FROM partitions WHERE topic = ? AND number = ?"
                    " ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
                    (self._group, offset, *name),
                )

    def heartbeat(self) -> None:
        """Say that this member lives, unless its owner has not polled for too long. Called in the background."""
        if time.monotonic() - self._last_poll < self._max_poll_interval:
            with self._file.writing(durable=False) as connection:
                connection.execute("UPDATE members SET heartbeat = ? WHERE id = ?", (time.time(), self.member))
        self._clean()

    def _next(self, limit: int) -> list[StoredRecord]:
        """The next records, after partitions changed hands; looks only when something was written since it found none.

        What changes by time alone, the death of a member, is seen within a third of a session.
        """
        with self._file.reading() as connection:
            # Counts the commits of others; `total_changes` those of our own.
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            state = (id(connection), version, connection.total_changes)
        if state == self._found_none and self._last_poll < self._look_again:
            return []
        self._rebalance()
        records = self._fetch(limit)
        self._found_none = None if records else state
        self._look_again = self._last_poll + self._session_timeout / 3
        return records

    def _fetch(self, limit: int) -> list[StoredRecord]:
        records: list[StoredRecord] = []
        room = POLL_BYTES
        # A full partition must not starve the others: each poll starts one partition further.
        names = sorted(self._claims)
        self._turn += 1
        with self._file.reading() as connection:
            for index in range(len(names)):
                topic, number = name = names[(self._turn + index) % len(names)]
                claim = self._claims[name]
                left = limit - len(records)
                found = fetch(connection, claim.key, topic, number, claim.next_offset, limit=left, size=room)
                if found:
                    claim.next_offset = found[-1].offset + 1
                    records += found
                    room -= sum(len(record.value) for record in found)
                if len(records) >= limit or room <= 0:
                    break
        return records

    def _rebalance(self) -> None:
        """Drop what was lost; give up what is not our share; take what is and is free."""
        with self._file.reading() as connection:
            changed = self._differs(connection)
        if changed:
            with self._file.writing(durable=False) as connection:
                self._apply(connection)

    def _differs(self, connection: sqlite3.Connection) -> bool:
        alive = self._alive(connection)
        if self.member not in alive:
            return True
        share = self._share(connection, alive)
        for position in self._positions(connection):
            mine = position.member == self.member
            if mine != (position.name in self._claims) or (mine and position.name not in share):
                return True
            if not mine and position.name in share and position.member not in alive:
                return True
        return False

    def _apply(self, connection: sqlite3.Connection) -> None:
        self._register(connection)
        alive = self._alive(connection)
        share = self._share(connection, alive)
        for position in self._positions(connection):
            claim = self._claims.get(position.name)
            mine = position.member == self.member and claim is not None and claim.generation == position.generation
            if mine and position.name in share:
                continue
            self._claims.pop(position.name, None)
            if position.name in share and (position.member in (None, self.member) or position.member not in alive):
                self._take(connection, position)
            elif position.member == self.member:
                connection.execute(
                    "UPDATE positions SET member = NULL WHERE consumer_group = ? AND partition = ?",
                    (self._group, position.key),
                )

    def _register(self, connection: sqlite3.Connection) -> None:
        now = time.time()
        connection.execute(
            "INSERT INTO members VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET heartbeat = excluded.heartbeat",
            (self.member, self._group, json.dumps(self._topics), now),
        )
        connection.execute(
            "DELETE FROM members WHERE consumer_group = ? AND abs(heartbeat - ?) > ?",
            (self._group, now, self._session_timeout),
        )

    def _take(self, connection: sqlite3.Connection, position: _Position) -> None:
        generation = position.generation + 1
        connection.execute(
            "INSERT INTO positions (consumer_group, partition, member, generation) VALUES (?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET member = excluded.member, generation = excluded.generation",
            (self._group, position.key, self.member, generation),
        )
        self._claims[position.name] = _Claim(position.key, generation, position.next_offset)

    def _alive(self, connection: sqlite3.Connection) -> dict[str, set[str]]:
        """Live members in the order they joined, each with its topics."""
        # A heartbeat from the future means that the clock was set back: as dead as one from the past.
        rows = connection.execute(
            "SELECT id, topics FROM members WHERE consumer_group = ? AND abs(heartbeat - ?) <= ? ORDER BY id",
            (self._group, time.time(), self._session_timeout),
        )
        return {member: set(json.loads(topics)) for member, topics in rows}

    def _share(self, connection: sqlite3.Connection, alive: Mapping[str, set[str]]) -> set[tuple[str, int]]:
        """The partitions this member should own: round robin, each topic starting at another member."""
        share: set[tuple[str, int]] = set()
        for topic in self._topics:
            members = [member for member, topics in alive.items() if topic in topics]
            count = connection.execute("SELECT count(*) FROM partitions WHERE topic = ?", (topic,)).fetchone()[0]
            shift = zlib.crc32(topic.encode())
            share |= {
                (topic, number) for number in range(count) if members[(number + shift) % len(members)] == self.member
            }
        return share

    def _positions(self, connection: sqlite3.Connection) -> list[_Position]:
        marks = ", ".join("?" * len(self._topics))
        rows = connection.execute(
            "SELECT id, topic, number, coalesce(positions.next_offset, 0), member, coalesce(generation, 0)"
            " FROM partitions LEFT JOIN positions ON positions.partition = partitions.id AND consumer_group = ?"
            f" WHERE topic IN ({marks})",
            (self._group, *self._topics),
        )
        return [_Position(*row) for row in rows]


def _beat(reader: weakref.ref[EmbeddedReader], file: SqliteFile, closed: threading.Event, interval: float) -> None:
    # A weak reference: a reader that was dropped without `close` must stop counting as alive.
    while not closed.wait(interval):
        member = reader()
        if member is None:
            break
        try:
            member.heartbeat()
        except QuillError:
            # The disk is full or locked; the session ends if this lasts, which is what the others must see.
            continue
        finally:
            del member
    file.release()
