"""Actions on a call: replay its handlers, read a delivery again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection, Engine
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..call_log.writer import Write
from ..runs.replay import Replayed, replay_call, replay_run
from .endpoints import Endpoints, OperatorRequest
from .formats import read_number

#: Does work in a transaction of the call log's writer, and wakes the runner.
Replay: TypeAlias = Callable[[Callable[[Connection], Replayed | None]], Replayed | None]
#: Processes a delivery again; False if there is no such delivery.
RereadDelivery: TypeAlias = Callable[[int], bool]


@dataclass(frozen=True, slots=True)
class CallActions:
    """The forms of these actions, and what erasing takes (see `forget.py`).

    `remembers`: the service may still answer for an erased caller (last_good). `own_numbers` are
    those of the team.
    """

    reader: Engine
    write: Write
    replay: Replay
    reread: RereadDelivery
    own_numbers: frozenset[str] = frozenset()
    remembers: bool = False

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes of the forms."""
        yield endpoints.form("/replay", "replay", self._submit_replay)
        yield endpoints.form("/reread", "reread", self._submit_reread)

    def _submit_replay(self, request: OperatorRequest) -> Response:
        """Replay one run, or all handlers of a call, and show the call with the counts."""
        fields = request.fields
        session_id, run_id = fields.get("session_id", ""), fields.get("run_id")
        number = None if run_id is None else read_number(run_id)
        if not session_id or (run_id is not None and number is None):
            raise HTTPException(404)
        now = request.page_request().now

        def work(connection: Connection) -> Replayed | None:
            if number is None:
                return replay_call(connection, session_id, now)
            return replay_run(connection, number, now, unless_replaced=True)

        replayed = self.replay(work)
        if replayed is None:
            raise HTTPException(404)
        request.record("replay", session_id)
        query: dict[str, object] = {
            "queued": replayed.queued,
            "forward": replayed.brought_forward,
            "skipped": sum(replayed.skipped.values()),
        }
        query |= {name: fields[name] for name in ("in",) if name in fields}
        return request.redirect("call", query, session_id=session_id)

    def _submit_reread(self, request: OperatorRequest) -> Response:
        """Process a delivery again and show it with the result."""
        number = read_number(request.fields.get("delivery_id", ""))
        if number is None or not self.reread(number):
            raise HTTPException(404)
        request.record("replay", f"delivery {number}")
        return request.redirect("delivery", {"reread": 1}, delivery_id=number)
