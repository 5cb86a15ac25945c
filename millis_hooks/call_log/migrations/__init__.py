"""The schema of the call log, as Alembic scripts, and the one function that applies them."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from ...exceptions import StorageError
from ..database import Database, describe

#: The newest script. Known here so that an up-to-date log opens without importing Alembic.
HEAD = "0002"
VERSION_TABLE = "millis_hooks_version"


def migrate(database: Database) -> None:
    """Bring the schema up to date; several processes may call this at once.

    Raises `StorageError` if the database cannot be written or is newer than this program.
    """
    engine = database.open_for_migration()
    try:
        # BEGIN IMMEDIATE holds the write lock: whoever comes second waits, then finds it done.
        with engine.begin() as connection:
            if _version(connection) != HEAD:
                _upgrade(connection)
    except SQLAlchemyError as error:
        raise StorageError(f"The call log cannot be prepared: {describe(error)}.") from error
    finally:
        engine.dispose()


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table(VERSION_TABLE):
        return None
    return connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()  # noqa: S608


def _upgrade(connection: Connection) -> None:
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
