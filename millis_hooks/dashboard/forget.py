"""The page that erases one call, or everything about a phone number, and the receipt of that.

A number is looked for in the whole log, so its page takes as long as reading that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial

from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from ..call_log.dialects import reading_errors
from ..call_log.queries.records import Call
from ..call_log.redaction import masked_call
from ..call_log.upkeep.removal import (
    MIN_DIGITS,
    Matches,
    Removal,
    Span,
    find_number,
    find_session,
    forget,
    is_number,
    mentions,
    plan_forgetting,
    span_of,
)
from ..call_log.writer import Write
from ..operators import AuditEntry, Operators
from ..protocol.phones import digits_of, looked_for
from .call_filters import Params, list_query, params_of, read_list
from .endpoints import Endpoints, OperatorRequest, only
from .formats import at, phone, read_number
from .pages import PageRequest

#: The most calls that are named on the page; the rest is counted.
_MOST_NAMED = 20
_LAST_DIGITS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class ForgetView:
    """What erasing would remove; `receipt` is the entry of the audit log once that is done.

    With neither a session nor a number it asks for one. `listed` is the query string of the list
    that the call was opened from, `params` the same as parameters.
    """

    session_id: str | None = None
    number: str | None = None
    refusal: str | None = None
    calls: tuple[Call, ...] = ()
    call_count: int = 0
    span: Span | None = None
    goes: Removal = field(default_factory=Removal)
    #: Other sessions that speak of the number, and stay.
    mentions: tuple[str, ...] = ()
    remembers: bool = False
    receipt: AuditEntry | None = None
    listed: str = ""
    params: Params

    @property
    def is_kept(self) -> bool:
        """Tell whether anything about it is stored."""
        return bool(self.goes.total or self.goes.kept)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The numbers of the one call that this is about: the customer's, else both."""
        call = self.calls[0] if self.session_id and self.calls else None
        if call is None:
            return ()
        both = (call.from_phone, call.to_phone)
        known = (call.customer_phone,) if call.customer_phone else both
        return tuple(number for number in known if number and is_number(number))


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The page, its form and the receipt. Own numbers are refused: every call is with one."""

    reader: Engine
    write: Write
    operators: Operators
    own_numbers: frozenset[str] = frozenset()
    #: The service may still answer for an erased caller (last_good).
    remembers: bool = False

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes."""
        receipt = "/forget/receipt.txt"
        yield endpoints.get(receipt, "forget_receipt", self._send_receipt, role="operate")
        yield from endpoints.page("/forget", "forget", self._show, role="operate")
        yield endpoints.form(
            "/forget",
            "forget_now",
            self._submit,
            page="forget",
            undone="deleted",
            draft=partial(only, names=("session_id", "number", "in")),
        )

    def _show(self, request: PageRequest) -> ForgetView:
        query = request.query
        filters = read_list(query.get("in"), request.zone)
        listed, params = list_query(filters), params_of(filters)
        session_id, number = query.get("session_id") or None, query.get("number", "").strip()
        refusal = self._refusal(number) if number and not session_id else None
        if refusal or not (session_id or number):
            return ForgetView(number=number, refusal=refusal, listed=listed, params=params)
        with reading_errors():
            matches = self._find(session_id, number)
            goes = plan_forgetting(self.reader, matches)
            spoken_of = () if session_id else mentions(self.reader, number, matches)
            span = span_of(self.reader, matches)
        named = (request.log.standing(each) for each in matches.session_ids[:_MOST_NAMED])
        mask = request.settings.mask
        calls = [masked_call(call, mask) for call in named if call is not None]
        return ForgetView(
            session_id=session_id,
            number=None if session_id else number,
            calls=tuple(sorted(calls, key=_received_at, reverse=True)),
            call_count=len(matches.session_ids),
            span=span,
            goes=goes,
            mentions=spoken_of,
            remembers=self.remembers,
            receipt=self._receipt(request),
            listed=listed,
            params=params,
        )

    def _refusal(self, number: str) -> str | None:
        """Return why nothing can be erased by this number."""
        if not is_number(number):
            return f"This is not a phone number. Write at least {MIN_DIGITS} digits: +14155550134."
        if digits_of(looked_for(number)) in map(digits_of, self.own_numbers):
            return "This is one of your own numbers: every call is with it."
        return None

    def _find(self, session_id: str | None, number: str) -> Matches:
        if session_id:
            return find_session(self.reader, session_id)
        return find_number(self.reader, looked_for(number))

    def _submit(self, request: OperatorRequest) -> Response:
        """Erase, and show the page with the receipt; 409 if nothing can be erased yet."""
        fields = request.fields
        session_id, number = fields.get("session_id") or None, fields.get("number", "").strip()
        if not session_id and (not number or self._refusal(number)):
            raise HTTPException(404)
        with reading_errors():
            matches = self._find(session_id, number)
            span = span_of(self.reader, matches)
        removed = sum(forget(self.write, matches), Removal())
        if not removed.total:
            raise HTTPException(409 if removed.kept else 404)
        entry = request.record("forget", session_id or _described(number, removed, span))
        subject = {"session_id": session_id} if session_id else {"number": number}
        listed = {"in": fields["in"]} if fields.get("in") else {}
        return request.redirect("forget", {**subject, **listed, "receipt": entry})

    def _receipt(self, request: PageRequest) -> AuditEntry | None:
        number = read_number(request.query.get("receipt", ""))
        if number is None or request.operator is None:
            return None
        entries = self.operators.audit_log(request.operator, before=number + 1, size=1)
        return next((e for e in entries if e.id == number and e.action == "forget"), None)

    def _send_receipt(self, request: OperatorRequest) -> Response:
        """Answer with a text for the file; the number is in it only if it was in the address."""
        page = request.page_request()
        entry = self._receipt(page)
        if entry is None:
            raise HTTPException(404)
        number = page.query.get("number", "").strip()
        is_of_number = is_number(number) and _ending(number) in (entry.subject or "")
        lines = {
            "Erased": entry.subject or "",
            "Number": phone(looked_for(number)) if is_of_number else "",
            "By": entry.operator or "",
            "At": at(entry.at, "%Y-%m-%d %H:%M:%S %Z", page.zone),
            "Audit log": f"entry {entry.id}",
        }
        written = (f"{name + ':':<11}{text}" for name, text in lines.items() if text)
        text = "\n".join(["Receipt of an erasure from the call log", "", *written, "", _STAYS])
        name = f"erasure-{entry.at:%Y-%m-%d}-{entry.id}.txt"
        return PlainTextResponse(
            text, headers={"Content-Disposition": f'attachment; filename="{name}"'}
        )


_STAYS = """Not part of this: backups and exports made before, records at Millis,
and what the handlers of the calls wrote to other systems.
"""


def _described(number: str, removed: Removal, span: Span | None) -> str:
    """Return an erasure in words, without the number."""
    text = f"a number {_ending(number)}: {removed}"
    return f"{text}, received {_day(span.first)} to {_day(span.last)}" if span else text


def _ending(number: str) -> str:
    return f"ending in {digits_of(number)[-_LAST_DIGITS:]}"


def _day(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d}"


def _received_at(call: Call) -> datetime:
    return call.received_at
