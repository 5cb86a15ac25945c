"""Exports calls as CSV or JSON lines, with the masking policy applied.

The calls are chosen at once, in one look at the log: calls that arrive later are not among them.
Each is then read in its turn, the first received first, so no write waits for an export, and memory
holds one number for each call (8 bytes) and a handful of calls.

CSV follows RFC 4180: commas, quotes where they are needed, CRLF; UTF-8, with a row of names first.
Times are ISO 8601 in UTC, booleans `true` and `false`, unknown values empty. A spreadsheet takes a
cell that begins with = + - @ for a formula, whatever its source. So a text that begins with one of
these (after blanks and control characters), with a tab or with a line break gets an apostrophe in
front, which spreadsheets read as "this is text". Phone numbers (`+` and digits) and ids (`-`, then
letters, digits, `-` and `_`) stay as they are, because programs look them up and cannot hold a
formula: `-Ox1demo` stays, `-1+1|cmd` and `-A1-B2`, which names cells, do not. A text that begins
with an apostrophe gets one more, so a program that removes one from every such text has what the
call log has.
"""

from __future__ import annotations

import csv
import io
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, TypeAlias

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Engine,
    exists,
    func,
    or_,
    select,
)

from ...masking.policy import MaskPolicy
from ..deliveries import Delivery
from ..queries.filters import CallFilter, is_overdue, wishes, within
from ..raw_body import length_of
from ..redaction import masked_columns, masked_delivery
from ..tables import calls, deliveries
from .lines import call_line

#: What is told of a call: its columns, without what is said of this log alone.
COLUMNS = tuple(
    column for column in calls.c if column.name not in {"id", "delivery_id", "unhandled"}
)

#: Plain text: SQLAlchemy has a kind of its own, which is slow to write as JSON.
_NAMES = tuple(str(column.name) for column in COLUMNS)
_AS_STORED = tuple(deliveries.c[name] for name in Delivery._fields)
#: Read at once: so many calls, and of their deliveries about so many bytes.
_CALLS = 250
_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chosen:
    """Numbers of rows: of `calls`, and of the `deliveries` that belong to no call."""

    calls: array[int]
    loose: array[int]


class Told(NamedTuple):
    """What is told of a call: `COLUMNS` by name, and its deliveries where they were asked for."""

    columns: Mapping[str, Any]
    deliveries: Sequence[Delivery] = ()


def choose(
    connection: Connection, wanted: CallFilter, now: datetime, *, with_loose: bool = False
) -> Chosen:
    """Choose the calls that are wanted, those that go on among them.

    `with_loose` also chooses what belongs to no call, where all calls are wanted.
    """
    by_time = select(calls.c.id).order_by(calls.c.received_at, calls.c.id)
    found = connection.scalars(by_time.where(*_conditions(wanted, now)))
    of_a_call = exists().where(calls.c.session_id == deliveries.c.session_id)
    apart = or_(deliveries.c.session_id.is_(None), ~of_a_call)
    loose = select(deliveries.c.id).where(apart).order_by(deliveries.c.id)
    is_all = with_loose and wanted == CallFilter(range="all")
    return Chosen(array("q", found), array("q", connection.scalars(loose) if is_all else ()))


def _conditions(wanted: CallFilter, now: datetime) -> Iterator[ColumnElement[bool]]:
    yield from within(*wanted.period(now))
    if wanted.outcome == "lost":
        yield is_overdue(now)
    for wish in wishes(wanted):
        # All calls are looked at, so what is searched for is better looked up once for all.
        searched = wish.ids if wish.search is not None else None
        yield wish.where if searched is None else calls.c.id.in_(searched)


def read_calls(
    engine: Engine, ids: Sequence[int], *, with_deliveries: bool = False
) -> Iterator[Told]:
    """Read these calls; one that is gone meanwhile is left out.

    Deliveries are in the order they were stored in.
    """
    for start in range(0, len(ids), _CALLS):
        part = ids[start : start + _CALLS]
        with engine.connect() as connection:
            rows = connection.execute(select(calls.c.id, *COLUMNS).where(calls.c.id.in_(part)))
            found = {id_: columns for id_, *columns in rows}
        told = [Told(dict(zip(_NAMES, found[id_], strict=True))) for id_ in part if id_ in found]
        yield from _with_deliveries(engine, told) if with_deliveries else told


def read_loose(engine: Engine, ids: Sequence[int]) -> Iterator[Told]:
    """Read these deliveries, each as if of a call of which nothing is known."""
    nothing = dict.fromkeys(_NAMES)
    for id_ in ids:
        one = select(*_AS_STORED).where(deliveries.c.id == id_)
        with engine.connect() as connection:
            row = connection.execute(one).one_or_none()
        if row is not None:
            yield Told(nothing, [Delivery(*row)])


def _with_deliveries(engine: Engine, told: Sequence[Told]) -> Iterator[Told]:
    columns = {call.columns["session_id"]: call.columns for call in told}
    for sessions in _by_size(engine, list(columns)):
        rows = _deliveries_of(engine, sessions)
        yield from (Told(columns[session], rows.get(session, ())) for session in sessions)


def _by_size(engine: Engine, sessions: Sequence[str]) -> Iterator[list[str]]:
    """Split sessions into parts, each with no more to read than fits well into memory."""
    size = func.sum(length_of(deliveries.c.body)).label("size")
    of_these = deliveries.c.session_id.in_(sessions)
    sums = select(deliveries.c.session_id, size).where(of_these).group_by(deliveries.c.session_id)
    with engine.connect() as connection:
        sizes = {row.session_id: row.size for row in connection.execute(sums)}
    part: list[str] = []
    filled = 0
    for session in sessions:
        if part and filled + sizes.get(session, 0) > _BYTES:
            yield part
            part, filled = [], 0
        part.append(session)
        filled += sizes.get(session, 0)
    yield part


def _deliveries_of(engine: Engine, sessions: Sequence[str]) -> dict[str, list[Delivery]]:
    of_these = select(*_AS_STORED).where(deliveries.c.session_id.in_(sessions))
    found: dict[str, list[Delivery]] = {}
    with engine.connect() as connection:
        for row in connection.execute(of_these.order_by(deliveries.c.id)):
            delivery = Delivery(*row)
            found.setdefault(str(delivery.session_id), []).append(delivery)
    return found


_MAY_BE_FORMULA = re.compile(r"['\t\r\n]|[\s\x00-\x20\x7f-\xa0\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]")
#: Of an id that reads as cells or numbers taken from one another, as `-A1-B2`, a sum is made.
_IS_NONE = re.compile(r"\+[0-9•]{1,20}|(?!(?:-[A-Za-z]{0,3}[0-9]{1,7})+\Z)-[-A-Za-z0-9_]{1,254}")


def guarded(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula."""
    if _MAY_BE_FORMULA.match(text) and not _IS_NONE.fullmatch(text):
        return f"'{text}"
    return text


def cell(value: object) -> object:
    """Return a value as it goes into a cell."""
    match value:
        case str():
            return guarded(value)
        case bool():
            return str(value).lower()
        case datetime():
            return value.isoformat()
    return value


class CsvRows:
    """Writes rows of CSV."""

    def __init__(self, to: BinaryIO, columns: Sequence[Column[Any]]) -> None:
        self._text = io.TextIOWrapper(to, encoding="utf-8", newline="")
        self._rows = csv.writer(self._text)
        self._rows.writerow([column.name for column in columns])

    def write(self, values: Iterable[object]) -> None:
        self._rows.writerow(map(cell, values))

    def close(self) -> None:
        self._text.detach()


Format: TypeAlias = Literal["csv", "jsonl"]


class _Export(Protocol):
    def write(self, told: Told) -> None: ...

    def close(self) -> None: ...


@contextmanager
def writing(to: BinaryIO, format_: Format, policy: MaskPolicy | None) -> Iterator[_Export]:
    """Write calls into a file, which is complete at the end of the block unless it raises.

    JSON lines need deliveries, and hide nothing where there is no policy.
    """
    export = _Lines(to, policy) if format_ == "jsonl" else _Table(to, policy)
    try:
        yield export
    finally:
        export.close()


class _Table:
    def __init__(self, to: BinaryIO, policy: MaskPolicy | None) -> None:
        self._rows = CsvRows(to, COLUMNS)
        self._policy = policy or MaskPolicy()
        self.close = self._rows.close

    def write(self, told: Told) -> None:
        self._rows.write(masked_columns(told.columns, self._policy).values())


class _Lines:
    def __init__(self, to: BinaryIO, policy: MaskPolicy | None) -> None:
        self._to = to
        self._policy = policy

    def write(self, told: Told) -> None:
        columns, deliveries = told
        if (policy := self._policy) is not None:
            columns = masked_columns(columns, policy)
            deliveries = [masked_delivery(delivery, policy) for delivery in deliveries]
        for piece in call_line(columns, deliveries, masked=policy is not None):
            self._to.write(piece)

    def close(self) -> None:
        self._to.flush()


_PIECE_BYTES = 64 * 1024


def export(
    connection: Connection,
    wanted: CallFilter,
    format_: Format,
    policy: MaskPolicy,
    *,
    now: datetime,
) -> Iterator[bytes]:
    """Choose calls, now, and return them as a file, the first received first."""
    chosen = choose(connection, wanted, now)
    return _pieces(connection.engine, chosen, format_, policy)


def _pieces(engine: Engine, chosen: Chosen, format_: Format, policy: MaskPolicy) -> Iterator[bytes]:
    to = BytesIO()
    with writing(to, format_, policy) as calls:
        for told in read_calls(engine, chosen.calls, with_deliveries=format_ == "jsonl"):
            calls.write(told)
            if to.tell() >= _PIECE_BYTES:
                yield _taken(to)
    yield _taken(to)


def _taken(buffer: BytesIO) -> bytes:
    piece = buffer.getvalue()
    buffer.seek(0)
    buffer.truncate()
    return piece
