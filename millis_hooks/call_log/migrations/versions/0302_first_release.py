"""The schema of the first release, as `tables.py` has it."""

from alembic import op

from millis_hooks.call_log.migrations import create_tables

revision = "0302"
down_revision = None


def upgrade() -> None:
    create_tables(op.get_bind())
