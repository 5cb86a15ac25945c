"""What is written to a terminal: text it must not obey, tables, and errors without a traceback."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from ..exceptions import MillisHooksError, StorageError
from ..printable import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

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
