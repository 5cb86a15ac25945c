"""Reading from and writing to the terminal: safe text, tables, progress, questions and errors.

Standard output is written in any encoding: characters that the encoding lacks are replaced. If it
cannot be written, because the disk is full or the output is closed, the command fails; a reader
that has gone, as in `| head`, is not an error.
"""

from __future__ import annotations

import gc
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from ..exceptions import ConfigError, MillisHooksError, StorageError
from ..masking.error_report import printable

if TYPE_CHECKING:  # rich takes longer to import than typer: commands that print no table do without
    from rich.console import Console
    from rich.table import Table

#: Exit status of a command that was interrupted, as shells have it.
_INTERRUPTED = 130
#: Wide enough for every column if the output is not a terminal.
_PIPED_WIDTH = 200


class OutputError(Exception):
    """The output cannot be written."""


class _Output(io.FileIO):
    """A file descriptor whose errors say that the output cannot be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputError(f"The output cannot be written: {error.strerror}.") from error


class _ClosedOutput(io.StringIO):
    """Stands for an output that was closed before the command began."""

    def write(self, text: str) -> int:
        if text:
            raise OutputError("The output cannot be written: it is closed.")
        return 0


@contextmanager
def writable_output() -> Iterator[None]:
    """Set up the standard output for one command, and flush it at the end.

    Ends the process with status 2 if it cannot be written.
    """
    _open_closed_descriptors()
    if _is_file(sys.stdout):
        sys.stdout = _tolerant(sys.stdout)
    sys.stderr.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError as error:
        print(f"Error: {error}", file=sys.stderr)
        _exit(status=2)
    except BrokenPipeError:
        _exit(status=1)


def _open_closed_descriptors() -> None:
    """Keep an opened file from becoming the standard output of a process that has none."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - open to the end
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()


def _is_file(stream: Any) -> bool:
    try:
        return isinstance(stream, io.TextIOWrapper) and stream.fileno() >= 0
    except OSError:
        return False


def _tolerant(stream: Any) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=stream.isatty(),
    )


def _exit(*, status: int) -> NoReturn:
    """End without flushing what is still buffered, of which Python would complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    raise SystemExit(status)


def note(text: str) -> None:
    """Print to the standard error, beside output that may be piped."""
    typer.echo(printable(text), err=True)


def fail(text: str, *, status: int = 1) -> NoReturn:
    """Print an error and end the command."""
    note(f"Error: {text}")
    raise typer.Exit(status)


def print_error(error: MillisHooksError) -> None:
    """Print an error; if storage failed, with the driver's message."""
    message, cause = str(error), error.__cause__
    if isinstance(error, StorageError) and isinstance(cause, Exception):
        from ..call_log.dialects import describe  # imports SQLAlchemy, as what failed has done

        if (detail := describe(cause)) not in message:
            message += f" ({detail})"
    note(f"Error: {message}")


def confirm(question: str, *, refusal: str) -> None:
    """End the command unless the answer is yes; raises `ConfigError` without a terminal."""
    if not sys.stdin.isatty():
        raise ConfigError("Cannot ask, because this is not a terminal. Add --yes to continue.")
    if not typer.confirm(question):
        fail(refusal)


@contextmanager
def progress(
    total: int | None, *, in_bytes: bool = False, stopped: Callable[[], str] | None = None
) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on a terminal; yield a function that takes how much is done so far.

    Ctrl-C ends the command with what `stopped` returns.
    """
    gc.enable()  # commands that end soon do without: see `main`
    try:
        with _bar(total, in_bytes=in_bytes) as show_done:
            yield show_done
    except KeyboardInterrupt:
        if stopped is None:
            raise
        fail(stopped(), status=_INTERRUPTED)


@contextmanager
def _bar(total: int | None, *, in_bytes: bool) -> Iterator[Callable[[int], None]]:
    from rich.console import Console

    out = Console(stderr=True)
    if not out.is_terminal:
        yield lambda done: None
        return
    from rich import progress as bars

    count = bars.DownloadColumn() if in_bytes else bars.MofNCompleteColumn()
    columns = (bars.BarColumn(), count, bars.TimeRemainingColumn())
    with bars.Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda done: bar.update(task, completed=done)


def console() -> Console:
    """Return a console that interprets no markup and uses colors only on a terminal."""
    from rich.console import Console

    made = Console(markup=False, highlight=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPED_WIDTH
    return made


def table(*heads: str, show_heads: bool = True) -> Table:
    """Return a table without lines."""
    from rich.table import Table

    return Table(*heads, box=None, show_header=show_heads, pad_edge=False, padding=(0, 2, 0, 0))


def print_table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
    """Print rows of untrusted text below the heads; nothing if there is no row."""
    made = table(*heads)
    for row in rows:
        add_row(made, *row)
    if made.row_count:
        console().print(made)


def add_row(to: Table, *cells: str, one_line: bool = False) -> None:
    """Add a row of untrusted text; with `one_line` it is shortened rather than wrapped."""
    from rich.text import Text

    texts = (printable(cell, one_line=one_line) for cell in cells)
    to.add_row(*(Text(text, no_wrap=one_line, overflow="ellipsis") for text in texts))
