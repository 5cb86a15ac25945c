"""Actions on a call: replay its handlers, read a delivery again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from sqlalchemy import Connection, Engine
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..call_log.writer import Write
from ..runs.replay import Replayed, replay_call, replay_runs
from .endpoints import Endpoints, OperatorRequest
from .formats import read_number
from .runs import write_notice

#: Fields of the form that chooses among the handlers of a call: one for each, and a few more.
_MOST_FIELDS = 120

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
        yield endpoints.form(
            "/replay",
            "replay",
            self._submit_replay,
            max_fields=_MOST_FIELDS,
            undone="replayed",
        )
        yield endpoints.form("/reread", "reread", self._submit_reread, undone="read again")

    def _submit_replay(self, request: OperatorRequest) -> Response:
        """Replay chosen runs, or all handlers of a call, and show the call at the first of them."""
        fields = request.fields
        session_id, run_ids = fields.get("session_id", ""), _chosen_runs(fields)
        if not session_id:
            raise HTTPException(404)
        now = request.page_request().now

        def work(connection: Connection) -> Replayed | None:
            if run_ids is None:
                return replay_call(connection, session_id, now)
            return replay_runs(connection, session_id, run_ids, now)

        replayed = Replayed() if run_ids == [] else self.replay(work)
        if replayed is None:
            raise HTTPException(404)
        if run_ids != []:
            request.record("replay", session_id)
        shown = next(iter((*replayed.run_ids, *(run_ids or ()))), None)
        return request.redirect(
            "call",
            {name: fields[name] for name in ("in",) if name in fields},
            notice=write_notice(replayed),
            fragment="runs" if shown is None else f"run-{shown}",
            session_id=session_id,
        )

    def _submit_reread(self, request: OperatorRequest) -> Response:
        """Process a delivery again and show it with the result."""
        number = read_number(request.fields.get("delivery_id", ""))
        if number is None or not self.reread(number):
            raise HTTPException(404)
        request.record("replay", f"delivery {number}")
        return request.redirect("delivery", {"reread": 1}, delivery_id=number)


def _chosen_runs(fields: Mapping[str, str]) -> list[int] | None:
    """Read which runs a form chose, by their ids; None if it names none and means all.

    Raises HTTPException 404 for an id that no run can have.
    """
    names = [name.removeprefix("run-") for name in fields if name.startswith("run-")]
    texts = [fields["run_id"]] if "run_id" in fields else names
    if not texts and "chosen" not in fields:
        return None
    numbers = [read_number(text) for text in texts]
    run_ids = [number for number in numbers if number is not None]
    if len(run_ids) < len(numbers):
        raise HTTPException(404)
    return run_ids
