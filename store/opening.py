"""Opening the store: the records database, brought to the newest schema, and the artifacts beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from infra.artifacts import Artifacts
from infra.database import migrate, open_database
from infra.settings import Settings
from store.alerts import AlertStore
from store.audit import AuditLog
from store.documents import DocumentStore
from store.interactions import InteractionStore
from store.prompts import PromptStore
from store.releases import ReleaseStore
from store.replays import ReplayStore
from streams.log import EventLog

MIGRATIONS = Path(__file__).parent / "migrations"
SCHEMA = "0002_replays"


@dataclass(frozen=True)
class Store:
    """Everything that is known. Safe to share between threads; each process opens its own."""

    engine: Engine
    documents: DocumentStore
    prompts: PromptStore
    interactions: InteractionStore
    releases: ReleaseStore
    alerts: AlertStore
    replays: ReplayStore
    audit: AuditLog
    artifacts: Artifacts

    def close(self) -> None:
        """Release the database connections."""
        self.engine.dispose()


def open_store(settings: Settings, log: EventLog | None = None) -> Store:
    """Open the store of an installation, creating or migrating it first.

    With a log, release changes are appended to `ops.releases`, those of an interrupted process first. Without one
    they wait for the next opening with a log. Raises `Unavailable` when the database does not answer and `Conflict`
    when a newer version of the code wrote it.
    """
    engine = open_database(settings.database_url)
    migrate(engine, MIGRATIONS, SCHEMA)
    store = Store(
        engine=engine,
        documents=DocumentStore(engine),
        prompts=PromptStore(engine),
        interactions=InteractionStore(engine),
        releases=ReleaseStore(engine, log),
        alerts=AlertStore(engine),
        replays=ReplayStore(engine),
        audit=AuditLog(engine),
        artifacts=Artifacts(settings.home / "artifacts"),
    )
    store.releases.publish_pending()
    return store
