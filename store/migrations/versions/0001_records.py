"""The first tables of the records: content, prompts, interactions, releases, alerts and the audit log."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0001_records"
down_revision = None
branch_labels = None
depends_on = None

Columns = sa.Column[Any]


def upgrade() -> None:
    """Create every table."""
    _create_content()
    _create_prompts()
    _create_interactions()
    _create_judgements()
    _create_releases()
    _create_operations()


def downgrade() -> None:
    """Drop every table, those that refer to others first."""
    for table in (
        "audit",
        "alerts",
        "release_history",
        "channels",
        "releases",
        "feedback",
        "evaluations",
        "interaction_tags",
        "interactions",
        "prompt_label_history",
        "prompt_labels",
        "prompt_versions",
        "embeddings",
        "chunks",
        "documents",
    ):
        op.drop_table(table)


def _create_content() -> None:
    op.create_table(
        "documents",
        _text("document_id"),
        *(_text(name) for name in ("source", "title", "content_hash", "metadata_json", "event_id")),
        _time("updated_at"),
        _time("deleted_at", nullable=True),
        sa.PrimaryKeyConstraint("document_id", name="pk_documents"),
    )
    op.create_table(
        "chunks",
        _text("chunk_id"),
        _text("document_id"),
        sa.Column("position", sa.Integer, nullable=False),
        _text("heading"),
        _text("text"),
        sa.Column("tokens", sa.Integer, nullable=False),
        _text("text_hash"),
        sa.PrimaryKeyConstraint("chunk_id", name="pk_chunks"),
        sa.ForeignKeyConstraint(["document_id"], ["documents.document_id"], name="fk_chunks_documents"),
        sa.UniqueConstraint("document_id", "position", name="uq_chunks_document_id_position"),
    )
    op.create_index("ix_chunks_text_hash", "chunks", ["text_hash"])
    op.create_table(
        "embeddings",
        _text("embedder_id"),
        _text("text_hash"),
        sa.Column("vector", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("embedder_id", "text_hash", name="pk_embeddings"),
    )
    op.create_index("ix_embeddings_text_hash", "embeddings", ["text_hash"])


def _create_prompts() -> None:
    op.create_table(
        "prompt_versions",
        _text("name"),
        sa.Column("number", sa.Integer, nullable=False, autoincrement=False),
        _text("content_hash"),
        _text("payload"),
        _time("created_at"),
        _text("approved_by", nullable=True),
        _time("approved_at", nullable=True),
        sa.PrimaryKeyConstraint("name", "number", name="pk_prompt_versions"),
        sa.UniqueConstraint("name", "content_hash", name="uq_prompt_versions_name_content_hash"),
    )
    op.create_table(
        "prompt_labels",
        _text("name"),
        _text("label"),
        sa.Column("number", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", "label", name="pk_prompt_labels"),
        sa.ForeignKeyConstraint(
            ["name", "number"],
            ["prompt_versions.name", "prompt_versions.number"],
            name="fk_prompt_labels_prompt_versions",
        ),
    )
    op.create_table(
        "prompt_label_history",
        sa.Column("id", sa.Integer, primary_key=True),
        _text("name"),
        _text("label"),
        sa.Column("number", sa.Integer, nullable=False),
        _text("action"),
        _text("actor"),
        _time("time"),
        sa.PrimaryKeyConstraint("id", name="pk_prompt_label_history"),
    )
    op.create_index("ix_prompt_label_history_name_label", "prompt_label_history", ["name", "label"])


def _create_interactions() -> None:
    op.create_table(
        "interactions",
        *(_text(name) for name in ("interaction_id", "event_id", "conversation_id")),
        _time("time"),
        _text("release_id", nullable=True),
        *(_text(name) for name in ("channel", "application", "finish_reason", "payload")),
        sa.PrimaryKeyConstraint("interaction_id", name="pk_interactions"),
        sa.UniqueConstraint("event_id", name="uq_interactions_event_id"),
    )
    for column in ("conversation_id", "time", "release_id"):
        op.create_index(f"ix_interactions_{column}", "interactions", [column])
    op.create_table(
        "interaction_tags",
        *(_text(name) for name in ("interaction_id", "tag", "value")),
        sa.PrimaryKeyConstraint("interaction_id", "tag", name="pk_interaction_tags"),
        sa.ForeignKeyConstraint(
            ["interaction_id"], ["interactions.interaction_id"], name="fk_interaction_tags_interactions"
        ),
    )
    op.create_index("ix_interaction_tags_tag_value", "interaction_tags", ["tag", "value"])


def _create_judgements() -> None:
    op.create_table(
        "evaluations",
        *(_text(name) for name in ("interaction_id", "judge", "criterion")),
        sa.Column("score", sa.Float),
        *(_text(name) for name in ("words", "judge_model")),
        sa.Column("same_model_as_writer", sa.Boolean, nullable=False),
        sa.Column("sampled_with", sa.Float, nullable=False),
        sa.Column("latency_ms", sa.Float, nullable=False),
        _text("event_id"),
        _time("time"),
        sa.PrimaryKeyConstraint("interaction_id", "judge", "criterion", name="pk_evaluations"),
    )
    op.create_table(
        "feedback",
        *(_text(name) for name in ("interaction_id", "rater", "payload", "event_id")),
        _time("time"),
        sa.PrimaryKeyConstraint("interaction_id", "rater", name="pk_feedback"),
    )


def _create_releases() -> None:
    op.create_table(
        "releases",
        _text("release_id"),
        _text("payload"),
        _time("created_at"),
        sa.PrimaryKeyConstraint("release_id", name="pk_releases"),
    )
    op.create_table(
        "channels",
        _text("channel"),
        _text("release_id"),
        sa.PrimaryKeyConstraint("channel", name="pk_channels"),
        sa.ForeignKeyConstraint(["release_id"], ["releases.release_id"], name="fk_channels_releases"),
    )
    op.create_table(
        "release_history",
        sa.Column("id", sa.Integer, primary_key=True),
        *(_text(name) for name in ("event_id", "channel", "release_id")),
        _text("previous", nullable=True),
        *(_text(name) for name in ("action", "reason", "actor")),
        _time("time"),
        sa.Column("published", sa.Boolean, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_release_history"),
        sa.ForeignKeyConstraint(["release_id"], ["releases.release_id"], name="fk_release_history_releases"),
        sa.UniqueConstraint("event_id", name="uq_release_history_event_id"),
    )
    op.create_index("ix_release_history_channel", "release_history", ["channel"])


def _create_operations() -> None:
    op.create_table(
        "alerts",
        *(_text(name) for name in ("alert_id", "alert_key", "state", "payload")),
        _time("opened_at"),
        _text("event_id"),
        _time("updated_at"),
        sa.PrimaryKeyConstraint("alert_id", name="pk_alerts"),
    )
    op.create_index("ix_alerts_state", "alerts", ["state"])
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        _time("time"),
        *(_text(name) for name in ("actor", "action", "subject", "detail")),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
    )
    op.create_index("ix_audit_subject", "audit", ["subject"])


def _text(name: str, *, nullable: bool = False) -> Columns:
    return sa.Column(name, sa.Text, nullable=nullable)


def _time(name: str, *, nullable: bool = False) -> Columns:
    return sa.Column(name, sa.DateTime(timezone=True), nullable=nullable)
