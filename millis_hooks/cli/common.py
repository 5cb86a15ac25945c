"""The call log and files as commands use them, and JSON output."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import typer
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.agents import stored_names
from ..call_log.database import Database, is_file
from ..call_log.locks import FileHolder
from ..call_log.migrations import HEAD, migrate, open_database
from ..call_log.upkeep.removal import Removal
from ..dashboard.formats import as_plain
from ..environment.private_files import make_private
from ..exceptions import ConfigError, StorageError
from ..operators import COMMAND_LINE, Action, audit
from ..protocol.agent_names import AgentNames
from ..runs.processes import processes_at_work
from ..settings import Settings
from .terminal import fail, note, progress

T = TypeVar("T")


def has_log(settings: Settings) -> bool:
    """Tell whether the call log may be opened: its file is there, or it is not a file."""
    file = Path(make_url(settings.database_url).database or "")
    return file.is_file() or not is_file(settings.database_url)


@contextmanager
def open_log(settings: Settings, *, may_create: bool = False) -> Iterator[Database]:
    """Open the call log; unlike the service, this upgrades none, and creates one only if it may.

    Raises `StorageError` for what SQLAlchemy raises inside.
    """
    if not may_create and not has_log(settings):
        file, option = make_url(settings.database_url).database, settings.name_of("database_url")
        fail(f"There is no call log {file}. {option} says where it is.")
    try:
        database = open_database(settings.database_url)
    except (ConfigError, StorageError) as error:
        # If the address came from an option, that is the name to correct.
        message = str(error).replace("MILLIS_HOOKS_DATABASE_URL", settings.name_of("database_url"))
        raise type(error)(message) from error.__cause__
    try:
        if may_create and database.schema_version() is None:
            migrate(database)
        _require_known_schema(database)
        yield database
    except SQLAlchemyError as error:
        raise StorageError("the call log could not be used") from error
    finally:
        database.close()


def _require_known_schema(database: Database) -> None:
    version = database.schema_version()
    if version is None:
        fail("There is no call log in this database yet. The service creates it when it starts.")
    if version < HEAD:
        fail("An older millis_hooks wrote this call log. The service upgrades it when it starts.")
    if version > HEAD:
        fail("A newer millis_hooks wrote this call log. Install that version.")


def is_served(database: Database) -> bool:
    """Tell whether a service runs on this call log."""
    if not database.is_file:
        with database.reader.connect() as connection:
            return bool(processes_at_work(connection))
    lock = FileHolder(database.runner_lock)
    try:
        return not lock.hold()
    except OSError:  # then no service could have made the file either
        return False
    finally:
        lock.let_go()


def paced(batches: Iterator[T], *, rests: bool) -> Iterator[T]:
    """Yield batch by batch; if it `rests`, a service can write for as long as each has taken."""
    began = time.perf_counter()
    for batch in batches:
        yield batch
        if rests:
            time.sleep(time.perf_counter() - began)
        began = time.perf_counter()


def remove(
    database: Database,
    batches: Iterator[Removal],
    planned: Removal,
    action: Action,
    *,
    details: str = "",
) -> Removal:
    """Remove batch by batch with a progress bar, and return what was removed.

    The audit log gets it, too, even if the command is interrupted.
    """
    removed = Removal()
    try:
        with progress(
            planned.total, stopped=lambda: f"Stopped. Removed so far: {removed}."
        ) as show_done:
            for batch in batches:
                removed += batch
                show_done(removed.total)
    finally:
        record(database, action, f"{removed}{details}")
    return removed


def note_kept(number: int) -> None:
    """Print how many calls stay, and why."""
    if number:
        note(f"Kept for now: {number:,}, as handlers are not done or deliveries not processed.")


def record(database: Database, action: Action, subject: str | None = None) -> None:
    """Write to the audit log what a command did; if it cannot be written, only note that."""
    try:
        with database.writer.begin() as connection:
            audit.record(connection, COMMAND_LINE, action, now=datetime.now(UTC), subject=subject)
    except SQLAlchemyError:
        note("The audit log could not be written.")


def agent_names(database: Database, settings: Settings) -> AgentNames:
    """Return the names of agents that the service stored, and those of the settings."""
    with database.reader.connect() as connection:
        return stored_names(connection, settings.agent_names)


def print_json(view: object, agents: AgentNames | None = None) -> None:
    """Print what the page's `.json` twin shows; JSON escapes what a terminal would obey."""
    typer.echo(json.dumps(_plain(view, agents), indent=2))


def print_json_line(view: object, agents: AgentNames | None = None) -> None:
    """Print JSON in one line, for programs that read line by line."""
    typer.echo(json.dumps(_plain(view, agents)))


def _plain(view: object, agents: AgentNames | None) -> Any:
    return as_plain(view, agents or AgentNames())


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Yield a file, readable by its owner only, that gets its name in one step at the end.

    An existing file is replaced only with `force`. Ends the command if it cannot be written.
    """
    _require_free(path, force=force)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        make_private(part, must_be_new=True)
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _require_free(path, force=force)
        part.replace(path)
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}.")
    finally:
        part.unlink(missing_ok=True)


def _require_free(path: Path, *, force: bool) -> None:
    if path.exists() and not path.is_file():
        fail(f"{path} is not a file. Give no FILE, or -, to write to the standard output.")
    if path.exists() and not force:
        fail(f"{path} exists. Add --force to replace it.")
