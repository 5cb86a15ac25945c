"""What is written to a terminal: text it must not obey, tables, and errors without a traceback.

The standard output as every command writes it: in any encoding, and with an end in words.

What the encoding lacks is replaced. Where the output cannot be written, because the disk is full or
the output was closed, that is an error of the command; a reader that has gone, as in `| head`, is
not.

A bar for what takes its time, beside the output that may be piped.

Times as people write them on a command line.

Writing a file that is there once it is complete, or not at all.

Opens the call log for a command.

Secrets that options take without their standing in the arguments, which `ps` and the shell's
history show: `-` reads a line of the standard input, `env:NAME` a variable, `file:PATH` a file.

Puts on record, for operators to see, what is done by command.
"""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import typer
from typer.core import TyperGroup

from ..environment.private_files import make_private
from ..exceptions import ConfigError, MillisHooksError, StorageError
from ..masking.error_report import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from ..call_log.database import Database
    from ..operators import Action
    from ..settings import Settings


class OutputError(Exception):
    """The output cannot be written: no command can do anything about that."""


class _Descriptor(io.FileIO):
    """A file descriptor that says in our words why it cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"The output cannot be written: {error.strerror}.") from error


@contextmanager
def writable_output() -> Iterator[None]:
    """Set up the standard output for one command, and see that all of it is written.

    Ends the process with status 2 where it cannot be.
    """
    _occupy_closed_descriptors()
    usual = sys.stdout
    if _is_a_file(usual):
        sys.stdout = _tolerant(usual)
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError as error:
        print(f"Error: {error}", file=sys.stderr)
        _leave(status=2)
    except BrokenPipeError:
        _leave(status=1)


def _occupy_closed_descriptors() -> None:
    """Keep a file of ours from becoming the standard output of a process that was given none."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open to the end
    if sys.stdout is None:
        sys.stdout = _Closed()


def _is_a_file(stream: Any) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    except OSError:
        return False


def _tolerant(usual: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(usual.fileno(), "wb", closefd=False)),
        encoding=usual.encoding,
        errors="replace",
        line_buffering=usual.isatty(),
    )


class _Closed(io.StringIO):
    """Stands for an output that was closed before the command began."""

    def write(self, text: str) -> int:
        if text:
            raise OutputError("The output cannot be written: it is closed.")
        return 0


def _leave(*, status: int) -> NoReturn:
    """End without a last try to write what is still held, of which Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(status)


@contextmanager
def progress(total: int | None, *, in_bytes: bool = False) -> Iterator[Callable[[int], None]]:
    """Show a bar, on a terminal only; yield what is told how much is done by now."""
    gc.enable()  # commands that end soon do without: see `main`
    from rich.console import Console

    out = Console(stderr=True)
    if not out.is_terminal:
        yield lambda done: None
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TimeRemainingColumn,
    )

    how_much = DownloadColumn() if in_bytes else MofNCompleteColumn()
    with Progress(BarColumn(), how_much, TimeRemainingColumn(), console=out, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def read_moment(text: str | None) -> datetime | None:
    """Read a date or a time; one that names no zone is UTC. Raises `ConfigError` for neither."""
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{text!r} is no date. Write it as 2026-11-01 or 2026-11-01T14:00."
        ) from None


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    """Yield a file, for its owner only, that gets its name at the end and in one step.

    One that has the name already is only replaced with `force`. Ends the command where the file
    cannot be written.
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
        fail(f"{path} is no file. Give no FILE, or -, to write to the standard output.")
    if path.exists() and not force:
        fail(f"{path} exists. Add --force to replace it.")


#: Wide enough for every column where no terminal says how wide it is.
_PIPED_WIDTH = 200

#: What shells say of a command that was interrupted.
INTERRUPTED = 130


class Commands(TyperGroup):
    """Commands whose expected errors are a message and exit status 2."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MillisHooksError as error:
            tell(error)
            raise typer.Exit(2) from None


def tell(error: MillisHooksError) -> None:
    """Print an error."""
    note(f"Error: {explain(error)}")


def explain(error: MillisHooksError) -> str:
    """Return an error's message, with the driver's own words where storage failed."""
    said, cause = str(error), error.__cause__
    if isinstance(error, StorageError) and isinstance(cause, Exception):
        from ..call_log.database import describe

        words = describe(cause)
        return said if words in said else f"{said} ({words})"
    return said


def note(text: str) -> None:
    """Tell the person something, beside the output that may be piped."""
    typer.echo(printable(text), err=True)


def fail(text: str, *, status: int = 1) -> NoReturn:
    """Print an error and end the command."""
    note(f"Error: {text}")
    raise typer.Exit(status)


def console() -> Console:
    """Return a console that takes nothing for markup and colours only a terminal."""
    from rich.console import Console

    made = Console(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPED_WIDTH
    return made


def table(*heads: str, show_heads: bool = True) -> Table:
    """Return a table without lines."""
    from rich.table import Table

    return Table(*heads, box=None, show_header=show_heads, pad_edge=False, padding=(0, 2, 0, 0))


def add_row(to: Table, *cells: str, one_line: bool = False) -> None:
    """Add a row of text from anywhere; with `one_line` it is shortened rather than wrapped."""
    from rich.text import Text

    shown = (printable(cell, one_line=one_line) for cell in cells)
    to.add_row(*(Text(cell, no_wrap=one_line, overflow="ellipsis") for cell in shown))


def print_json(view: object) -> None:
    """Print what the page's `.json` twin shows; JSON escapes what a terminal would obey."""
    typer.echo(json.dumps(_plain(view), indent=2))


def print_json_line(view: object) -> None:
    """Print it in one line, for what reads line by line."""
    typer.echo(json.dumps(_plain(view)))


def _plain(view: object) -> Any:
    from ..dashboard.pages import as_json

    return json.loads(bytes(as_json(view).body))


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


#: What the help of such an option says.
WAYS = "- asks or reads a line, env:NAME a variable, file:PATH a file"
_MAX_CHARS = 10_000


def given_secret(option: str, text: str | None) -> str | None:
    """Return the secret that an option was given, in whichever way; None without one.

    Raises `ConfigError` where there is none to be read.
    """
    from ..environment.sources import cleaned

    if text is None:
        return None
    kind, colon, name = text.partition(":")
    if text == "-":
        found = _ask(option)
    elif colon and kind == "env":
        found = os.environ.get(name, "")
    elif colon and kind == "file":
        found = _read(option, Path(name))
    else:
        return text

    secret = cleaned(found)
    if not isinstance(secret, str):
        raise ConfigError(f"{option} {text}: nothing is there.")
    return secret


def _ask(option: str) -> str:
    if sys.stdin.isatty():
        return str(typer.prompt(option.lstrip("-").capitalize(), hide_input=True, err=True))
    return sys.stdin.readline(_MAX_CHARS)


def _read(option: str, file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{option} {file}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option} {file}: it is not text in UTF-8.") from None


def record(database: Database, action: Action, subject: str | None = None) -> None:
    """Write down what a command did; a log that only can be read does not keep it from doing so."""
    from sqlalchemy.exc import SQLAlchemyError

    from ..operators import COMMAND_LINE, audit

    try:
        with database.writer.begin() as connection:
            audit.record(connection, COMMAND_LINE, action, now=datetime.now(UTC), subject=subject)
    except SQLAlchemyError:
        note("This could not be put on record: the call log cannot be written.")
