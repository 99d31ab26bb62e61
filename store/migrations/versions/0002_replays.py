"""Replays and their results, apart from what happened live."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002_replays"
down_revision = "0001_records"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the two tables."""
    op.create_table(
        "replays",
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("passed_over", sa.Integer, nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_replays"),
    )
    op.create_table(
        "replay_results",
        sa.Column("replay", sa.Text, nullable=False),
        sa.Column("interaction_id", sa.Text, nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("originals", sa.Text, nullable=False),
        sa.Column("answer", sa.Text, nullable=True),
        sa.Column("evaluation", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("replay", "interaction_id", name="pk_replay_results"),
        sa.ForeignKeyConstraint(["replay"], ["replays.name"], name="fk_replay_results_replays"),
    )


def downgrade() -> None:
    """Drop them, the one that refers to the other first."""
    op.drop_table("replay_results")
    op.drop_table("replays")
