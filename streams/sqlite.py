"""One SQLite file used by many threads and processes at once, durable at each commit unless said otherwise (WAL)."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.errors import CorruptArtifact, Unavailable

BUSY_SECONDS = 30.0
_BUSY_MS = int(BUSY_SECONDS * 1000)
PAGE_BYTES = 8192
"""Of new files. Records of 1 KB leave less of a page empty than in SQLite's own 4 KB."""
OPENING_SECONDS = 0.002
OPENINGS_SECONDS = 0.05
"""A process that writes on end leaves others an opening of 2 ms, in which they look twice, every 50 ms."""
_WAL_BYTES = 64 << 20


class SqliteFile:
    """Connections to one file, one per thread and process, opened at first use.

    The schema is run on a file that was made without it or with another one: all its statements say IF NOT EXISTS.
    Errors of SQLite come out as `Unavailable` (locked for 30 s, disk full, not writable) or `CorruptArtifact`.
    """

    def __init__(self, path: Path, schema: str, what: str) -> None:
        self.path = path
        self._schema = schema
        self._what = what
        # Keyed by process too: SQLite forbids using a connection across fork, and closing one that was inherited
        # may drop the parent's locks. The child therefore leaves the parent's connections alone, referenced.
        self._connections: dict[tuple[int, int], sqlite3.Connection] = {}
        self._turns: dict[int, threading.Lock] = {}
        self._released = self._opened = 0.0

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for SELECTs; each statement sees its own snapshot and blocks no writer."""
        with self._clear_errors():
            yield self._connection()

    @contextmanager
    def writing(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """A write transaction: on disk when the block is left, undone when it raises.

        One that is not `durable` outlives this process, but a power cut may undo it if no durable one came after it.
        """
        with self._clear_errors():
            connection = self._connection()
            with self._turn():
                self._leave_openings()
                try:
                    connection.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                    _begin(connection)
                    yield connection
                    connection.commit()
                except BaseException:
                    connection.rollback()
                    raise

    def checkpoint(self) -> bool:
        """Move the write-ahead log into the file and empty it; False when somebody reads or writes just now."""
        with self._clear_errors(), self._turn():
            connection = self._connection()
            connection.execute("PRAGMA busy_timeout=1")
            try:
                busy: int = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            finally:
                connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
        return not busy

    def release(self) -> None:
        """Close the calling thread's connection; called by threads that end before the file is closed."""
        connection = self._connections.pop((os.getpid(), threading.get_ident()), None)
        if connection is not None:
            connection.close()

    def close(self) -> None:
        """Close the connections of this process. The file may be used again afterwards."""
        for owner in [owner for owner in self._connections if owner[0] == os.getpid()]:
            self._connections.pop(owner).close()

    @contextmanager
    def _turn(self) -> Iterator[None]:
        # Threads of a process wait for each other here instead of polling for SQLite's lock.
        turn = self._turns.setdefault(os.getpid(), threading.Lock())
        if not turn.acquire(timeout=BUSY_SECONDS):
            raise sqlite3.OperationalError("database is locked by another thread of this process")
        try:
            yield
        finally:
            self._released = time.monotonic()
            turn.release()

    def _leave_openings(self) -> None:
        now = time.monotonic()
        if now - self._released > OPENING_SECONDS:
            self._opened = now
        elif now - self._opened > OPENINGS_SECONDS:
            time.sleep(OPENING_SECONDS)
            self._opened = now + OPENING_SECONDS

    def _connection(self) -> sqlite3.Connection:
        owner = (os.getpid(), threading.get_ident())
        connection = self._connections.get(owner)
        if connection is None:
            connection = self._connections[owner] = self._open()
        return connection

    def _open(self) -> sqlite3.Connection:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"{self._what} cannot be opened", seen=self.path, rule=str(error)) from error
        connection = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _prepare(connection, self._schema)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            fix = "check that the disk has room and that the file may be written"
            raise Unavailable(f"{self._what} cannot be used", seen=self.path, rule=str(error), fix=fix) from error
        except sqlite3.DatabaseError as error:
            if type(error) is not sqlite3.DatabaseError:
                raise  # its subclasses tell of mistakes in the calling code
            raise CorruptArtifact(
                f"{self._what} is damaged", seen=self.path, rule=str(error), fix="move the file away, or restore it"
            ) from error


def _prepare(connection: sqlite3.Connection, schema: str) -> None:
    # Both count for a file without tables only. Freed pages of older files are used again, but not returned.
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            # Turning WAL on and recovering it after a crash can answer "locked" without waiting for the timeout.
            connection.execute("PRAGMA journal_mode=WAL")
            break
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES}")
    connection.execute("PRAGMA secure_delete=ON")  # what is removed is not to be found in the file any more
    version = zlib.crc32(schema.encode()) & 0x7FFFFFFF
    if connection.execute("PRAGMA user_version").fetchone()[0] != version:
        connection.executescript(f"BEGIN IMMEDIATE; {schema} PRAGMA user_version={version}; COMMIT;")


def _begin(connection: sqlite3.Connection) -> None:
    # Deferred transactions that turn from reading to writing fail at once under two writers.
    deadline = time.monotonic() + BUSY_SECONDS
    connection.execute("PRAGMA busy_timeout=1")
    try:
        while True:
            try:
                connection.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                # SQLite itself would look less and less often, and a process that writes on end would starve others.
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
    finally:
        connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
