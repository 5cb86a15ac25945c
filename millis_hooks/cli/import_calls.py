"""`import`: calls from files, exported ones or Millis' own, into the call log."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, NoReturn

import typer

from ..exceptions import PayloadError
from .opened_log import opened
from .progress import progress
from .terminal import INTERRUPTED, fail, note

if TYPE_CHECKING:
    from ..call_log.transfer.documents import Document
    from ..call_log.transfer.importing import Importer, Tally
    from ..settings import Settings

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
    from ..settings import Settings

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
    from ..call_log.transfer.importing import Importer
    from ..call_log.writer import Writer
    from ..redaction import redacting

    with opened(settings, may_make=True) as database:
        writer = Writer(database.writer)
        writer.start()
        try:
            yield Importer(
                database, writer, own_numbers=settings.own_numbers, redact=redacting(settings)
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
    from ..call_log.transfer.documents import read_documents

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
    from ..call_log.transfer.importing import entries

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
