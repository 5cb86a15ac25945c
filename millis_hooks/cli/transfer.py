"""`export`: calls as a file, for spreadsheets, for programs, or to be imported elsewhere.

`import`: calls from files, exported ones or Millis' own, into the call log.

`copy`: takes a whole call log to another database, of either kind.
"""

from __future__ import annotations

import sys
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, BinaryIO, NoReturn, cast

import typer
from sqlalchemy import Connection

from ..call_log.database import Database
from ..call_log.redaction import redaction_of
from ..call_log.transfer.copy import (
    Compared,
    begin,
    compare,
    copy_rows,
    count_rows,
    finish,
    last_ids,
    snapshot,
)
from ..call_log.transfer.export import Chosen, Format, Told, choose, read_calls, read_loose, writing
from ..call_log.transfer.import_ import Document, Importer, Tally, entries, read_documents
from ..call_log.writer import Writer
from ..environment.sources import Given
from ..exceptions import ConfigError, PayloadError
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..settings import Settings
from . import call_options as options
from .common import is_served, new_file, open_log, record
from .options import SECRET_SOURCES, read_secret
from .terminal import INTERRUPTED, add_row, console, fail, note, progress, table

_STDOUT = Path("-")
_FORMATS = ("csv", "jsonl")


def export(
    file: Annotated[
        Path, typer.Argument(help="The file to make; by default the standard output.")
    ] = _STDOUT,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="csv or jsonl; by default as FILE is called, or csv."),
    ] = None,
    q: options.Query = "",
    outcome: options.Outcome = None,
    status: options.Status = None,
    agent: options.Agent = None,
    channel: options.Channel = None,
    direction: options.Direction = None,
    number: options.Number = None,
    since: options.Since = None,
    until: options.Until = None,
    min_s: options.Least = None,
    max_s: options.Most = None,
    cost_min: options.CostLeast = None,
    cost_max: options.CostMost = None,
    metadata: options.Metadata = None,
    handler: options.HandlerState = None,
    unparsed: options.Unparsed = False,
    duplicate: options.Duplicate = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Hide nothing, secrets neither: to be imported. jsonl only."),
    ] = False,
    bom: Annotated[
        bool,
        typer.Option("--bom", help="Begin csv with a byte order mark, so that Excel reads UTF-8."),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Write calls to a file, the first received first: all of them, or those the options choose.

    csv has a row for each call. A text that a spreadsheet would take for a formula begins with an
    apostrophe there; phone numbers (+1415...) and ids (-Ox...) are left as they are.

    jsonl has a line for each call, with every webhook that was received for it. Made with --raw it
    is what millis-hooks import reads.

    Secrets are hidden, and what MILLIS_HOOKS_MASK_NUMBERS and MILLIS_HOOKS_MASK_TEXT say.
    """
    chosen_format = _format(format_, file)
    if raw and chosen_format != "jsonl":
        raise ConfigError("--raw is for --format jsonl; other formats never show secrets.")
    if bom and chosen_format != "csv":
        raise ConfigError("--bom is for --format csv; programs read the others.")
    wanted = options.read_filter(
        q=q,
        outcome=outcome,
        status=status,
        agent=agent,
        channel=channel,
        direction=direction,
        number=number,
        since=since,
        until=until,
        min_s=min_s,
        max_s=max_s,
        cost_min=cost_min,
        cost_max=cost_max,
        metadata=metadata,
        handler=handler,
        unparsed=unparsed,
        duplicate=duplicate,
    )
    settings = Settings.load()
    policy = None if raw else MaskPolicy.of(settings)
    with open_log(settings) as database:
        with database.reader.connect() as connection:
            with_loose = chosen_format == "jsonl"
            chosen = choose(connection, wanted, datetime.now(UTC), with_loose=with_loose)
        record(database, "export", f"{len(chosen.calls):,} as {chosen_format}{', raw' * raw}")
        with _opened_for_writing(file, force=force) as to:
            if bom:
                to.write(BOM_UTF8)
            _write(database, chosen, to, chosen_format, policy)
    note(f"Calls exported: {len(chosen.calls):,}.")


def _format(named: str | None, file: Path) -> Format:
    chosen = named or file.suffix.removeprefix(".").lower()
    if chosen not in _FORMATS:
        if named is not None:
            raise ConfigError(f"There is no format {named!r}. Known: {', '.join(_FORMATS)}.")
        chosen = "csv"
    return cast("Format", chosen)


@contextmanager
def _opened_for_writing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    if path != _STDOUT:
        with new_file(path, force=force) as file:
            yield file
    elif not sys.stdout.isatty():
        yield sys.stdout.buffer
    else:
        yield cast("BinaryIO", _Printed())


class _Printed(RawIOBase):
    """Prints UTF-8 on the terminal, without anything that it would obey."""

    def __init__(self) -> None:
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        text = self._decoder.decode(bytes(data)).replace("\r\n", "\n")
        typer.echo(printable(text), nl=False)
        return len(data)


def _write(
    database: Database, chosen: Chosen, to: BinaryIO, format_: Format, policy: MaskPolicy | None
) -> None:
    total, done = len(chosen.calls) + len(chosen.loose), 0
    try:
        with progress(total) as tell_done, writing(to, format_, policy) as calls:
            for done, told in enumerate(_read(database, chosen, format_), 1):
                calls.write(told)
                tell_done(done)
    except KeyboardInterrupt:
        fail(f"Stopped after {done:,} of {total:,}.", status=INTERRUPTED)


def _read(database: Database, chosen: Chosen, format_: Format) -> Iterator[Told]:
    engine = database.reader
    return chain(
        read_calls(engine, chosen.calls, with_deliveries=format_ == "jsonl"),
        read_loose(engine, chosen.loose),
    )


#: So many of the lines that cannot be read are told.
_TOLD = 5
_STDIN = Path("-")


class _Unreadable:
    """Counts what cannot be read, and keeps what is told of the first."""

    def __init__(self) -> None:
        self.count = 0
        self._told: list[str] = []

    def add(self, file: Path, line: int, why: str) -> None:
        self.count += 1
        if self.count <= _TOLD:
            name = "the standard input" if file == _STDIN else file
            self._told.append(f"  {name}, line {line}: {why}")

    def tell(self) -> None:
        note(f"Could not be read, and left out: {self.count:,}")
        note("\n".join(self._told))
        if self.count > _TOLD:
            note("  …")


def import_calls(
    files: Annotated[
        list[Path],
        typer.Argument(help="Files of JSON; - is the standard input.", metavar="FILE..."),
    ],
) -> None:
    """Read calls into the call log: what export --raw wrote as jsonl, or Millis' call logs.

    Millis' entries may be one on each line, a list, or an answer of its API. What the log has
    already is left out, so an import that was cut short is simply begun again. A log that is not
    there is made. No handler is called for what is imported; millis-hooks replay --handler does it.
    """
    unreadable = _Unreadable()
    with _importer(Settings.load()) as importer:
        try:
            with progress(_size(files), in_bytes=True) as tell_done:
                for file, document in _documents(files, tell_done):
                    _take(importer, file, document, unreadable)
                importer.flush()
        except KeyboardInterrupt:
            fail(f"Stopped. {_told(importer.tally)} Begin again to go on.", status=INTERRUPTED)
    typer.echo(_told(importer.tally))
    if unreadable.count:
        unreadable.tell()
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
    """Return how many bytes there are to read; None while nobody knows."""
    try:
        return None if _STDIN in files else sum(file.stat().st_size for file in files)
    except OSError as error:
        _cannot_be_read(error)


def _documents(
    files: Sequence[Path], tell_done: Callable[[int], None]
) -> Iterator[tuple[Path, Document]]:
    done = 0
    for path in files:
        with _open(path) as file:
            for document in read_documents(file):
                yield path, document
                done += document.size
                tell_done(done)


@contextmanager
def _open(path: Path) -> Iterator[BinaryIO]:
    if path == _STDIN:
        yield sys.stdin.buffer
        return
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        _cannot_be_read(error)


def _cannot_be_read(error: OSError) -> NoReturn:
    fail(f"{error.filename} cannot be read: {error.strerror}.")


def _take(importer: Importer, file: Path, document: Document, unreadable: _Unreadable) -> None:
    if document.text is None:
        unreadable.add(file, document.line, "too long to be read at once")
        return
    try:
        values = entries(document.text)
    except PayloadError as error:
        unreadable.add(file, document.line, str(error))
        return
    now = datetime.now(UTC)
    for value in values:
        try:
            importer.take(value, now)
        except PayloadError as error:
            unreadable.add(file, document.line, str(error))


def _told(tally: Tally) -> str:
    told = f"Deliveries imported: {tally.stored:,}; in the log already: {tally.known:,}."
    if tally.under_way:
        told += f" Calls that are not over, left out: {tally.under_way:,}."
    return told


_STOPPED = "Stopped. Nothing is lost: begin again to go on."
_TARGET_SERVED = "A service is at work on the log that is to be the copy. Stop it first."
_SOURCE_SERVED = (
    "A service is at work on the source, so the copy is not finished: what came since {since} UTC "
    "is missing. Stop the service and begin again; that takes over what has changed."
)
_MOVED = "The copy is finished. Set MILLIS_HOOKS_DATABASE_URL to it, and start the service."


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

    Both are compared at the end, row for row. One that was stopped is begun again and goes on. Let
    it run while the service is at work, then stop the service and copy again: the second time takes
    over what has changed since. Until it is finished no service starts on the copy. The source is
    only read.

    An address with a password does not belong into arguments: `--to -` asks for it, and `--to
    env:NAME` takes it from a variable.
    """
    here_url, there_url = read_secret("--from", source), read_secret("--to", target)
    with (
        _opened("--from", here_url) as here,
        _opened("--to", there_url, may_create=True) as there,
    ):
        try:
            _copy(here, there)
        except KeyboardInterrupt:
            fail(_STOPPED, status=INTERRUPTED)


@contextmanager
def _opened(option: str, url: str | None, *, may_create: bool = False) -> Iterator[Database]:
    settings = Settings.load(database_url=Given(url, option))
    with open_log(settings, may_create=may_create) as database:
        yield database


def _copy(source: Database, target: Database) -> None:
    if is_served(target):
        fail(_TARGET_SERVED)
    if begin(source, target):
        note("Going on with an earlier copy.")
    since, served = datetime.now(UTC), is_served(source)
    with snapshot(source) as state:
        _copy_rows(state, target)
        compared = _compare(state, target)
        ids = last_ids(state)
    _show(compared)
    if wrong := [each.table for each in compared if not each.is_same]:
        fail(f"Not the same on both sides: {', '.join(wrong)}. Begin again, that mends it.")
    if served or is_served(source):
        fail(_SOURCE_SERVED.format(since=f"{since:%Y-%m-%d %H:%M:%S}"))
    finish(target, ids)
    typer.echo(_MOVED)


def _copy_rows(state: Connection, target: Database) -> None:
    with progress(count_rows(state)) as tell_done:
        for done in copy_rows(state, target):
            tell_done(done)


def _compare(state: Connection, target: Database) -> list[Compared]:
    with snapshot(target) as copied:
        total = count_rows(state) + count_rows(copied)
        with progress(total) as tell_done:
            return list(compare(state, copied, tell_done))


def _show(compared: list[Compared]) -> None:
    shown = table("Table", "Rows", "Hash")
    for each in compared:
        if each.source.rows or not each.is_same:
            add_row(shown, each.table, f"{each.source.rows:,}", each.source.digest)
    console().print(shown)
