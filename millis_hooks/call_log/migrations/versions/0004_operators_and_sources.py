"""Named operators and what they did; refused requests; who sent a delivery that Millis did not."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    _name_sources()
    _tell_dry_runs()
    _keep_traces()
    _keep_rejections()
    _drop_cost_triggers()
    op.execute("INSERT INTO call_search (call_search, rank) VALUES ('automerge', 16)")
    _name_operators()
    _remember_what_is_reconciled()


def _name_sources() -> None:
    for table in ("deliveries", "calls"):
        op.add_column(table, sa.Column("source", sa.Text()))


def _tell_dry_runs() -> None:
    op.add_column(
        "deliveries", sa.Column("dry_run", sa.Boolean(), nullable=False, server_default=sa.false())
    )


def _keep_traces() -> None:
    op.add_column("deliveries", sa.Column("trace", sa.Text()))


def _drop_cost_triggers() -> None:
    """Cost items change with their call's `cost_total`, which has a trigger."""
    for name in ("added", "changed", "removed"):
        op.execute(f"DROP TRIGGER cost_items_{name}")


def _keep_rejections() -> None:
    op.create_table(
        "rejections",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("webhook", sa.Text(), nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("status_code", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("client", sa.Text()),
        sa.Column("query", sa.Text(), nullable=False),
        sa.Column("headers", sa.Text(), nullable=False),
        sa.Column("body_bytes", sa.BigInteger()),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "rejection_counts",
        sa.Column("webhook", sa.Text(), primary_key=True),
        sa.Column("status_code", sa.Integer(), primary_key=True, autoincrement=False),
        sa.Column("reason", sa.Text(), primary_key=True),
        sa.Column("times", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_index("ix_deliveries_received", "deliveries", ["received_at", "id"])
    op.create_index(
        "ix_deliveries_outcome",
        "deliveries",
        ["outcome", "received_at", "id"],
        sqlite_where=sa.text("(outcome NOT IN ('fresh', 'stored'))"),
    )


def _name_operators() -> None:
    for column in (
        sa.Column("ends_at", sa.DateTime(timezone=True)),
        sa.Column("idle_s", sa.Integer()),
        sa.Column("confirmed_at", sa.DateTime(timezone=True)),
        sa.Column("client", sa.Text()),
        sa.Column("browser", sa.Text()),
    ):
        op.add_column("operator_sessions", column)
    op.create_index("ix_operator_sessions_operator", "operator_sessions", ["operator"])
    op.create_table(
        "operators",
        sa.Column("name", sa.Text(), primary_key=True),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("password_hash", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    )
    op.create_table(
        "deeds",
        sa.Column("id", sa.Integer(), primary_key=True),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("operator", sa.Text()),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text()),
        sa.Column("client", sa.Text()),
        sa.Column("times", sa.Integer(), nullable=False),
        sa.Column("last_at", sa.DateTime(timezone=True)),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_deeds_at", "deeds", ["at"])
    op.create_index("ix_deeds_operator", "deeds", ["operator", "id"])


def _remember_what_is_reconciled() -> None:
    op.create_table(
        "outbound_calls",
        sa.Column("session_id", sa.Text(), primary_key=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "forgotten",
        sa.Column("session_hash", sa.LargeBinary(), primary_key=True),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "reconciled",
        sa.Column("api", sa.Text(), primary_key=True),
        sa.Column("until", sa.DateTime(timezone=True), nullable=False),
        sqlite_with_rowid=False,
    )
