"""Actions on calls: replay handlers, read a delivery again, retry the failed runs of a list.

Only so many failed runs are replayed for one form; those that are left stay on the page of retries,
to go on with.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import TypeAlias

from sqlalchemy import Connection
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ..call_log.queries.runs import (
    MOST_FAILED,
    FailedRun,
    failed_runs,
    newest_run,
    replayed_states,
    retryable_handlers,
)
from ..runs.replay import Replayed, replay_call, replay_failed, replay_runs
from .call_filters import (
    ActiveFilter,
    Params,
    active_filters,
    list_query,
    params_of,
    read_filter,
    read_list,
    read_time,
)
from .endpoints import Endpoints, OperatorRequest
from .formats import read_number
from .pages import PageRequest
from .runs import write_notice

#: Fields of the form that chooses among the handlers of a call: one for each, and a few more.
_MOST_FIELDS = 120

#: Does work in a transaction of the call log's writer, and wakes the runner.
Replay: TypeAlias = Callable[[Callable[[Connection], Replayed | None]], Replayed | None]
#: Processes a delivery again; False if there is no such delivery.
RereadDelivery: TypeAlias = Callable[[int], bool]
#: Runs that are replayed in one transaction: acknowledgements wait for it.
_BATCH = 200
#: Seconds after which no further batch is begun for one form.
_LONGEST_S = 3.0


@dataclass(frozen=True, slots=True)
class CallActions:
    """The forms of these actions, and the page of retries."""

    replay: Replay
    reread: RereadDelivery

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes of the forms, and of the page of retries with its fragment."""
        yield endpoints.form(
            "/replay",
            "replay",
            self._submit_replay,
            max_fields=_MOST_FIELDS,
            undone="replayed",
        )
        yield endpoints.form("/reread", "reread", self._submit_reread, undone="read again")
        yield endpoints.fragment("/live/retry", "live_retry", show_retry, role="operate")
        yield from endpoints.page("/retry", "retry", show_retry, role="operate")
        yield endpoints.form(
            "/retry", "retry_now", self._submit_retry, page="retry", undone="retried", draft=_list
        )

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
            notice=write_notice(replayed.run_ids, sum(replayed.skipped.values())),
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

    def _submit_retry(self, request: OperatorRequest) -> Response:
        """Replay failed runs of the list, of one handler or all, for a few seconds at most."""
        page, handler = request.page_request(), request.fields.get("handler")
        filters = read_list(request.fields.get("in"), page.zone)
        failed = page.log.ask(failed_runs, filters=filters, now=page.now)
        after = page.log.ask(newest_run)
        run_ids = [run.id for run in failed if handler in (None, run.handler)]
        done = self._replay_batches(run_ids, page.now)
        request.record("replay", f"failed runs: {done}")
        query = {**params_of(filters), "at": page.now.isoformat()}
        return request.redirect("retry", {**query, "after": after})

    def _replay_batches(self, run_ids: Sequence[int], now: datetime) -> Replayed:
        until, done = time.monotonic() + _LONGEST_S, Replayed()
        for start in range(0, len(run_ids), _BATCH):
            batch = run_ids[start : start + _BATCH]
            work = partial(replay_failed, run_ids=batch, now=now)
            done += self.replay(work) or Replayed()
            if time.monotonic() > until:
                break
        return done


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


def _list(fields: Mapping[str, str]) -> Params:
    """Return the parameters of the list that a form was for."""
    return params_of(read_list(fields.get("in")))


@dataclass(frozen=True, slots=True)
class FailedHandler:
    """A handler with failed runs; `refusal` is why they cannot be retried."""

    handler: str
    failed: int
    refusal: str | None


@dataclass(frozen=True, slots=True)
class Progress:
    """How the runs of one retry stand."""

    total: int
    waiting: int
    succeeded: int
    retrying: int
    failed: int


@dataclass(frozen=True, slots=True)
class RetryView:
    """What the page shows; `capped` if there may be more failed runs than were counted."""

    params: Params
    listed: str
    filters: tuple[ActiveFilter, ...]
    handlers: tuple[FailedHandler, ...]
    capped: bool
    progress: Progress | None
    query: Mapping[str, str]

    @property
    def retryable(self) -> int:
        """How many runs would be retried."""
        return sum(each.failed for each in self.handlers if each.refusal is None)


def show_retry(request: PageRequest) -> RetryView:
    """Build the page for the list that the query string describes."""
    filters = read_filter(request.query, request.zone)
    failed = request.log.ask(failed_runs, filters=filters, now=request.now)
    params = params_of(filters)
    return RetryView(
        params=params,
        listed=list_query(filters),
        filters=tuple(active_filters(params, request.zone)),
        handlers=tuple(_handlers(request, failed)),
        capped=len(failed) >= MOST_FAILED,
        progress=_progress(request),
        query={name: request.query[name] for name in ("at", "after") if name in request.query},
    )


def _handlers(request: PageRequest, failed: Sequence[FailedRun]) -> Iterator[FailedHandler]:
    repeatable = request.log.ask(retryable_handlers)
    for handler, count in sorted(Counter(run.handler for run in failed).items()):
        refusal = None if repeatable.get(handler) else "registered as not repeatable"
        yield FailedHandler(handler, count, refusal if handler in repeatable else "not registered")


def _progress(request: PageRequest) -> Progress | None:
    at = read_time(request.query.get("at"), request.zone)
    after = read_number(request.query.get("after", ""))
    if at is None or after is None:
        return None
    states = Counter(request.log.ask(replayed_states, after=after, at=at))
    waiting = states["pending"] + states["running"]
    total = sum(states.values())
    return Progress(total, waiting, states["succeeded"], states["retrying"], states["failed"])
