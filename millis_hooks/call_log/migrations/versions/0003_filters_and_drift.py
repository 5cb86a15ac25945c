"""Finding calls by metadata; the drift report; deliveries that were redacted before storage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from millis_hooks.call_log.tables import RowId, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "deliveries",
        sa.Column("redacted", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "call_metadata",
        sa.Column("call_id", RowId, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "key"),
    )
    op.create_index(
        "ix_call_metadata_value", "call_metadata", ["key", "value", "received_at", "call_id"]
    )
    op.create_table(
        "drift",
        sa.Column("id", RowId, nullable=False),
        sa.Column("delivery_id", RowId, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sample", sa.Text(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["delivery_id"], ["deliveries.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_drift_kind", "drift", ["kind", "path", "seen_at"])
    op.create_index("ix_drift_delivery", "drift", ["delivery_id"])
