"""Opens the call log for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from .terminal import fail

if TYPE_CHECKING:
    from ..call_log.database import Database
    from ..settings import Settings


@contextmanager
def opened(settings: Settings, *, may_make: bool = False) -> Iterator[Database]:
    """Open the call log as it is; unlike the service, this upgrades none, and makes one if it may.

    What SQLAlchemy raises inside becomes StorageError.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import SQLAlchemyError

    from ..call_log.database import is_file
    from ..call_log.migrations import migrate, open_database
    from ..exceptions import ConfigError, StorageError

    file = Path(make_url(settings.database_url).database or "")
    if is_file(settings.database_url) and not file.is_file() and not may_make:
        fail(f"There is no call log {file}. MILLIS_HOOKS_DATABASE_URL says where it is.")
    try:
        database = open_database(settings.database_url)
    except (ConfigError, StorageError) as error:
        # Where another name was given, that is the one to correct.
        said = str(error).replace("MILLIS_HOOKS_DATABASE_URL", settings.name_of("database_url"))
        raise type(error)(said) from error.__cause__
    try:
        if may_make and database.schema_version() is None:
            migrate(database)
        _require_known_schema(database)
        yield database
    except SQLAlchemyError as error:
        raise StorageError("the call log could not be used") from error
    finally:
        database.close()


def _require_known_schema(database: Database) -> None:
    from ..call_log.migrations import HEAD

    version = database.schema_version()
    if version is None:
        fail("There is no call log in this database yet. The service makes it when it starts.")
    if version < HEAD:
        fail("The call log is of an older millis_hooks. The service upgrades it when it starts.")
    if version > HEAD:
        fail("The call log is of a newer millis_hooks. Install that one.")
