"""Deletes a call for good, after a page that says what goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..call_log import forget
from ..call_log.removal import Removal, Write
from ..exceptions import StorageError
from ..operators import Operator
from .pages import Asked, link
from .parameters import Parameter


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

    query = (Parameter("session_id", "The session to delete."),)

    def __init__(self, reader: Engine, write: Write, *, remembers: bool = False) -> None:
        """`remembers` says that the service may answer for a caller from memory (last_good)."""
        self._reader = reader
        self._write = write
        self._remembers = remembers

    def show(self, asked: Asked) -> ForgetView | None:
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
