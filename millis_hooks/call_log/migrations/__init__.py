"""Opens the call log, and brings its schema up to date: created at once, or upgraded by Alembic."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from sqlalchemy import Column, Connection, MetaData, String, Table, insert, select
from sqlalchemy.exc import SQLAlchemyError

from ...exceptions import StorageError
from ..database import VERSION_TABLE as VERSION_TABLE
from ..database import Database, is_file
from ..dialects import describe, is_locked, is_postgresql
from ..search import CREATE_CALL_SEARCH, MERGE_SELDOM
from ..tables import metadata

logger = logging.getLogger("millis_hooks.call_log")

#: The newest script. Known here so that a new or up-to-date log opens without importing Alembic.
HEAD = "0302"
#: The schema of the first release: earlier ones were never released, and are not upgraded.
_FIRST = "0302"
_SCRIPTS = Path(__file__).parent
#: How long a process waits while another may be upgrading, which a long log makes long.
UPGRADE_WAIT_S = 600.0

_version_table = Table(
    VERSION_TABLE, MetaData(), Column("version_num", String(32), primary_key=True)
)


def open_database(url: str) -> Database:
    """Open the call log that a URL names; raises as `Database` does, and `ConfigError`."""
    if not is_file(url):
        from ..postgres import PostgresDatabase

        return PostgresDatabase(url)
    return Database(url)


def migrate(database: Database) -> None:
    """Bring the schema up to date; several processes may call this at once.

    It is done in one transaction: a process that dies leaves the old schema behind, whole. Raises
    `StorageError` if the database cannot be written, is newer than this program, or was made
    before the first release.
    """
    deadline = time.monotonic() + UPGRADE_WAIT_S
    while (version := database.schema_version()) != HEAD:
        try:
            _prepare(database)
        except SQLAlchemyError as error:
            # A new log is soon made; who has it locked for longer does something else.
            if version is None or not is_locked(error) or time.monotonic() >= deadline:
                raise StorageError(
                    f"The call log cannot be prepared: {describe(error)}."
                ) from error
            logger.warning("the call log is locked: another process may be upgrading it; waiting")


def _prepare(database: Database) -> None:
    engine = database.open_for_migration()
    try:
        # A second process waits here, then finds it done.
        with engine.begin() as connection:
            database.lock_for_migration(connection)
            version = database.schema_version()
            if version is None:
                _create(connection)
            elif version != HEAD:
                _upgrade_aloud(connection, version)
    finally:
        engine.dispose()


def _upgrade_aloud(connection: Connection, version: str) -> None:
    if version < _FIRST:
        raise StorageError(
            f"The call log has schema {version}, of a millis_hooks that was never released. Run "
            "`millis-hooks export calls.jsonl --raw` with that version, and `millis-hooks import "
            "calls.jsonl` with this one, into a new call log."
        )
    logger.info("upgrading the call log from schema %s; nothing can be stored meanwhile", version)
    began = time.monotonic()
    upgrade(connection)
    logger.info("upgraded the call log to schema %s in %.1f s", HEAD, time.monotonic() - began)


def _create(connection: Connection) -> None:
    create_tables(connection)
    _version_table.create(connection)
    connection.execute(insert(_version_table).values(version_num=HEAD))


def create_tables(connection: Connection) -> None:
    """Create everything but the table of the version, in a database that has none of it."""
    if is_postgresql(connection):
        from ..postgres import create_schema

        create_schema(connection)
        return
    metadata.create_all(connection, checkfirst=False)
    connection.execute(CREATE_CALL_SEARCH)
    connection.execute(MERGE_SELDOM)


def _version(connection: Connection) -> str | None:
    return connection.scalar(select(_version_table.c.version_num))


def upgrade(connection: Connection) -> None:
    """Apply the scripts that are missing; raises `StorageError` if the schema is a newer one."""
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(_SCRIPTS))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StorageError(
            f"The call log has schema {_version(connection)}, this program knows up to {HEAD}. "
            "Install the newer millis_hooks that wrote it."
        ) from error
