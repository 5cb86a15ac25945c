"""`import` reads calls from files; `copy` takes a whole call log to another database."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, BinaryIO, NoReturn

import typer

from ..call_log.database import Database
from ..call_log.redaction import redaction_of
from ..call_log.transfer import copy as copying
from ..call_log.transfer.copy import Counts, count_rows, snapshot
from ..call_log.transfer.import_ import Document, Importer, Tally, entries, read_documents
from ..call_log.writer import Writer
from ..environment.sources import Given
from ..exceptions import PayloadError
from ..settings import Settings
from .common import is_served, open_log
from .options import SECRET_SOURCES, read_secret
from .terminal import INTERRUPTED, add_row, console, fail, note, progress, table

_STDIN = Path("-")
#: Of what cannot be read, so many examples are printed.
_MOST_EXAMPLES = 5


def import_calls(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of JSON; - is the standard input.", metavar="FILE..."),
    ],
) -> None:
    """Import calls that export --raw wrote as jsonl, or Millis' call logs.

    Millis' entries may be one on each line, a list, or an answer of its API. What the log already
    has is left out, so an interrupted import can be started again. A missing call log is created.
    No handler is called for imported calls; millis-hooks replay --handler does that.
    """
    unreadable, examples = 0, []
    with _importer(Settings.load()) as importer:
        try:
            with progress(_size(files), in_bytes=True) as show_done:
                for path, document in _documents(files, show_done):
                    for problem in _import(importer, document):
                        unreadable += 1
                        if unreadable <= _MOST_EXAMPLES:
                            name = "the standard input" if path == _STDIN else path
                            examples.append(f"  {name}, line {document.line}: {problem}")
                importer.flush()
        except KeyboardInterrupt:
            result = _result(importer.tally)
            fail(f"Stopped. {result} Start again to go on.", status=INTERRUPTED)
    typer.echo(_result(importer.tally))
    if unreadable:
        note(f"Could not be read, and left out: {unreadable:,}")
        note("\n".join(examples))
        if unreadable > _MOST_EXAMPLES:
            note("  …")
        raise typer.Exit(1)


@contextmanager
def _importer(settings: Settings) -> Iterator[Importer]:
    with open_log(settings, may_create=True) as database:
        writer = Writer(database.writer)
        writer.start()
        try:
            yield Importer(
                database, writer, own_numbers=settings.own_numbers, redact=redaction_of(settings)
            )
        finally:
            writer.close()


def _size(files: Sequence[Path]) -> int | None:
    """Return how many bytes there are to read; None for the standard input."""
    try:
        return None if _STDIN in files else sum(file.stat().st_size for file in files)
    except OSError as error:
        _fail_to_read(error)


def _documents(
    files: Sequence[Path], show_done: Callable[[int], None]
) -> Iterator[tuple[Path, Document]]:
    done = 0
    for path in files:
        with _open(path) as file:
            for document in read_documents(file):
                yield path, document
                done += document.size
                show_done(done)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path == _STDIN:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        _fail_to_read(error)


def _fail_to_read(error: OSError) -> NoReturn:
    fail(f"{error.filename} cannot be read: {error.strerror}.")


def _import(importer: Importer, document: Document) -> Iterator[str]:
    """Import the calls of a document, and yield what is wrong with those that cannot be read."""
    if document.text is None:
        yield "too long to be read at once"
        return
    now = datetime.now(UTC)
    try:
        values = entries(document.text)
    except PayloadError as error:
        yield str(error)
        return
    for value in values:
        try:
            importer.take(value, now)
        except PayloadError as error:
            yield str(error)


def _result(tally: Tally) -> str:
    text = f"Deliveries imported: {tally.stored:,}; in the log already: {tally.known:,}."
    if tally.under_way:
        text += f" Calls in progress, left out: {tally.under_way:,}."
    return text


def copy(
    source: Annotated[
        str,
        typer.Option(
            "--from", help=f"The call log to copy: sqlite:///millis_hooks.db; {SECRET_SOURCES}."
        ),
    ],
    target: Annotated[
        str,
        typer.Option("--to", help=f"The database to copy it to, as --from; {SECRET_SOURCES}."),
    ],
) -> None:
    """Copy a whole call log into an empty database, from SQLite to PostgreSQL or back.

    No service may run on either. The source is only read, and the rows of each table are counted at
    the end. A copy that is interrupted leaves the database empty: start it again.

    Do not write an address with a password as an argument: `--to -` asks for it, and `--to
    env:NAME` reads it from a variable.
    """
    source_url, target_url = read_secret("--from", source), read_secret("--to", target)
    source_settings = Settings.load(database_url=Given(source_url, "--from"))
    target_settings = Settings.load(database_url=Given(target_url, "--to"))
    with (
        open_log(source_settings) as from_log,
        open_log(target_settings, may_create=True) as to_log,
    ):
        if is_served(to_log):
            fail("A service runs on the database to copy to. Stop it first.")
        if is_served(from_log):
            fail("A service runs on the source: what it receives meanwhile would not be copied.")
        try:
            counts = _copy(from_log, to_log)
        except KeyboardInterrupt:
            fail("Stopped. The database to copy to is empty: start again.", status=INTERRUPTED)
    _print_counts(counts)
    typer.echo("The copy is finished. Set MILLIS_HOOKS_DATABASE_URL to it, and start the service.")


def _copy(source: Database, target: Database) -> Counts:
    with snapshot(source) as state:
        total = sum(count_rows(state).values())
    with progress(total) as show_done:
        return copying.copy(source, target, show_done)


def _print_counts(counts: Counts) -> None:
    rows = table("Table", "Rows")
    for name, number in counts.items():
        if number:
            add_row(rows, name, f"{number:,}")
    console().print(rows)
