"""Finding calls by metadata; the drift report; deliveries that were redacted before storage."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from ...tables import RowId, UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


_REPEATED = """
    UPDATE calls SET repeated = 1 WHERE session_id IN (
        SELECT session_id FROM deliveries
        WHERE kind = 'end_of_call' AND outcome <> 'rejected' GROUP BY session_id HAVING count(*) > 1
    ) AND delivery_id IS NOT NULL
"""
_HOURS = """
    INSERT INTO hours (hour, changes)
        SELECT substr(received_at, 1, 13), 1 FROM calls GROUP BY substr(received_at, 1, 13)
"""
_OF_CALL = "SELECT substr(received_at, 1, 13), 1 FROM calls WHERE id = {row}.call_id"
_OF_RUN = (
    "SELECT substr(received_at, 1, 13), 1 FROM calls "
    "WHERE id = (SELECT call_id FROM handler_runs WHERE id = {row}.run_id)"
)
_ITS_OWN = "SELECT substr({row}.received_at, 1, 13), 1 WHERE true"
_BOTH_ITS_OWN = (
    "SELECT hour, 1 FROM (SELECT substr(OLD.received_at, 1, 13) AS hour "
    "UNION SELECT substr(NEW.received_at, 1, 13)) WHERE true"
)
_CALL_CHANGED = (
    "UPDATE OF received_at, agent_id, outcome, call_status, duration_s, cost_total, prefetch_ms, "
    "prefetch_outcome"
)
_RUN_CHANGED = (
    "OLD.hook <> NEW.hook OR OLD.handler <> NEW.handler OR OLD.is_latest <> NEW.is_latest "
    "OR (OLD.state = 'parked') <> (NEW.state = 'parked')"
)
_IS_OVER = "{row}.outcome IS NOT NULL"
#: Name, event, table, hours and condition.
_TRIGGERS = (
    ("added", "INSERT", "calls", _ITS_OWN, ""),
    ("changed", _CALL_CHANGED, "calls", _BOTH_ITS_OWN, ""),
    ("removed", "DELETE", "calls", _ITS_OWN, ""),
    ("added", "INSERT", "cost_items", _OF_CALL, ""),
    ("changed", "UPDATE OF type, provider, credit", "cost_items", _OF_CALL, ""),
    ("removed", "DELETE", "cost_items", _OF_CALL, ""),
    ("added", "INSERT", "handler_runs", _OF_CALL, ""),
    ("changed", "UPDATE", "handler_runs", _OF_CALL, _RUN_CHANGED),
    ("removed", "DELETE", "handler_runs", _OF_CALL, ""),
    ("added", "INSERT", "attempts", _OF_RUN, _IS_OVER),
    ("changed", "UPDATE OF outcome, duration_ms", "attempts", _OF_RUN, ""),
    ("removed", "DELETE", "attempts", _OF_RUN, _IS_OVER),
)
_UNHANDLED = """
    UPDATE calls SET unhandled = 1 WHERE delivery_id IS NOT NULL
        AND NOT EXISTS (SELECT 1 FROM handler_runs WHERE call_id = calls.id)
"""


def upgrade() -> None:
    op.add_column(
        "deliveries",
        sa.Column("redacted", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.add_column(
        "deliveries",
        sa.Column("imported", sa.Boolean(), nullable=False, server_default=sa.false()),
    )
    op.create_table(
        "call_metadata",
        sa.Column("call_id", RowId, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.Column("received_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["call_id"], ["calls.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("call_id", "key"),
        sqlite_with_rowid=False,
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
    op.create_index("ix_calls_delivery", "calls", ["delivery_id"])
    _find_calls_by_more()
    _summarize_hours()


def _find_calls_by_more() -> None:
    for name in ("repeated", "unhandled"):
        op.add_column(
            "calls", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false())
        )
    op.execute(_REPEATED)
    op.execute(_UNHANDLED)
    op.drop_index("ix_calls_customer", "calls")
    op.create_index("ix_calls_from", "calls", ["from_phone", "received_at"])
    op.create_index("ix_calls_to", "calls", ["to_phone", "received_at"])
    op.create_index("ix_calls_status", "calls", ["call_status", "received_at"])
    op.create_index("ix_calls_channel", "calls", ["channel", "direction", "received_at"])
    op.create_index("ix_calls_duration", "calls", ["duration_s"])
    op.create_index("ix_calls_cost", "calls", ["cost_total"])
    for name in ("repeated", "unhandled"):
        marked = sa.text(f"{name} = 1")
        op.create_index(f"ix_calls_{name}", "calls", ["received_at"], sqlite_where=marked)


def _summarize_hours() -> None:
    op.create_table(
        "hours",
        sa.Column("hour", sa.Text(), nullable=False),
        sa.Column("changes", sa.BigInteger(), nullable=False),
        sa.Column("summed", sa.BigInteger()),
        sa.PrimaryKeyConstraint("hour"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "summaries",
        sa.Column("agent_id", sa.Text(), nullable=False),
        sa.Column("hour", sa.Text(), nullable=False),
        sa.Column("numbers", sa.Text(), nullable=False),
        sa.Column("samples", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("agent_id", "hour"),
    )
    op.create_index("ix_summaries_hour", "summaries", ["hour"])
    op.execute(_HOURS)
    for name, event, table, hours, condition in _TRIGGERS:
        row = "OLD" if event == "DELETE" else "NEW"
        when = f"WHEN {condition.format(row=row)} " if condition else ""
        op.execute(
            f"CREATE TRIGGER {table}_{name} AFTER {event} ON {table} {when}BEGIN "
            f"INSERT INTO hours (hour, changes) {hours.format(row=row)} "
            "ON CONFLICT (hour) DO UPDATE SET changes = changes + 1; END"
        )
