"""The form that has a delivery read again, once what could not read it is fixed.

The form that has handlers called again, for one run or for a whole call.

Deletes a call for good, after a page that says what goes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..call_log.upkeep import forget
from ..call_log.upkeep.removal import Removal, Write
from ..call_log.upkeep.reprocess import Reread
from ..exceptions import StorageError
from ..operators import Operator
from ..runs.replay import Replayed, replay_call, replay_run
from .formats import read_number
from .pages import PageRequest, link

#: Reads a delivery again, and has its handlers called if it can be read at last.
RereadDelivery: TypeAlias = Callable[[int], Reread | None]


class RereadForm:
    """Takes which delivery to read again, and shows it with what came of it."""

    def __init__(self, reread: RereadDelivery) -> None:
        self._reread = reread

    def submit(self, request: Request, _: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /reread`; raises HTTPException for what is not there, and StorageError."""
        number = read_number(fields.get("delivery_id", ""))
        if number is None or self._reread(number) is None:
            raise HTTPException(404)
        shown = link(request, "delivery", {"reread": 1}, delivery_id=number)
        return RedirectResponse(shown, 303)


def subject_of(request: Request, fields: Mapping[str, str]) -> str | None:
    """Name the delivery, for the record."""
    return f"delivery {fields.get('delivery_id')}"


#: Does work in a transaction of the call log's one writer, and has the runs it wrote done.
Replay: TypeAlias = Callable[[Callable[[Connection], Replayed | None]], Replayed | None]


class ReplayForm:
    """Takes what a person asked for and shows the call again, with what became of it."""

    def __init__(self, replay: Replay, now: Callable[[], datetime]) -> None:
        self._replay = replay
        self._now = now

    def submit(self, request: Request, _: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /replay`; raises HTTPException for what is not there, and StorageError."""
        session_id = fields.get("session_id")
        if not session_id:
            raise HTTPException(404)
        replayed = self._replay(self._work(session_id, fields.get("run_id")))
        if replayed is None:
            raise HTTPException(404)
        told = _told(replayed) | {name: fields[name] for name in ("in",) if name in fields}
        return RedirectResponse(link(request, "call", told, session_id=session_id), 303)

    def _work(self, session_id: str, run_id: str | None) -> Callable[[Connection], Replayed | None]:
        now = self._now()
        if run_id is None:
            return lambda connection: replay_call(connection, session_id, now)
        number = read_number(run_id)
        if number is None:
            raise HTTPException(404)
        return lambda connection: replay_run(connection, number, now, unless_replaced=True)


def _told(replayed: Replayed) -> dict[str, object]:
    """Put what happened into the address, in numbers: the page says it in words."""
    return {
        "queued": replayed.queued,
        "forward": replayed.brought_forward,
        "skipped": sum(replayed.skipped.values()),
    }


@dataclass(frozen=True, slots=True)
class ForgetView:
    """What would go; `is_kept` if there is anything, or it has gone already."""

    session_id: str
    is_kept: bool
    goes: Removal
    remembers: bool
    live_count: int


class Forgetting:
    """Shows the page and takes its form."""

    def __init__(self, reader: Engine, write: Write, *, remembers: bool = False) -> None:
        """`remembers` says that the service may answer for a caller from memory (last_good)."""
        self._reader = reader
        self._write = write
        self._remembers = remembers

    def show(self, asked: PageRequest) -> ForgetView | None:
        """Build the page about the session that the query names. Raises StorageError."""
        session_id = asked.query.get("session_id")
        if not session_id:
            return None
        try:
            found = forget.find_session(self._reader, session_id)
            planned = forget.plan(self._reader, found)
        except SQLAlchemyError as error:
            raise StorageError("the call log could not be read") from error
        live_count = asked.log.live_count(now=asked.now)
        is_kept = bool(found.session_ids)
        return ForgetView(session_id, is_kept, planned, self._remembers, live_count)

    def submit(self, request: Request, _: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /forget`; raises HTTPException 409 for a call that is not done."""
        session_id = fields.get("session_id", "")
        try:
            found = forget.find_session(self._reader, session_id)
        except SQLAlchemyError as error:
            raise StorageError("the call log could not be read") from error
        gone = sum(forget.forget(self._write, found), Removal())
        if gone.kept:
            raise HTTPException(409)
        if not gone.total:
            raise HTTPException(404)
        return RedirectResponse(link(request, "forget", {"session_id": session_id}), 303)
