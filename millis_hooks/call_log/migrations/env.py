"""Run by Alembic: applies the scripts on the connection that `migrate` holds."""

from alembic import context

from millis_hooks.call_log.migrations import VERSION_TABLE
from millis_hooks.call_log.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
