"""The form that has handlers called again, for one run or for a whole call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TypeAlias

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..operators import Operator
from ..runs.replay import Replayed, replay_call, replay_run
from .forms import read_number
from .pages import link

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
