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


def _name_sources() -> None:
    for table in ("deliveries", "calls"):
        op.add_column(table, sa.Column("source", sa.Text()))
