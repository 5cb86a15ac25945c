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
    _drop_cost_triggers()


def _name_sources() -> None:
    for table in ("deliveries", "calls"):
        op.add_column(table, sa.Column("source", sa.Text()))


def _drop_cost_triggers() -> None:
    """Cost items change with their call's `cost_total`, which has a trigger."""
    for name in ("added", "changed", "removed"):
        op.execute(f"DROP TRIGGER cost_items_{name}")
