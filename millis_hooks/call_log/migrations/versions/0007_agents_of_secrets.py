"""The agent that a delivery's secret is bound to: nothing else may be made of it than that agent's
calls."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("deliveries", sa.Column("secret_agent", sa.Text))
