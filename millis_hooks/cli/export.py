"""`export` writes calls to a file, for spreadsheets, for programs, or to import them elsewhere."""

from __future__ import annotations

import sys
from codecs import BOM_UTF8, getincrementaldecoder
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from io import RawIOBase
from pathlib import Path
from typing import Annotated, Any, BinaryIO, cast

import typer

from ..call_log.database import Database
from ..call_log.queries.filters import CHANNELS, DIRECTIONS, HANDLER_STATES, OUTCOMES, CallFilter
from ..call_log.transfer.export import Format, Selection, read_calls, select_calls, writing
from ..exceptions import ConfigError
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..settings import Settings
from .common import new_file, open_log, record
from .options import Force, Since, Until, read_pair, read_time, require_known
from .terminal import INTERRUPTED, fail, note, progress

_STDOUT = Path("-")
_FORMATS = ("csv", "jsonl")


def export(
    file: Annotated[
        Path, typer.Argument(help="The file to write; by default the standard output.")
    ] = _STDOUT,
    format_: Annotated[
        str | None,
        typer.Option("--format", help="csv or jsonl; by default from FILE's name, or csv."),
    ] = None,
    q: Annotated[
        str, typer.Option("--q", help="Text of the transcript, or a part of a number or an id.")
    ] = "",
    outcome: Annotated[
        str | None,
        typer.Option(
            help="completed, chat, voicemail, timeout, unreached, error, or lost: no end."
        ),
    ] = None,
    status: Annotated[
        list[str] | None,
        typer.Option(help="Millis' status, as user-ended; several are alternatives."),
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(help="An agent's id; several are alternatives.")
    ] = None,
    channel: Annotated[str | None, typer.Option(help="phone, web or chat.")] = None,
    direction: Annotated[str | None, typer.Option(help="inbound or outbound.")] = None,
    number: Annotated[
        str | None, typer.Option(help="A phone number of either side, in any spelling.")
    ] = None,
    since: Since = None,
    until: Until = None,
    min_s: Annotated[float | None, typer.Option("--min", help="At least so many seconds.")] = None,
    max_s: Annotated[float | None, typer.Option("--max", help="At most so many seconds.")] = None,
    cost_min: Annotated[float | None, typer.Option(help="At least so many credits.")] = None,
    cost_max: Annotated[float | None, typer.Option(help="At most so many credits.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(
            "--meta", help="Has this metadata; several must all match.", metavar="KEY=VALUE"
        ),
    ] = None,
    handler: Annotated[
        str | None, typer.Option(help="retrying or failed: has such a run; none: no handler ran.")
    ] = None,
    unparsed: Annotated[
        bool, typer.Option("--unparsed", help="A delivery for it could not be read.")
    ] = False,
    duplicate: Annotated[
        bool, typer.Option("--duplicate", help="Its end was received more than once.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Hide nothing, not even secrets: to import it. jsonl only."),
    ] = False,
    bom: Annotated[
        bool,
        typer.Option("--bom", help="Begin csv with a byte order mark, so that Excel reads UTF-8."),
    ] = False,
    force: Force = False,
) -> None:
    """Write calls to a file, oldest first: all, or a selection.

    csv has a row for each call. A text that a spreadsheet would take for a formula begins with an
    apostrophe; phone numbers (+1415...) and ids (-Ox...) are unchanged.

    jsonl has a line for each call, with every webhook that was received for it. With --raw it is
    what millis-hooks import reads.

    Secrets are hidden, and what MILLIS_HOOKS_MASK_NUMBERS and MILLIS_HOOKS_MASK_TEXT say.
    """
    chosen_format = _format(format_, file)
    if raw and chosen_format != "jsonl":
        raise ConfigError("--raw is for --format jsonl; other formats never show secrets.")
    if bom and chosen_format != "csv":
        raise ConfigError("--bom is for --format csv; programs read the others.")
    require_known("outcome", outcome, OUTCOMES)
    require_known("channel", channel, CHANNELS)
    require_known("direction", direction, DIRECTIONS)
    require_known("handler state", handler, HANDLER_STATES)
    filters = CallFilter(
        range="all",
        q=q,
        outcome=outcome,
        status=tuple(status or ()),
        agent=tuple(agent or ()),
        channel=channel,
        direction=direction,
        number=number,
        since=read_time(since),
        until=read_time(until),
        min_s=min_s,
        max_s=max_s,
        cost_min=cost_min,
        cost_max=cost_max,
        metadata=tuple(read_pair("--meta", pair) for pair in metadata or ()),
        handler=handler,
        unparsed=unparsed,
        duplicate=duplicate,
    )
    settings = Settings.load()
    policy = None if raw else MaskPolicy.of(settings)
    with open_log(settings) as database:
        with database.reader.connect() as connection:
            now, is_jsonl = datetime.now(UTC), chosen_format == "jsonl"
            selection = select_calls(connection, filters, now, with_loose=is_jsonl)
        record(database, "export", f"{len(selection.calls):,} as {chosen_format}{', raw' * raw}")
        with _open_for_writing(file, force=force) as out:
            if bom:
                out.write(BOM_UTF8)
            _write(database, selection, out, chosen_format, policy)
    note(f"Calls exported: {len(selection.calls):,}.")


def _format(name: str | None, file: Path) -> Format:
    require_known("format", name, _FORMATS)
    suffix = file.suffix.removeprefix(".").lower()
    return cast("Format", name or (suffix if suffix in _FORMATS else "csv"))


@contextmanager
def _open_for_writing(path: Path, *, force: bool) -> Iterator[BinaryIO]:
    if path != _STDOUT:
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
) -> None:
    total, done = len(selection.calls) + len(selection.loose), 0
    selected = read_calls(database.reader, selection, with_deliveries=format_ == "jsonl")
    try:
        with progress(total) as show_done, writing(out, format_, policy) as write:
            for done, call in enumerate(selected, 1):
                write(call)
                show_done(done)
    except KeyboardInterrupt:
        fail(f"Stopped after {done:,} of {total:,}.", status=INTERRUPTED)
