"""Imports calls from a file into the call log.

Each becomes deliveries that are stored and processed like webhooks, except that they are marked as
imported and no handler is called for them: handlers are for calls that have just ended. A delivery
that the log already has is left out, so an interrupted import is simply begun again.

A file has lines of `millis-hooks export --raw`, or entries of Millis' call logs: alone, in a list,
or in the object that Millis' API answers with (`{"histories": [...]}`), one value a line or one
value over many lines. An entry is stored as its end-of-call, in compact JSON, as if received when
the call ended.
"""

from __future__ import annotations

from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, BinaryIO, Literal, NamedTuple

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    FiniteFloat,
    ValidationError,
)
from sqlalchemy import Connection, Row, and_, func, or_, select

from ...exceptions import PayloadError
from ...masking.policy import SECRETS_ALONE, MaskPolicy
from ...protocol.call_status import UNDER_WAY
from ...protocol.events import EndOfCall
from ...protocol.functions import NAME
from ...protocol.reading import Json, describe, read_json
from ...protocol.results import MAX_CHARS, MAX_NAME_CHARS, MAX_NUMBER, Plain
from ..changed_days import mark_days
from ..database import Database
from ..deliveries import Delivery, Kind, content_hash, insert_deliveries
from ..missing_ends import delivery_of
from ..processing import Processor
from ..results import results_of, rows_of
from ..sanitize import MAX_KEY_CHARS, clean_id, clean_text
from ..statements import among, insert_rows
from ..tables import call_results, calls, deliveries
from ..writer import Writer

#: What is read into memory at once, in bytes: a line, or a file that is one value.
MAX_BYTES = 256 * 1024 * 1024

#: A first line like these is only the beginning of a value.
_BEGINNINGS = (b"[", b"{", b"[{")


class Document(NamedTuple):
    """The bytes of a value, and the line of the file on which it begins.

    `size` is how many bytes of the file it took; `text` is None where that is too many
    to be read at once.
    """

    line: int
    text: bytes | None
    size: int


def read_documents(file: BinaryIO, *, max_bytes: int = MAX_BYTES) -> Iterator[Document]:
    """Read a file value by value; blank lines count, and hold none."""
    number = 0
    while line := file.readline(max_bytes):
        number += 1
        if number == 1 and line.strip() in _BEGINNINGS:
            text = line + file.read(max_bytes)
            yield Document(number, text if len(text) <= max_bytes else None, len(text))
            return
        if len(line) == max_bytes and not line.endswith(b"\n"):
            yield Document(number, None, len(line) + _skip_line(file, max_bytes))
        elif line.strip():
            yield Document(number, line, len(line))


def _skip_line(file: BinaryIO, max_bytes: int) -> int:
    """Read to the end of the line, and return how many bytes that were."""
    size = 0
    while more := file.readline(max_bytes):
        size += len(more)
        if more.endswith(b"\n"):
            break
    return size


#: The lists in the answers of Millis' API: of `/call-logs` and of `/agents/{id}/call-histories`.
_LISTS = ("histories", "items")

#: Stored in one transaction: the number of deliveries, or about the number of bytes.
_DELIVERIES = 200
_BYTES = 2 * 1024 * 1024


class Incoming(NamedTuple):
    """A delivery from a file. Of Millis' entries the body tells whether the log has it, of our own
    also the time: a redelivery is a delivery of its own."""

    delivery: Delivery
    is_entry: bool = False
    #: What handlers returned for its call, by their names: with the first delivery of a line.
    results: Mapping[str, Mapping[str, Plain]] = MappingProxyType({})


@dataclass(slots=True)
class Tally:
    """How many deliveries were stored, were in the log already, and are of calls not yet over."""

    stored: int = 0
    known: int = 0
    under_way: int = 0


def entries(text: bytes) -> Sequence[Json]:
    """Return the calls that a line, or a file, of JSON holds; raises `PayloadError` for no JSON."""
    value = read_json(text)
    if isinstance(value, dict) and "session_id" not in value:
        value = next((value[name] for name in _LISTS if name in value), value)
    return value if isinstance(value, list) else [value]


def read_call(value: Json, now: datetime) -> list[Incoming]:
    """Return what a call brings along: nothing, if it is not over.

    Raises `PayloadError` for what is neither a line of an export nor an entry of Millis'.
    """
    if not isinstance(value, dict):
        raise PayloadError(f"not a call but {describe(value)}")
    if is_call_line(value):
        line = _read_line(value)
        results: dict[str, dict[str, Plain]] = {}
        for each in line.results:
            results.setdefault(each.handler, {})[each.name] = each.value
        first, *others = map(_delivery, line.deliveries)
        return [Incoming(first, results=results), *map(Incoming, others)]
    call = EndOfCall.from_raw(value)
    if call.call_status in UNDER_WAY:
        return []
    return [Incoming(delivery_of(call, now, imported=True), is_entry=True)]


#: The most characters that are shown of the place of a fault in a line: its names may be any text.
_WHERE_CHARS = 100
_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("Input should be base64")
    return b64decode(value, validate=True)


#: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_Text = Annotated[str, AfterValidator(clean_text)]
_Value = (
    Annotated[bool, Field(strict=True)]
    | Annotated[int, Field(strict=True, ge=-MAX_NUMBER, le=MAX_NUMBER)]
    | Annotated[FiniteFloat, Field(strict=True, ge=-MAX_NUMBER, le=MAX_NUMBER)]
    | Annotated[str, Field(max_length=MAX_CHARS)]
    | None
)
#: Results of one call, of all its handlers.
_MOST_RESULTS = 5_000
_Base64 = Annotated[bytes, BeforeValidator(_decoded)]


def _an_object(text: str) -> str:
    if not isinstance(read_json(text), dict):
        raise PayloadError("kept is not a JSON object")
    return text


class _Stored(BaseModel):
    """A delivery as a line has it."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    received_at: Annotated[AwareDatetime, Field(ge=_EARLIEST, lt=_LATEST)]
    outcome: Literal[
        "fresh", "cached", "default", "last_good", "answered", "invalid", "late", "failed",
        "stored", "unparsed", "rejected"
    ]  # fmt: skip
    status_code: Annotated[int, Field(ge=100, le=999)]
    session_id: _Text | None = None
    reason: _Text | None = None
    latency_ms: FiniteFloat | None = None
    content_type: _Text | None = None
    query: _Text | None = None
    answer_text: str | None = None
    answer_base64: _Base64 | None = None
    body_text: str | None = None
    body_base64: _Base64 | None = None
    redacted: bool = False
    source: _Text | None = None
    dry_run: bool = False
    trace: Annotated[str, Field(pattern=_TRACEPARENT)] | None = None
    secret_agent: _Text | None = None
    function: Annotated[str, Field(pattern=rf"^{NAME.pattern}\z")] | None = None
    kept: Annotated[_Text, AfterValidator(_an_object)] | None = None


class _Result(BaseModel):
    """A result as a line has it."""

    model_config = ConfigDict(extra="forbid")

    handler: Annotated[_Text, Field(min_length=1, max_length=MAX_KEY_CHARS)]
    name: Annotated[_Text, Field(min_length=1, max_length=MAX_NAME_CHARS)]
    value: _Value


class _Line(BaseModel):
    """The part of a line that is imported."""

    format: Literal["millis-hooks-call/1"]
    masked: Literal[False]
    deliveries: Annotated[list[_Stored], Field(min_length=1)]
    results: Annotated[list[_Result], Field(max_length=_MOST_RESULTS)] = []


def is_call_line(value: Mapping[str, Json]) -> bool:
    """Tell whether an object is a line of an export, whatever is in it."""
    return "format" in value and "deliveries" in value


def read_call_line(value: Mapping[str, Json]) -> list[Delivery]:
    """Return the deliveries of a line, as imported ones. Raises `PayloadError` if it is none."""
    return [_delivery(stored) for stored in _read_line(value).deliveries]


def _read_line(value: Mapping[str, Json]) -> _Line:
    if value.get("masked"):
        raise PayloadError("it is masked; export with --raw what is to be imported")
    try:
        return _Line.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:_WHERE_CHARS]
        raise PayloadError(f"{where}: {first['msg']}") from None


def _delivery(stored: _Stored) -> Delivery:
    """Return the delivery; what we answered a prefetch with was JSON, or it was not ours."""
    body, answer = stored.body_base64, stored.answer_base64
    fields = stored.model_dump(exclude={"body_text", "body_base64", "answer_text", "answer_base64"})
    delivery = Delivery(
        **fields,
        body=(stored.body_text or "").encode() if body is None else body,
        answer=_bytes(stored.answer_text) if answer is None else answer,
        imported=True,
    )
    if delivery.kind == "prefetch" and delivery.answer is not None:
        read_json(delivery.answer)
    return delivery


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


class Importer:
    """Stores and processes calls, in transactions of a few milliseconds."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        *,
        own_numbers: frozenset[str] = frozenset(),
        mask: MaskPolicy = SECRETS_ALONE,
        redact: Callable[[Delivery], Delivery] | None = None,
        redact_results: Callable[[Mapping[str, Plain]], Mapping[str, Plain]] = dict,
    ) -> None:
        """Pass every delivery through `redact`, and results through `redact_results`, before they
        are stored."""
        self.tally = Tally()
        self._redact = redact
        self._redact_results = redact_results
        self._writer = writer
        self._processor = Processor(
            database, writer, runs_for=lambda call: (), own_numbers=own_numbers, mask=mask
        )
        self._waiting: list[Incoming] = []
        self._bytes = 0

    def take(self, value: Json, now: datetime) -> None:
        """Take a call, and store all that wait when they are many; raises as `read_call` does."""
        brought = [self._storable(incoming) for incoming in read_call(value, now)]
        self.tally.under_way += not brought
        self._waiting += brought
        self._bytes += sum(len(incoming.delivery.body) for incoming in brought)
        if len(self._waiting) >= _DELIVERIES or self._bytes >= _BYTES:
            self.flush()

    def _storable(self, incoming: Incoming) -> Incoming:
        if self._redact is None or incoming.delivery.redacted:
            return incoming
        return incoming._replace(delivery=self._redact(incoming.delivery))

    def flush(self) -> None:
        """Store and process all that wait; once this returns, they are in the log."""
        waiting, self._waiting, self._bytes = self._waiting, [], 0
        rows = self._writer.run(lambda connection: _store(connection, waiting))
        self._processor.process([row.id for row in rows])
        results = {
            clean_id(each.delivery.session_id) or "": {
                handler: self._redact_results(values) for handler, values in each.results.items()
            }
            for each in waiting
            if each.results
        }
        if results:
            self._writer.run(partial(_import_results, results=results))
        self.tally.stored += len(rows)
        self.tally.known += len(waiting) - len(rows)


def _import_results(
    connection: Connection, results: Mapping[str, Mapping[str, Mapping[str, Plain]]]
) -> None:
    """Write results by session and handler; those that the log has of a handler stay."""
    called = select(calls.c.id, calls.c.session_id, calls.c.received_at)
    found = connection.execute(
        called.where(among(calls.c.session_id, "sessions")), {"sessions": list(results)}
    ).all()
    known = {
        (call_id, each.handler)
        for call_id, stored in results_of(connection, [row.id for row in found]).items()
        for each in stored
    }
    mark_days(connection, [row.received_at for row in found])
    for row in found:
        shared = {"call_id": row.id, "received_at": row.received_at, "run_id": None}
        for handler, values in results[row.session_id].items():
            if (row.id, handler) not in known:
                insert_rows(connection, call_results, rows_of(values, handler=handler, **shared))


def _store(connection: Connection, waiting: Sequence[Incoming]) -> Sequence[Row[Any]]:
    """Store what the log does not have, and return the rows of it."""
    newest = connection.scalar(select(func.coalesce(func.max(deliveries.c.id), 0)))
    insert_deliveries(connection, list(_unknown(connection, waiting)))
    # What a service stores meanwhile is left to it: it calls handlers, and an import does not.
    stored = select(deliveries.c.id).where(deliveries.c.id > newest, deliveries.c.imported)
    return connection.execute(stored.order_by(deliveries.c.id)).all()


def _unknown(connection: Connection, waiting: Sequence[Incoming]) -> Iterator[Delivery]:
    known = _known(connection, [incoming.delivery for incoming in waiting])
    for delivery, is_entry, _ in waiting:
        body = (delivery.kind, delivery.session_id, _hash(delivery.body))
        at = (*body, delivery.received_at)
        if (body if is_entry else at) not in known:
            known |= {body, at}
            yield delivery


def _known(connection: Connection, waiting: Sequence[Delivery]) -> set[tuple[Any, ...]]:
    """Return what tells the deliveries of these sessions: their bodies, and these with the time."""
    c = deliveries.c
    sessions = {delivery.session_id for delivery in waiting}
    apart = [delivery.received_at for delivery in waiting if delivery.session_id is None]
    these = or_(
        c.session_id.in_(sessions - {None}), and_(c.session_id.is_(None), c.received_at.in_(apart))
    )
    known = select(c.kind, c.session_id, c.content_hash, c.received_at).where(these)
    rows = connection.execute(known).all()
    return {row[:3] for row in rows} | {row[:] for row in rows}


def _hash(body: bytes) -> bytes | None:
    return content_hash(body) if body else None
