"""Whether a refused request brought an accepted secret."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    brought: sa.Column[bool] = sa.Column(
        "brought_secret", sa.Boolean(), nullable=False, server_default=sa.false()
    )
    op.add_column("rejections", brought)
