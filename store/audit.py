"""The audit log: who changed what and when, written in the transaction of the change itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import Connection, Engine, select

from infra.database import reading
from infra.identity import Value, canonical_json
from store.tables import audit


class AuditEntry(Value):
    """One change."""

    time: datetime = Field(description="When, UTC.")
    actor: str = Field(description="Who or what did it.")
    action: str = Field(description="What was done, such as 'prompt.pushed' or 'release.promoted'.")
    subject: str = Field(description="What it was done to, such as 'grounded-post@3' or a channel.")
    detail: dict[str, Any] = Field(description="The rest, JSON values.")


class AuditLog:
    """Reads the audit log; `record` writes it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def list(self, subject: str | None = None, limit: int = 100) -> list[AuditEntry]:
        """The newest `limit` entries, newest first, of one subject or of all."""
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if subject is not None:
            query = query.where(audit.c.subject == subject)
        with reading(self._engine) as connection:
            return [_entry(row) for row in connection.execute(query)]


def record(
    connection: Connection, action: str, subject: str, *, actor: str, time: datetime, detail: Mapping[str, Any]
) -> None:
    """Write one entry in the caller's transaction: the change and its entry are there together or not at all."""
    values = {"time": time, "actor": actor, "action": action, "subject": subject}
    connection.execute(audit.insert().values(**values, detail=canonical_json(dict(detail)).decode()))


def _entry(row: Any) -> AuditEntry:
    return AuditEntry(
        time=row.time, actor=row.actor, action=row.action, subject=row.subject, detail=json.loads(row.detail)
    )
