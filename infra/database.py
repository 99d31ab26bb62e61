"""The records database: SQLAlchemy engine with safe SQLite settings, and Alembic migrations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event, make_url
from sqlalchemy.exc import OperationalError

from infra.errors import Unavailable

BUSY_TIMEOUT_MS = 30_000


def open_database(url: str) -> Engine:
    """An engine for SQLite (WAL, foreign keys, 30 s busy timeout) or PostgreSQL (`postgresql+psycopg://…`).

    Creates the folder of an SQLite file. Raises `Unavailable` when the server does not answer.
    """
    parsed = make_url(url)
    if parsed.drivername == "postgresql":
        parsed = parsed.set(drivername="postgresql+psycopg")
    sqlite = parsed.get_backend_name() == "sqlite"
    if sqlite and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, pool_pre_ping=not sqlite)
    if sqlite:
        event.listen(engine, "connect", _safe_sqlite)
        event.listen(engine, "begin", _begin_immediate)
    try:
        with engine.connect():
            pass
    except OperationalError as error:
        raise Unavailable(
            "the records database does not answer",
            seen=parsed.render_as_string(hide_password=True),
            rule=str(error.orig).strip().splitlines()[0],
            fix="start it, or change database.url",
        ) from error
    return engine


def migrate(engine: Engine, scripts: Path) -> None:
    """Bring the schema to the newest revision of the Alembic scripts in a folder. Safe to call at every start."""
    config = Config()
    config.set_main_option("script_location", str(scripts))
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7135)")
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


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


def _begin_immediate(connection: Any) -> None:
    # Deferred transactions that upgrade from read to write fail with "database is locked" under two writers.
    connection.exec_driver_sql("BEGIN IMMEDIATE")
