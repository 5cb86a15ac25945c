"""The first schema: calls, deliveries, costs, runs, operators, and search."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ...tables import RowId, UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("id", RowId, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("session_id", sa.Text()),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.Column("outcome", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("status_code", sa.Integer(), nullable=False),
        sa.Column("latency_ms", sa.Float()),
        sa.Column("content_type", sa.Text()),
        sa.Column("content_hash", sa.LargeBinary()),
        sa.Column("query", sa.Text()),
        sa.Column("answer", sa.LargeBinary()),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_deliveries_unparsed",
        "deliveries",
        ["id"],
        sqlite_where=sa.text("outcome = 'unparsed'"),
    )
    op.create_index("ix_deliveries_session", "deliveries", ["session_id", "id"])
    op.create_table(
        "inbox",
        sa.Column("delivery_id", RowId, autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint("delivery_id"),
    )
    op.create_table(
        "keys",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "operator_sessions",
        sa.Column("id_hash", sa.Text(), nullable=False),
        sa.Column("operator", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id_hash"),
    )
    op.create_table(
        "calls",
        sa.Column("id", RowId, nullable=False),
        sa.Column("session_id", sa.Text(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.Column("delivery_id", RowId),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("call_id", sa.Text()),
        sa.Column("agent_id", sa.Text()),
        sa.Column("channel", sa.Text()),
        sa.Column("direction", sa.Text()),
        sa.Column("from_phone", sa.Text()),
        sa.Column("to_phone", sa.Text()),
        sa.Column("customer_phone", sa.Text()),
        sa.Column("provider", sa.Text()),
        sa.Column("call_status", sa.Text()),
        sa.Column("outcome", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("started_at", UtcDateTime()),
        sa.Column("duration_s", sa.Float()),
        sa.Column("cost_total", sa.Float()),
        sa.Column("chars_used", sa.BigInteger()),
        sa.Column("turns", sa.Integer()),
        sa.Column("snippet", sa.Text()),
        sa.Column("recording_url", sa.Text()),
        sa.Column("opted_out", sa.Boolean()),
        sa.Column("prefetch_ms", sa.Float()),
        sa.Column("prefetch_outcome", sa.Text()),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["deliveries.id"],
        ),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("session_id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_calls_agent", "calls", ["agent_id", "received_at"])
    op.create_index("ix_calls_customer", "calls", ["customer_phone", "received_at"])
    op.create_index(
        "ix_calls_open", "calls", ["received_at"], sqlite_where=sa.text("ended_at IS NULL")
    )
    op.create_index("ix_calls_outcome", "calls", ["outcome", "received_at"])
    op.create_index("ix_calls_received", "calls", ["received_at", "id"])
    op.create_table(
        "cost_items",
        sa.Column("call_id", RowId, nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("type", sa.Text()),
        sa.Column("provider", sa.Text()),
        sa.Column("credit", sa.Float()),
        sa.Column("prompt_tokens", sa.BigInteger()),
        sa.Column("completion_tokens", sa.BigInteger()),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "position"),
    )
    op.create_table(
        "handler_runs",
        sa.Column("id", RowId, nullable=False),
        sa.Column("call_id", RowId, nullable=False),
        sa.Column("handler", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index(
        "ix_handler_runs_pending",
        "handler_runs",
        ["id"],
        sqlite_where=sa.text("state = 'pending'"),
    )
    op.create_index("ux_handler_runs_once", "handler_runs", ["call_id", "handler"], unique=True)
    op.create_table(
        "attempts",
        sa.Column("id", RowId, nullable=False),
        sa.Column("run_id", RowId, nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("started_at", UtcDateTime(), nullable=False),
        sa.Column("ended_at", UtcDateTime()),
        sa.Column("duration_ms", sa.Float()),
        sa.Column("outcome", sa.Text()),
        sa.Column("error_type", sa.Text()),
        sa.Column("error_message", sa.Text()),
        sa.Column("traceback", sa.Text()),
        sa.ForeignKeyConstraint(["run_id"], ["handler_runs.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
        sqlite_autoincrement=True,
    )
    op.create_index("ux_attempts_number", "attempts", ["run_id", "number"], unique=True)
    # Trigrams find substrings in any language; rowid is calls.id.
    op.execute("CREATE VIRTUAL TABLE call_search USING fts5(text, tokenize='trigram')")
