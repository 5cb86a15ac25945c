"""What is searched on PostgreSQL: in lower case, with a letter for each space, and indexed so."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        _fold()


def _fold() -> None:
    op.execute("DROP INDEX IF EXISTS ix_call_search_text")
    folded = "replace(lower(text), ' ', '\u01c0')"
    op.execute(f"ALTER TABLE call_search ADD folded TEXT GENERATED ALWAYS AS ({folded}) STORED")
    has_trigrams = "SELECT 1 FROM pg_extension WHERE extname = 'pg_trgm'"
    if op.get_bind().scalar(sa.text(has_trigrams)):
        op.execute(
            "CREATE INDEX ix_call_search_folded ON call_search USING gin (folded gin_trgm_ops)"
        )
