"""Runs that are retried, parked and replayed; the handlers of the application."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ...tables import RowId, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: Only to add a column to rows that have no value for it yet.
_LONG_AGO = "1970-01-01 00:00:00.000000"


def upgrade() -> None:
    op.create_table(
        "handlers",
        sa.Column("hook", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("max_attempts", sa.Integer(), nullable=False),
        sa.Column("timeout_s", sa.Float(), nullable=False),
        sa.Column("repeatable", sa.Boolean(), nullable=False),
        sa.Column("filters", sa.Text(), nullable=False),
        sa.Column("seen_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("hook", "name"),
    )
    for column in (
        sa.Column("hook", sa.Text(), nullable=False, server_default="end_of_call"),
        sa.Column("is_latest", sa.Boolean(), nullable=False, server_default=sa.true()),
        sa.Column("is_replay", sa.Boolean(), nullable=False, server_default=sa.false()),
        sa.Column("parked_run_id", RowId),
        sa.Column("spent", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("state_since", UtcDateTime(), nullable=False, server_default=_LONG_AGO),
        sa.Column("due_at", UtcDateTime()),
        sa.Column("reason", sa.Text()),
    ):
        op.add_column("handler_runs", column)
    op.execute(
        "UPDATE handler_runs SET state_since = created_at, spent ="
        " (SELECT count(*) FROM attempts WHERE run_id = handler_runs.id)"
    )
    op.execute(
        "UPDATE handler_runs SET state = 'parked', reason = 'failed before there were retries'"
        " WHERE state = 'failed'"
    )
    op.drop_index("ix_handler_runs_pending", "handler_runs")
    op.drop_index("ux_handler_runs_once", "handler_runs")
    op.create_index(
        "ux_handler_runs_latest",
        "handler_runs",
        ["call_id", "handler"],
        unique=True,
        sqlite_where=sa.text("hook = 'end_of_call' AND is_latest = 1"),
    )
    op.create_index(
        "ix_handler_runs_open",
        "handler_runs",
        ["state", "hook", "handler", "id"],
        sqlite_where=sa.text("state != 'succeeded'"),
    )
    op.create_index(
        "ix_handler_runs_due",
        "handler_runs",
        ["due_at"],
        sqlite_where=sa.text("state = 'failed'"),
    )
    op.create_index("ix_handler_runs_call", "handler_runs", ["call_id", "id"])
