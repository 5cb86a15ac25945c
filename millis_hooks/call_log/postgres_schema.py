"""The schema of the call log on PostgreSQL, where it differs from SQLite.

Text is compared by its bytes, as SQLite does, so lists have the same order on both and indexes are
small. Search uses trigrams where the extension pg_trgm is available, and reads every text where it
is not.
"""

from __future__ import annotations

import logging
from itertools import chain

from sqlalchemy import Connection, MetaData, Text, text
from sqlalchemy.dialects.postgresql import TEXT
from sqlalchemy.exc import SQLAlchemyError

from .database import describe
from .dialects import POSTGRESQL, SQLITE
from .postgres import CREATE_WRITERS
from .tables import Key, metadata

logger = logging.getLogger("millis_hooks.call_log")

CREATE_EXTENSION = "CREATE EXTENSION IF NOT EXISTS pg_trgm"
CREATE_SEARCH_INDEX = (
    "CREATE INDEX ix_call_search_folded ON call_search USING gin (folded gin_trgm_ops)"
)
_CREATE_CALL_SEARCH = """
CREATE TABLE call_search (
    rowid BIGINT PRIMARY KEY,
    text TEXT NOT NULL,
    folded TEXT NOT NULL
)
"""


def create_schema(connection: Connection) -> None:
    """Make all that is in no Alembic script of its own."""
    _by_bytes().create_all(connection, checkfirst=False)
    connection.execute(text(_CREATE_CALL_SEARCH))
    connection.execute(text(CREATE_WRITERS))
    _create_search_index(connection)


def _by_bytes() -> MetaData:
    copy = MetaData()
    for table in metadata.sorted_tables:
        for column in table.to_metadata(copy).columns:
            if isinstance(column.type, Text | Key):
                column.type = TEXT(collation="C")
    for index in chain.from_iterable(table.indexes for table in copy.tables.values()):
        index.dialect_options[POSTGRESQL]["where"] = index.dialect_options[SQLITE]["where"]
    return copy


def _create_search_index(connection: Connection) -> None:
    try:
        with connection.begin_nested():
            connection.execute(text(CREATE_EXTENSION))
            connection.execute(text(CREATE_SEARCH_INDEX))
    except SQLAlchemyError as error:
        logger.warning("searches read every text, as there is no pg_trgm: %s", describe(error))
