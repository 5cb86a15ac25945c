"""A call as a line of JSON, and back.

A line is an object: `format` is `millis-hooks-call/1`, then come the columns of `calls` (times in
ISO 8601, UTC), and `deliveries` holds each request as it was stored, the first one first:

    kind            prefetch | end_of_call
    session_id, received_at, outcome, reason, status_code, latency_ms, content_type, query
    body_text       the bytes received where they are UTF-8, verbatim; else
    body_base64     the bytes received
    answer_text     the bytes we answered with where they are UTF-8; else
    answer_base64   the bytes we answered with; neither of the two where there are none
    redacted        true where numbers and words were masked before they were stored
    source          who sent it, unless Millis did
    dry_run         true where handlers were asked to do nothing in earnest
    trace           its context as W3C writes it, where calls are traced

A line whose `session_id` is null holds a delivery that belongs to no call. `masked` is true where
the line was made without `--raw`: something in it may be hidden, and it cannot be imported. The
columns are for whoever reads the file: an import takes `deliveries` and works them out again. What
handlers did is not in it.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

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
from pydantic_core import to_json

from ...exceptions import PayloadError
from ...protocol.reading import Json, read_json
from ..deliveries import Delivery, Kind
from ..sanitize import clean_text

FORMAT = "millis-hooks-call/1"

#: So much is told of where in a line something is wrong: its names are anybody's.
_WHERE_CHARS = 100


def call_line(
    told: Mapping[str, Any], deliveries: Iterable[Delivery], *, masked: bool
) -> Iterator[bytes]:
    """Return a call's line in pieces, the last of which ends it."""
    yield to_json({"format": FORMAT, **told, "masked": masked})[:-1] + b',"deliveries":['
    for number, delivery in enumerate(deliveries):
        yield (b"," if number else b"") + to_json(_object(delivery))
    yield b"]}\n"


def _object(delivery: Delivery) -> dict[str, object]:
    told: dict[str, object] = delivery._asdict()
    del told["imported"]  # that is for the log it goes into to say
    told |= _readable("body", told.pop("body")) | _readable("answer", told.pop("answer"))
    return told


def _readable(name: str, raw: object) -> dict[str, str]:
    if not isinstance(raw, bytes):
        return {}
    try:
        return {f"{name}_text": raw.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": b64encode(raw).decode()}


_EARLIEST, _LATEST = datetime(2000, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


def _decoded(value: object) -> bytes:
    if not isinstance(value, str):
        raise ValueError("Input should be base64")
    return b64decode(value, validate=True)


#: https://www.w3.org/TR/trace-context/#traceparent-header
_TRACEPARENT = r"^[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$"
_Text = Annotated[str, AfterValidator(clean_text)]
_Base64 = Annotated[bytes, BeforeValidator(_decoded)]


class _Stored(BaseModel):
    """A delivery as a line has it."""

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    received_at: Annotated[AwareDatetime, Field(ge=_EARLIEST, lt=_LATEST)]
    outcome: Literal[
        "fresh", "default", "last_good", "late", "failed", "stored", "unparsed", "rejected"
    ]
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


class _Line(BaseModel):
    """What an import takes from a line."""

    format: Literal["millis-hooks-call/1"]
    masked: Literal[False]
    deliveries: Annotated[list[_Stored], Field(min_length=1)]


def is_call_line(value: Mapping[str, Json]) -> bool:
    """Tell whether an object is a line of ours, whatever is in it."""
    return "format" in value and "deliveries" in value


def read_call_line(value: Mapping[str, Json]) -> list[Delivery]:
    """Return the deliveries of a line, as imported ones. Raises `PayloadError` if it is none."""
    if value.get("masked"):
        raise PayloadError("it is masked; export with --raw what is to be imported")
    try:
        line = _Line.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:_WHERE_CHARS]
        raise PayloadError(f"{where}: {first['msg']}") from None
    return [_delivery(stored) for stored in line.deliveries]


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
