"""`export`: calls as a file, for spreadsheets, for programs, or to be imported elsewhere."""

from __future__ import annotations

import sys
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

import typer

from ..exceptions import ConfigError
from ..printable import printable
from . import call_options as options
from .new_file import new_file
from .opened_log import opened
from .progress import progress
from .recorded import record
from .terminal import INTERRUPTED, fail, note

if TYPE_CHECKING:
    from ..call_log.database import Database
    from ..call_log.transfer.chosen import Chosen, Told
    from ..call_log.transfer.exporting import Format
    from ..masking import MaskPolicy

_STDOUT = Path("-")
_FORMATS = ("csv", "jsonl", "parquet")


def export(
    file: Annotated[
        Path, typer.Argument(help="The file to make; by default the standard output.")
    ] = _STDOUT,
    format_: Annotated[
        str | None,
        typer.Option(
            "--format", help="csv, jsonl or parquet; by default as FILE is called, or csv."
        ),
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

    parquet has the columns of csv, with their types; it needs pyarrow, as the extra parquet has it.

    Secrets are hidden, and what MILLIS_HOOKS_MASK_NUMBERS and MILLIS_HOOKS_MASK_TEXT say.
    """
    from ..call_log.transfer.chosen import choose
    from ..masking import MaskPolicy
    from ..settings import Settings

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
    with opened(settings) as database:
        with database.reader.connect() as connection:
            with_loose = chosen_format == "jsonl"
            chosen = choose(connection, wanted, datetime.now(UTC), with_loose=with_loose)
        record(database, "export", f"{len(chosen.calls):,} as {chosen_format}{', raw' * raw}")
        with _opened_for_writing(file, chosen_format, force=force) as to:
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
def _opened_for_writing(path: Path, format_: Format, *, force: bool) -> Iterator[BinaryIO]:
    if path != _STDOUT:
        with new_file(path, force=force) as file:
            yield file
    elif not sys.stdout.isatty():
        yield sys.stdout.buffer
    elif format_ == "parquet":
        raise ConfigError("Parquet is nothing for a terminal. Name a FILE.")
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
    from ..call_log.transfer.exporting import writing

    total, done = len(chosen.calls) + len(chosen.loose), 0
    try:
        with progress(total) as tell_done, writing(to, format_, policy) as calls:
            for done, told in enumerate(_read(database, chosen, format_), 1):
                calls.write(told)
                tell_done(done)
    except KeyboardInterrupt:
        fail(f"Stopped after {done:,} of {total:,}.", status=INTERRUPTED)


def _read(database: Database, chosen: Chosen, format_: Format) -> Iterator[Told]:
    from ..call_log.transfer.chosen import read_calls, read_loose

    engine = database.reader
    return chain(
        read_calls(engine, chosen.calls, with_deliveries=format_ == "jsonl"),
        read_loose(engine, chosen.loose),
    )
