"""The schema of the call log: made at once where there is none, else upgraded by Alembic scripts.

A test holds the two ways to each other.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from ...exceptions import StorageError
from ..database import Database, describe
from ..search import CREATE_CALL_SEARCH
from ..tables import metadata

#: The newest script. Known here so that a new or up-to-date log opens without importing Alembic.
HEAD = "0003"
VERSION_TABLE = "millis_hooks_version"

_version_table = Table(
    VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True)
)


def migrate(database: Database) -> None:
    """Bring the schema up to date; several processes may call this at once.

    Raises `StorageError` if the database cannot be written or is newer than this program.
    """
    engine = database.open_for_migration()
    try:
        # BEGIN IMMEDIATE holds the write lock: whoever comes second waits, then finds it done.
        with engine.begin() as connection:
            if not inspect(connection).get_table_names():
                _create(connection)
            elif _version(connection) != HEAD:
                upgrade(connection)
    except SQLAlchemyError as error:
        raise StorageError(f"The call log cannot be prepared: {describe(error)}.") from error
    finally:
        engine.dispose()


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.scalar(select(_version_table.c.version_num))


def _create(connection: Connection) -> None:
    metadata.create_all(connection, checkfirst=False)
    connection.execute(CREATE_CALL_SEARCH)
    _version_table.create(connection)
    connection.execute(insert(_version_table).values(version_num=HEAD))


def upgrade(connection: Connection) -> None:
    """Apply the scripts that are missing; raises `StorageError` if the schema is a newer one."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageError(
            f"The call log has schema {_version(connection)}, this program knows up to {HEAD}. "
            "Install the newer millis_hooks that wrote it."
        ) from error
