"""Run by Alembic: applies the scripts on the connection that `migrate` holds."""

from alembic import context

from ..tables import metadata
from . import VERSION_TABLE

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
context.run_migrations()
