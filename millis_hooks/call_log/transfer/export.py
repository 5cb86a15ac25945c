"""Exports calls as CSV or JSON lines, with the masking policy applied.

The calls are selected at once: calls that arrive later are not among them.
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

A column `result.NAME` has the result NAME; of several handlers the first that has it. A column
`keep.NAME` has what a prefetch handler kept under NAME.

CSV for Excel has numbers and ids as `="+14155550134"`: it would make figures or errors of them.

JSON lines have one call each. A line is an object: `format` is `millis-hooks-call/1`, then come the
columns of `calls` (times in ISO 8601, UTC), `results` holds what handlers returned for the call
(`handler`, `name`, `value`), `kept` what prefetch handlers kept by `keep.NAME`, and `deliveries`
each request as it was stored, the first one first:

    kind            prefetch | function | end_of_call
    session_id, received_at, outcome, reason, status_code, latency_ms, content_type, query
    body_text       the bytes received where they are UTF-8, verbatim; else
    body_base64     the bytes received
    answer_text     the bytes we answered with where they are UTF-8; else
    answer_base64   the bytes we answered with; neither of the two where there are none
    redacted        true where numbers and words were masked before they were stored
    source          who sent it, unless Millis did
    dry_run         true where handlers were asked to skip side effects
    function        the name of the function that was called
    kept            what prefetch handlers kept, an object of JSON as text
    trace           its context as W3C writes it, where calls are traced

A line whose `session_id` is null holds a delivery that belongs to no call. `masked` is true where
the line was made without `--raw`: something in it may be hidden, and it cannot be imported. The
columns are for other programs: an import takes `deliveries` and derives them again, and `results`.
What else handlers did is not in it.
"""

from __future__ import annotations

import csv
import re
from array import array
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, exists, func, or_, select

from ...masking.policy import MaskPolicy
from ...protocol.results import Plain, Result
from ..deliveries import Delivery
from ..queries.filters import ALL_CALLS, CallFilter, conditions_of
from ..raw_body import length_of
from ..redaction import masked_columns, masked_delivery, masked_results, masked_values
from ..results import kept_of, names_of, results_of
from ..tables import KEPT, calls, deliveries

#: The columns of an exported call, without those that concern this log alone.
COLUMNS = tuple(
    column for column in calls.c if column.name not in {"id", "delivery_id", "unhandled"}
)
FORMAT = "millis-hooks-call/1"

#: Plain text: SQLAlchemy has a kind of its own, which is slow to write as JSON.
_NAMES = tuple(str(column.name) for column in COLUMNS)
_AS_STORED = tuple(deliveries.c[name] for name in Delivery._fields)
#: Read at once: the number of calls, and about the number of bytes of their deliveries.
_CALLS = 250
_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Selection:
    """Ids: of `calls`, and of the `deliveries` that belong to no call."""

    calls: array[int]
    loose: array[int]


class ExportedCall(NamedTuple):
    """`COLUMNS` of a call by name, its results, and its deliveries where they were asked for."""

    columns: Mapping[str, Any]
    results: Sequence[Result] = ()
    deliveries: Sequence[Delivery] = ()
    kept: Mapping[str, Plain] = {}


def select_calls(
    connection: Connection, filters: CallFilter, now: datetime, *, with_loose: bool = False
) -> Selection:
    """Select the calls that the filters let through, those in progress among them.

    `with_loose` also selects the deliveries that belong to no call, if no real call is left out.
    """
    by_time = select(calls.c.id).order_by(calls.c.received_at, calls.c.id)
    call_ids = connection.scalars(by_time.where(*conditions_of(filters, now)))
    of_a_call = exists().where(calls.c.session_id == deliveries.c.session_id)
    apart = or_(deliveries.c.session_id.is_(None), ~of_a_call)
    loose = select(deliveries.c.id).where(apart).order_by(deliveries.c.id)
    is_all = with_loose and replace(filters, source="all") == ALL_CALLS
    return Selection(array("q", call_ids), array("q", connection.scalars(loose) if is_all else ()))


def read_calls(
    engine: Engine, selection: Selection, *, with_deliveries: bool = False
) -> Iterator[ExportedCall]:
    """Read the selected calls and deliveries; what is gone meanwhile is left out.

    Deliveries are in the order they were stored in, and those of no call come last, each as a call
    of which nothing is known.
    """
    for start in range(0, len(selection.calls), _CALLS):
        part = selection.calls[start : start + _CALLS]
        with engine.connect() as connection:
            rows = connection.execute(select(calls.c.id, *COLUMNS).where(calls.c.id.in_(part)))
            by_id = {id_: dict(zip(_NAMES, columns, strict=True)) for id_, *columns in rows}
            results, kept = results_of(connection, part), kept_of(connection, part)
        read = [
            ExportedCall(by_id[id_], results.get(id_, ()), kept=kept.get(id_, {}))
            for id_ in part
            if id_ in by_id
        ]
        yield from _with_deliveries(engine, read) if with_deliveries else read
    for id_ in selection.loose:
        one = select(*_AS_STORED).where(deliveries.c.id == id_)
        with engine.connect() as connection:
            row = connection.execute(one).one_or_none()
        if row is not None:
            yield ExportedCall(dict.fromkeys(_NAMES), deliveries=[Delivery(*row)])


def _with_deliveries(engine: Engine, read: Sequence[ExportedCall]) -> Iterator[ExportedCall]:
    by_session = {call.columns["session_id"]: call for call in read}
    for sessions in _by_size(engine, list(by_session)):
        rows = _deliveries_of(engine, sessions)
        yield from (by_session[each]._replace(deliveries=rows.get(each, ())) for each in sessions)


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
    by_session: dict[str, list[Delivery]] = {}
    with engine.connect() as connection:
        for row in connection.execute(of_these.order_by(deliveries.c.id)):
            delivery = Delivery(*row)
            by_session.setdefault(str(delivery.session_id), []).append(delivery)
    return by_session


_MAY_BE_FORMULA = re.compile(r"['\t\r\n]|[\s\x00-\x20\x7f-\xa0\u200b-\u200f\ufeff]*[=+\-@＝＋－＠]")
#: Of an id that reads as cells or numbers taken from one another, as `-A1-B2`, a sum is made.
_IS_NONE = re.compile(r"\+[0-9•]{1,20}|(?!(?:-[A-Za-z]{0,3}[0-9]{1,7})+\Z)-[-A-Za-z0-9_]{1,254}")

#: What Excel takes for a formula or a number: phone numbers, ids, and digits it would round.
_IS_SPOILED = re.compile(rf"{_IS_NONE.pattern}|0[0-9]{{1,40}}|[0-9]{{12,40}}")


def guarded(text: str) -> str:
    """Return a text as a cell that no spreadsheet takes for a formula."""
    if _MAY_BE_FORMULA.match(text) and not _IS_NONE.fullmatch(text):
        return f"'{text}"
    return text


def as_text_cell(text: str) -> str:
    """Return a text as a cell that a spreadsheet shows as it is, also a number or an id."""
    return f'="{text}"' if _IS_SPOILED.fullmatch(text) else guarded(text)


def cell(value: object, text_cell: Callable[[str], str] = guarded) -> object:
    """Return a value as it goes into a cell."""
    match value:
        case str():
            return text_cell(value)
        case bool():
            return str(value).lower()
        case datetime():
            return value.isoformat()
    return value


Format: TypeAlias = Literal["csv", "jsonl"]


class _Encoder:
    """A file for `csv`, whose rows are returned and not kept."""

    def write(self, text: str) -> bytes:
        return text.encode()


def lines(
    exported: Iterable[ExportedCall],
    format_: Format,
    policy: MaskPolicy | None,
    *,
    result_names: Sequence[str] = (),
    for_excel: bool = False,
) -> Iterator[bytes]:
    """Yield calls as the lines of a file, or parts of lines.

    CSV has a line of names first, and a column for each of `result_names`. JSON lines need
    deliveries, and hide nothing where there is no policy. CSV `for_excel` has numbers and ids as
    `="+14155550134"`.
    """
    if format_ == "jsonl":
        for call in exported:
            yield from _json_line(call, policy)
        return
    mask, text_cell = policy or MaskPolicy(), as_text_cell if for_excel else guarded
    row = csv.writer(_Encoder()).writerow
    yield row([*_NAMES, *(_heading(name, mask) for name in result_names)])
    for call in exported:
        yield row(cell(value, text_cell) for value in _values(call, mask, result_names))


def _heading(name: str, mask: MaskPolicy) -> str:
    return mask.line(name if name.startswith(KEPT) else f"result.{name}")


def _values(
    call: ExportedCall, policy: MaskPolicy, result_names: Sequence[str]
) -> Iterator[object]:
    yield from masked_columns(call.columns, policy).values()
    results = masked_values(call.kept, policy)
    for each in call.results:
        (masked,) = masked_values({each.name: each.value}, policy).values()
        results.setdefault(each.name, masked)
    yield from map(results.get, result_names)


def _json_line(call: ExportedCall, policy: MaskPolicy | None) -> Iterator[bytes]:
    columns, results, stored, kept = call
    if policy is not None:
        columns, results = masked_columns(columns, policy), masked_results(results, policy)
        kept = masked_values(kept, policy)
        stored = [masked_delivery(delivery, policy) for delivery in stored]
    return call_line(columns, stored, results, kept, masked=policy is not None)


def call_line(
    columns: Mapping[str, Any],
    stored: Iterable[Delivery],
    results: Iterable[Result] = (),
    kept: Mapping[str, Plain] | None = None,
    *,
    masked: bool,
) -> Iterator[bytes]:
    """Return a call's line in pieces, the last of which ends it."""
    returned = [
        {"handler": each.handler, "name": each.name, "value": each.value} for each in results
    ]
    line = {"format": FORMAT, **columns, "masked": masked, "results": returned, "kept": kept or {}}
    yield to_json(line)[:-1] + b',"deliveries":['
    for number, delivery in enumerate(stored):
        yield (b"," if number else b"") + to_json(_object(delivery))
    yield b"]}\n"


def _object(delivery: Delivery) -> dict[str, object]:
    fields: dict[str, object] = delivery._asdict()
    del fields["imported"]  # that is for the log it goes into to say
    body, answer = fields.pop("body"), fields.pop("answer")
    return fields | _readable("body", body) | _readable("answer", answer)


def _readable(name: str, raw: object) -> dict[str, str]:
    if not isinstance(raw, bytes):
        return {}
    try:
        return {f"{name}_text": raw.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(raw).decode()}


_PIECE_BYTES = 64 * 1024


def export(
    connection: Connection,
    filters: CallFilter,
    format_: Format,
    policy: MaskPolicy,
    *,
    now: datetime,
    for_excel: bool = False,
) -> Iterator[bytes]:
    """Select calls, now, and return them as a file, the first received first."""
    selection = select_calls(connection, filters, now)
    exported = read_calls(connection.engine, selection, with_deliveries=format_ == "jsonl")
    names = names_of(connection)
    return _pieces(lines(exported, format_, policy, result_names=names, for_excel=for_excel))


def _pieces(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Put lines together: each piece that is sent costs a change of threads."""
    piece = bytearray()
    for line in lines:
        piece += line
        if len(piece) >= _PIECE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)
