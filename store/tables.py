"""The tables of the records database: one metadata for SQLite and PostgreSQL.

Facts keep their whole payload as JSON text in `payload`; the other columns are what queries filter and sort by.
`migrations/` creates these tables; a test compares the two.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Boolean,
    Column,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
)


class PlainText(TypeDecorator[str]):
    """Text as `plain_text` makes it, the same on both databases."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Called by SQLAlchemy for each value sent."""
        return plain_text(value) if value is not None else None


def plain_text(text: str) -> str:
    """Text that every database takes: U+FFFD for NUL (PostgreSQL) and '?' for lone surrogates (UTF-8)."""
    if text.isascii() and "\0" not in text:
        return text
    return text.replace("\0", "\ufffd").encode("utf-8", "replace").decode()


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC with microseconds. Naive values are taken as UTC; values read back are aware."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Called by SQLAlchemy for each value sent."""
        return as_utc(value) if value is not None else None

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Called by SQLAlchemy for each value read."""
        return as_utc(value) if value is not None else None


def as_utc(moment: datetime) -> datetime:
    """The same moment in UTC; a naive one is taken as UTC."""
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    }
)

# A deleted document stays as a row with `deleted_at`, emptied of its content: its tombstone.
documents = Table(
    "documents",
    metadata,
    Column("document_id", PlainText, primary_key=True),
    Column("source", PlainText, nullable=False),
    Column("title", PlainText, nullable=False),
    Column("content_hash", PlainText, nullable=False),
    Column("metadata_json", PlainText, nullable=False),
    Column("event_id", PlainText, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("deleted_at", UtcTime),
)

chunks = Table(
    "chunks",
    metadata,
    Column("chunk_id", PlainText, primary_key=True),
    Column("document_id", PlainText, ForeignKey("documents.document_id"), nullable=False),
    Column("position", Integer, nullable=False),
    Column("heading", PlainText, nullable=False),
    Column("text", PlainText, nullable=False),
    Column("tokens", Integer, nullable=False),
    Column("text_hash", PlainText, nullable=False, index=True),
    UniqueConstraint("document_id", "position"),
)

embeddings = Table(
    "embeddings",
    metadata,
    Column("embedder_id", PlainText, primary_key=True),
    Column("text_hash", PlainText, primary_key=True, index=True),
    Column("vector", LargeBinary, nullable=False),
)

prompt_versions = Table(
    "prompt_versions",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("content_hash", PlainText, nullable=False),
    Column("payload", PlainText, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("approved_by", PlainText),
    Column("approved_at", UtcTime),
    UniqueConstraint("name", "content_hash"),
)

prompt_labels = Table(
    "prompt_labels",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("label", PlainText, primary_key=True),
    Column("number", Integer, nullable=False),
    ForeignKeyConstraint(["name", "number"], ["prompt_versions.name", "prompt_versions.number"]),
)

prompt_label_history = Table(
    "prompt_label_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("name", PlainText, nullable=False),
    Column("label", PlainText, nullable=False),
    Column("number", Integer, nullable=False),
    Column("action", PlainText, nullable=False),
    Column("actor", PlainText, nullable=False),
    Column("time", UtcTime, nullable=False),
    Index(None, "name", "label"),
)

interactions = Table(
    "interactions",
    metadata,
    Column("interaction_id", PlainText, primary_key=True),
    Column("event_id", PlainText, nullable=False, unique=True),
    Column("conversation_id", PlainText, nullable=False, index=True),
    Column("time", UtcTime, nullable=False, index=True),
    Column("release_id", PlainText, index=True),
    Column("channel", PlainText, nullable=False),
    Column("application", PlainText, nullable=False),
    Column("finish_reason", PlainText, nullable=False),
    Column("payload", PlainText, nullable=False),
)

interaction_tags = Table(
    "interaction_tags",
    metadata,
    Column("interaction_id", PlainText, ForeignKey("interactions.interaction_id"), primary_key=True),
    Column("tag", PlainText, primary_key=True),
    Column("value", PlainText, nullable=False),
    Index(None, "tag", "value"),
)

# One row per criterion. `score` is null for an Unscored one; `words` is the justification or the reason.
evaluations = Table(
    "evaluations",
    metadata,
    Column("interaction_id", PlainText, primary_key=True),
    Column("judge", PlainText, primary_key=True),
    Column("criterion", PlainText, primary_key=True),
    Column("score", Float),
    Column("words", PlainText, nullable=False),
    Column("judge_model", PlainText, nullable=False),
    Column("same_model_as_writer", Boolean, nullable=False),
    Column("sampled_with", Float, nullable=False),
    Column("latency_ms", Float, nullable=False),
    Column("event_id", PlainText, nullable=False),
    Column("time", UtcTime, nullable=False),
)

# `rater` is the reviewer, or the event id of an anonymous one: people without a name never overwrite each other.
feedback = Table(
    "feedback",
    metadata,
    Column("interaction_id", PlainText, primary_key=True),
    Column("rater", PlainText, primary_key=True),
    Column("payload", PlainText, nullable=False),
    Column("event_id", PlainText, nullable=False),
    Column("time", UtcTime, nullable=False),
)

releases = Table(
    "releases",
    metadata,
    Column("release_id", PlainText, primary_key=True),
    Column("payload", PlainText, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

channels = Table(
    "channels",
    metadata,
    Column("channel", PlainText, primary_key=True),
    Column("release_id", PlainText, ForeignKey("releases.release_id"), nullable=False),
)

# Also the outbox of ops.releases: rows that are not `published` are appended to the log again.
release_history = Table(
    "release_history",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("event_id", PlainText, nullable=False, unique=True),
    Column("channel", PlainText, nullable=False, index=True),
    Column("release_id", PlainText, ForeignKey("releases.release_id"), nullable=False),
    Column("previous", PlainText),
    Column("action", PlainText, nullable=False),
    Column("reason", PlainText, nullable=False),
    Column("actor", PlainText, nullable=False),
    Column("time", UtcTime, nullable=False),
    Column("published", Boolean, nullable=False),
)

alerts = Table(
    "alerts",
    metadata,
    Column("alert_id", PlainText, primary_key=True),
    Column("alert_key", PlainText, nullable=False),
    Column("state", PlainText, nullable=False, index=True),
    Column("payload", PlainText, nullable=False),
    Column("opened_at", UtcTime, nullable=False),
    Column("event_id", PlainText, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
)

# What one replay is: a window of a topic and what it was run through. `finished_at` is null while it can go on.
replays = Table(
    "replays",
    metadata,
    Column("name", PlainText, primary_key=True),
    Column("payload", PlainText, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("finished_at", UtcTime),
    Column("passed_over", Integer, nullable=False),
)

# `originals` is a JSON array of evaluations as they were when the interaction was replayed; `answer` is null when it
# was only judged again.
replay_results = Table(
    "replay_results",
    metadata,
    Column("replay", PlainText, ForeignKey("replays.name"), primary_key=True),
    Column("interaction_id", PlainText, primary_key=True),
    Column("time", UtcTime, nullable=False),
    Column("originals", PlainText, nullable=False),
    Column("answer", PlainText),
    Column("evaluation", PlainText, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("time", UtcTime, nullable=False),
    Column("actor", PlainText, nullable=False),
    Column("action", PlainText, nullable=False),
    Column("subject", PlainText, nullable=False, index=True),
    Column("detail", PlainText, nullable=False),
)
