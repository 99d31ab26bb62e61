"""The records database: SQLAlchemy engine with safe SQLite settings, short transactions, and Alembic migrations.

Two kinds of transaction, the same on SQLite and PostgreSQL:

- `engine.begin()` writes. On SQLite it begins IMMEDIATE, because a deferred transaction that upgrades from read
  to write fails with "database is locked" as soon as two processes write.
- `reading(engine)` reads one snapshot and takes no write lock, so readers never wait for a writer.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, inspect, make_url, text
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import ArgumentError, DatabaseError, OperationalError

from infra.errors import Conflict, SettingsError, Unavailable

BUSY_TIMEOUT_MS = 30_000
BATCH = 500  # values per IN list; SQLite allows 32,766 variables in a statement
_SNAPSHOT = "quill_snapshot"

T = TypeVar("T")


def open_database(url: str) -> Engine:
    """An engine for SQLite (WAL, foreign keys, 30 s busy timeout) or PostgreSQL (`postgresql+psycopg://…`).

    Creates the folder of an SQLite file. Raises `SettingsError` for a malformed URL and `Unavailable` when the
    database does not answer, now or at any later statement.
    """
    parsed = _parse(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    shown = parsed.render_as_string(hide_password=True)
    engine = create_engine(parsed, pool_pre_ping=not is_sqlite)
    if is_sqlite:
        event.listen(engine, "connect", _safe_sqlite)
        event.listen(engine, "begin", _begin)
    try:
        if is_sqlite and parsed.database:
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        with reading(engine) as connection:
            connection.execute(text("SELECT 1"))
    except (OSError, DatabaseError) as error:
        raise _unavailable(shown, error) from error
    event.listen(engine, "handle_error", lambda context: _translate(context, shown), retval=True)
    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A connection whose statements all see one snapshot. Reads only: it takes no write lock on SQLite."""
    if engine.dialect.name == "postgresql":
        options: dict[str, Any] = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    else:
        options = {_SNAPSHOT: True}
    with engine.connect() as connection:
        yield connection.execution_options(**options)


def lock(connection: Connection, name: str) -> None:
    """Hold a named lock until the transaction ends: one writer per name.

    SQLite needs none, its write transactions are already one at a time.
    """
    if connection.dialect.name == "postgresql":
        key = int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], signed=True)
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": key})


def insert_into(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """An INSERT that knows ON CONFLICT, in the dialect of the connection."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def batches(values: Sequence[T], size: int = BATCH) -> Iterator[Sequence[T]]:
    """The values in runs of at most `size`, for IN lists and bulk inserts."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def migrate(engine: Engine, scripts: Path, head: str) -> None:
    """Bring the schema to revision `head` of the Alembic scripts in a folder. Safe to call at every start.

    A schema that is already there costs one read: Alembic (0.3 s to import) is not loaded and no lock is taken.
    Raises `Conflict` when the database was written by a newer release of the code.
    """
    if _revision(engine) == head:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(scripts).replace("%", "%%"))
    try:
        with engine.begin() as connection:
            lock(connection, "migrations")
            config.attributes["connection"] = connection
            command.upgrade(config, head)
    except CommandError as error:
        raise Conflict(
            "the records have a schema that this version does not know",
            seen=_revision(engine),
            rule=f"newest known schema: {head}",
            fix="install the newer version that wrote them",
        ) from error


def _parse(url: str) -> URL:
    rule = "sqlite:///PATH or postgresql://USER@HOST/NAME"
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise SettingsError("database.url is not an SQLAlchemy URL", rule=rule) from error
    if parsed.get_backend_name() not in {"sqlite", "postgresql"}:
        raise SettingsError("database.url names an unknown database", seen=parsed.drivername, rule=rule)
    return parsed.set(drivername="postgresql+psycopg") if parsed.drivername == "postgresql" else parsed


def _revision(engine: Engine) -> str | None:
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _safe_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not open transactions by itself, or BEGIN IMMEDIATE below would come too late.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout={BUSY_TIMEOUT_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin(connection: Connection) -> None:
    snapshot = connection.get_execution_options().get(_SNAPSHOT, False)
    connection.exec_driver_sql("BEGIN" if snapshot else "BEGIN IMMEDIATE")


def _translate(context: ExceptionContext, shown: str) -> BaseException | None:
    # The pool's liveness check must see the driver's own error, or it would not reconnect.
    error = context.sqlalchemy_exception
    if context.is_pre_ping or not isinstance(error, OperationalError):
        return None
    return _unavailable(shown, error)


def _unavailable(shown: str, error: Exception) -> Unavailable:
    reason = str(getattr(error, "orig", None) or error).strip().splitlines() or [type(error).__name__]
    return Unavailable(
        "the records database does not answer",
        seen=shown,
        rule=reason[0],
        fix="start it, make the file readable and writable, or change database.url",
    )
