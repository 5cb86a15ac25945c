"""`export` writes calls to a file, `import` reads them, `copy` copies a whole call log."""

from __future__ import annotations

import sys
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn, TypeAlias, cast

import typer

from ..call_log.database import Database
from ..call_log.queries.filters import CallFilter
from ..call_log.redaction import redaction_of, results_redaction
from ..call_log.results import names_of
from ..call_log.transfer import copy as copying
from ..call_log.transfer.copy import count_rows, snapshot
from ..call_log.transfer.export import (
    ExportedCall,
    Format,
    Selection,
    lines,
    read_calls,
    select_calls,
)
from ..call_log.transfer.import_ import Document, Importer, Tally, entries, read_documents
from ..call_log.writer import Writer
from ..environment.sources import Given
from ..exceptions import ConfigError, PayloadError
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..settings import Settings
from .call_filters import takes_call_filters
from .common import is_served, new_file, open_log, record
from .options import SECRET_SOURCES, Force, read_secret
from .terminal import fail, note, print_table, progress

#: The standard input, or the standard output.
_STANDARD = Path("-")
#: Of what cannot be read, so many examples are printed.
_MOST_EXAMPLES = 5


Raw: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--raw",
        help="Hide nothing, not even secrets, so that the file can be imported. jsonl only.",
    ),
]
WithBom: TypeAlias = Annotated[
    bool,
    typer.Option("--bom", help="Start the csv with a byte order mark, so that Excel reads UTF-8."),
]
ForExcel: TypeAlias = Annotated[
    bool, typer.Option("--excel", help="Like --bom, with numbers and IDs as text.")
]


@takes_call_filters()
def export(
    filters: CallFilter,
    file: Annotated[
        Path, typer.Argument(help="File to write; standard output by default.")
    ] = _STANDARD,
    format_: Annotated[
        Format | None,
        typer.Option("--format", help="csv or jsonl; by default from the name of FILE, else csv."),
    ] = None,
    raw: Raw = False,
    bom: WithBom = False,
    excel: ForExcel = False,
    force: Force = False,
) -> None:
    """Export calls to a file, oldest first: all real ones, or a selection.

    csv has one row per call. A text that a spreadsheet would read as a formula gets an apostrophe
    in front; phone numbers (+1415...) and IDs (-Ox...) are unchanged.

    jsonl has one line per call, with all webhooks received for it. With --raw, millis-hooks import
    can read the file.

    Secrets are hidden. MILLIS_HOOKS_MASK_NUMBERS and MILLIS_HOOKS_MASK_TEXT apply.
    """
    chosen_format = format_ or ("jsonl" if file.suffix.lower() == ".jsonl" else "csv")
    _require_fitting(chosen_format, raw=raw, bom=bom, excel=excel)
    settings = Settings.load()
    policy = None if raw else MaskPolicy.of(settings)
    with open_log(settings) as database:
        with database.reader.connect() as connection:
            now, is_jsonl = datetime.now(UTC), chosen_format == "jsonl"
            selection = select_calls(connection, filters, now, with_loose=is_jsonl)
            names = names_of(connection)
        record(database, "export", f"{len(selection.calls):,} as {chosen_format}{', raw' * raw}")
        with _open_for_writing(file, force=force) as out:
            if bom or excel:
                out.write(BOM_UTF8)
            _write(database, selection, out, chosen_format, policy, names, for_excel=excel)
    note(f"Calls exported: {len(selection.calls):,}.")


def _require_fitting(chosen: Format, *, raw: bool, bom: bool, excel: bool) -> None:
    """Raise `ConfigError` for an option that is of another format."""
    if raw and chosen != "jsonl":
        raise ConfigError("--raw is for --format jsonl; other formats never show secrets.")
    for option, is_given in (("--bom", bom), ("--excel", excel)):
        if is_given and chosen != "csv":
            raise ConfigError(f"{option} is for --format csv; programs read the others.")


@contextmanager
def _open_for_writing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    if path != _STANDARD:
        with new_file(path, force=force) as file:
            yield file
    elif not sys.stdout.isatty():
        yield sys.stdout.buffer
    else:
        yield cast("BinaryIO", _TerminalOutput())


class _TerminalOutput(RawIOBase):
    """Prints UTF-8 on the terminal, without characters that the terminal would obey."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        text = self._decoder.decode(bytes(data)).replace("\r\n", "\n")
        typer.echo(printable(text), nl=False)
        return len(data)


def _write(
    database: Database,
    selection: Selection,
    out: BinaryIO,
    format_: Format,
    policy: MaskPolicy | None,
    names: Sequence[str],
    *,
    for_excel: bool,
) -> None:
    total, done = len(selection.calls) + len(selection.loose), 0
    selected = read_calls(database.reader, selection, with_deliveries=format_ == "jsonl")

    def counted() -> Iterator[ExportedCall]:
        nonlocal done
        for call in selected:
            yield call
            done += 1
            show_done(done)

    with progress(total, stopped=lambda: f"Stopped after {done:,} of {total:,}.") as show_done:
        for line in lines(counted(), format_, policy, result_names=names, for_excel=for_excel):
            out.write(line)


def import_calls(
    files: Annotated[
        list[Path],
        typer.Argument(help="JSON files; - is the standard input.", metavar="FILE"),
    ],
) -> None:
    """Import calls that export --raw wrote as jsonl, or Millis' call logs.

    Entries of the Millis API logs can be one per line, a list, or an answer of the API. Deliveries
    that the call log already has are skipped, so you can repeat an interrupted import.
    A missing call log is created. Handlers are not called for imported calls; use millis-hooks
    replay --handler for that.
    """
    unreadable, examples = 0, []
    with _importer(Settings.load()) as importer:
        tally = importer.tally
        with progress(
            _size(files),
            in_bytes=True,
            stopped=lambda: f"Stopped. {_result(tally)} Run the command again to continue.",
        ) as show_done:
            for path, document in _documents(files, show_done):
                for problem in _import(importer, document):
                    unreadable += 1
                    if unreadable <= _MOST_EXAMPLES:
                        name = "the standard input" if path == _STANDARD else path
                        examples.append(f"  {name}, line {document.line}: {problem}")
            importer.flush()
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
                database,
                writer,
                own_numbers=settings.own_numbers,
                mask=MaskPolicy.of(settings),
                redact=redaction_of(settings),
                redact_results=results_redaction(settings),
            )
        finally:
            writer.close()


def _size(files: Sequence[Path]) -> int | None:
    """Return how many bytes there are to read; None for the standard input."""
    try:
        return None if _STANDARD in files else sum(file.stat().st_size for file in files)
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
    if path == _STANDARD:
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

    Do not pass a URL with a password as an argument. `--to -` asks for it, and `--to env:NAME`
    reads it from a variable.
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
        with snapshot(from_log) as state:
            total = sum(count_rows(state).values())
        with progress(
            total, stopped=lambda: "Stopped. The database to copy to is empty: start again."
        ) as show_done:
            counts = copying.copy(from_log, to_log, show_done)
    rows = [(name, f"{number:,}") for name, number in counts.items() if number]
    print_table(("Table", "Rows"), rows)
    typer.echo("The copy is finished. Set MILLIS_HOOKS_DATABASE_URL to it, and start the service.")
