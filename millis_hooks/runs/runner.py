"""Executes pending runs: claims them, calls their handlers, and records how attempts ended.

One thread decides everything. Each of its turns is one transaction, which records the attempts that
have ended and claims as many runs as there are slots for. Handlers get the end-of-call of the run,
or, of `on_failed`, the run that failed.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from sqlalchemy import Connection, Engine, Row, and_, func, select
from sqlalchemy.exc import SQLAlchemyError

from ..call_log.call_ends import ReadEnds, read_whole
from ..call_log.statements import Prepared, among
from ..call_log.tables import attempts, calls, deliveries, handler_runs
from ..call_log.writer import Writer
from ..exceptions import HandlerError, HandlerTimeoutError, StorageError
from ..handlers.executor import Executor
from ..handlers.handler_call import (
    ANSWERING,
    DEFAULT_TIMEOUT_S,
    NOTHING_AROUND,
    Around,
    Handler,
    HandlerCall,
    HandlerResult,
)
from ..handlers.retries import FailedRun
from ..handlers.routing import Router
from ..masking.error_report import describe_failure
from ..observability.log_records import Attempt, log_attempt, trace_id
from ..observability.metrics import Role, RunnerStatus
from ..protocol.events import EndOfCall
from ..protocol.memory import AnsweredPrefetch
from ..protocol.results import Plain, Results, read_results
from . import store
from .concurrency import HungHandlers, Key, Slots, key_of
from .outcome import HandedBackError, end_of_attempt
from .processes import Coordinator
from .store import AttemptEnd, ClaimedRun

if TYPE_CHECKING:
    from ..observability.tracing import Tracing

#: Takes hook, handler, outcome and seconds of an attempt.
CountAttempt: TypeAlias = Callable[[str, str, str, float], None]

#: The bodies of calls and their sources, by the id of the call.
Bodies = dict[int, Row[Any]]


def read_bodies(reader: Engine, runs: Iterable[ClaimedRun]) -> Bodies:
    """Read the end-of-call of each run; raises SQLAlchemy's errors."""
    with reader.connect() as connection:
        rows = _BODIES(connection, {"ids": list({run.call_id for run in runs})})
        return {row.id: row for row in rows}


def event_of(
    reader: Engine,
    run: ClaimedRun,
    bodies: Bodies,
    *,
    own_numbers: frozenset[str],
    read_ends: ReadEnds,
) -> EndOfCall | FailedRun:
    """Return what the handler is called with.

    Raises PayloadError if the stored body can no longer be read, KeyError if it is gone, and
    SQLAlchemy's errors.
    """
    end = bodies[run.call_id]
    call = None if end.repeated else read_ends.take(end.delivery_id)
    call = call or _merged(reader, end, own_numbers)
    call._change, call._prefetch = run.change, _prefetch(end)
    call.mark(source=end.source, dry_run=end.dry_run)
    if run.failed_run_id is None:
        return call
    with reader.connect() as connection:
        return _failed_run(connection, run.failed_run_id, call)


def _prefetch(end: Row[Any]) -> AnsweredPrefetch | None:
    if end.prefetch_outcome is None:
        return None
    return AnsweredPrefetch.read(
        end.answer,
        end.kept,
        outcome=end.prefetch_outcome,
        received_at=end.prefetch_at,
        latency_ms=end.prefetch_ms,
    )


def _merged(reader: Engine, end: Row[Any], own_numbers: frozenset[str]) -> EndOfCall:
    """Return the call; of several end-of-calls that differ, all of them merged."""
    if end.repeated:
        with reader.connect() as connection:
            merged = read_whole(connection, end.session_id, own_numbers=own_numbers)
        if merged is not None:
            return merged
    return EndOfCall.parse(end.body, own_numbers=own_numbers)


_asked = deliveries.alias("asked")
_LAST_ASKED = (
    select(func.max(_asked.c.id))
    .where(_asked.c.session_id == calls.c.session_id, _asked.c.kind == "prefetch")
    .where(_asked.c.outcome != "rejected", _asked.c.outcome != "unparsed")
    .correlate(calls)
    .scalar_subquery()
)
_BODIES = Prepared(
    select(
        calls.c.id,
        calls.c.session_id,
        calls.c.delivery_id,
        calls.c.repeated,
        deliveries.c.body,
        deliveries.c.source,
        deliveries.c.dry_run,
        deliveries.c.trace,
        _asked.c.outcome.label("prefetch_outcome"),
        _asked.c.received_at.label("prefetch_at"),
        _asked.c.latency_ms.label("prefetch_ms"),
        _asked.c.answer,
        _asked.c.kept,
    )
    .join(deliveries, deliveries.c.id == calls.c.delivery_id)
    .outerjoin(_asked, and_(calls.c.prefetch_outcome.is_not(None), _asked.c.id == _LAST_ASKED))
    .where(among(calls.c.id, "ids"))
)


def _failed_run(connection: Connection, run_id: int, call: EndOfCall) -> FailedRun:
    run = connection.execute(select(handler_runs).where(handler_runs.c.id == run_id)).one()
    call._change = run.change
    latest_first = attempts.c.number.desc()
    of_run = select(attempts).where(attempts.c.run_id == run_id).order_by(latest_first)
    tries = connection.execute(of_run).all()
    return FailedRun(
        run_id=run_id,
        call=call,
        handler=run.handler,
        reason=run.reason or "",
        attempts=len(tries),
        error_type=tries[0].error_type if tries else None,
        error_message=tries[0].error_message if tries else None,
        failed_at=run.state_since,
    )


logger = logging.getLogger("millis_hooks.runs")

#: Seconds between two looks for runs of other processes, and for dead processes.
POLL_S = 0.5
#: Delay of the first look in seconds: the first requests must not wait for a backlog.
FIRST_LOOK_S = 0.2
#: Seconds whose events go into one turn: ends of attempts, and all in a flood of deliveries.
GATHER_S = 0.02
#: Seconds between two searches for lost runs, and for runs of unknown handlers.
SEARCH_EVERY_S = 60.0
#: After this time a run of an unknown handler fails: until then, another release of the application
#: that has the handler may start.
UNKNOWN_FOR = timedelta(hours=1)
#: Seconds for recording the last ends when the service stops.
RECORDING_S = 5.0


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(slots=True, eq=False)
class _AtWork:
    """A running attempt; it is late if it timed out and its code still runs."""

    run: ClaimedRun
    handler: Handler
    running: HandlerCall | None = None
    session_id: str | None = None
    is_made_up: bool = False
    trace: str | None = None
    is_late: bool = False

    @property
    def timeout_s(self) -> float:
        return self.handler.timeout_s or DEFAULT_TIMEOUT_S

    @property
    def deadline(self) -> float | None:
        """When the attempt times out, on the monotonic clock; None while it has not begun."""
        if self.is_late or self.running is None or self.running.begun_at is None:
            return None
        return self.running.begun_at + self.timeout_s


class Runner:
    """Runs at most `concurrency` handlers at a time."""

    def __init__(
        self,
        reader: Engine,
        writer: Writer,
        executor: Executor,
        router: Router,
        coordinator: Coordinator,
        *,
        concurrency: int,
        own_numbers: frozenset[str] = frozenset(),
        tell: Callable[[Collection[int]], None] = lambda call_ids: None,
        count: CountAttempt = lambda hook, handler, outcome, duration_s: None,
        tracing: Tracing | None = None,
        redact: Callable[[Mapping[str, Plain]], Mapping[str, Plain]] = dict,
        read_ends: ReadEnds | None = None,
        hung: HungHandlers | None = None,
        now: Callable[[], datetime] = _utc_now,
    ) -> None:
        """Call `tell` with the ids of calls whose runs began or ended, and `count` with the hook,
        handler, outcome and duration in seconds of each attempt that ended. Results are stored as
        `redact` returns them. What `read_ends` has is not read again."""
        self._reader = reader
        self._writer = writer
        self._executor = executor
        self._router = router
        self._coordinator = coordinator
        self._concurrency = concurrency
        self._own_numbers = own_numbers
        self._tell = tell
        self._tracing = tracing
        self._redact = redact
        self._read_ends = read_ends or ReadEnds()
        #: The handlers that were said to return what has no results.
        self._warned: set[str] = set()
        self._now = now
        self._latest = now()
        self._search_at = time.monotonic()
        self._served: Counter[Key] = Counter()  # the turn in which each was last served
        self._turns = 0
        self._is_short = False  # of slots, after the last turn
        self._hung = hung or HungHandlers()
        self._at_work: set[_AtWork] = set()
        self._count = count
        self._ended: list[AttemptEnd] = []
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._stop_at: float | None = None
        self._thread = threading.Thread(target=self._run, name="millis-hooks-runner", daemon=True)

    @property
    def status(self) -> RunnerStatus:
        """The current state; from any thread."""
        at_work = list(self._at_work)
        late = sum(each.is_late for each in at_work)
        role: Role = "working" if self._coordinator.is_active else "standby"
        return RunnerStatus(
            role if self._thread.is_alive() else "stopped",
            len(at_work) - late,
            late,
            self._hung.reported,
        )

    @property
    def handlers(self) -> list[Key]:
        """The hook and name of every handler, also of prefetches."""
        return list(map(key_of, self._router))

    @property
    def leads(self) -> bool:
        """Whether this process does the work that one process does for all; from any thread."""
        return self._coordinator.leads

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look for new runs now."""
        self._events.put(None)

    def close(self, *, grace_s: float = 5.0) -> None:
        """Claim no more runs, give running ones `grace_s` to end, and hand back the rest."""
        self._stop_at = time.monotonic() + grace_s
        self.wake()
        self._thread.join(grace_s + RECORDING_S)

    def _run(self) -> None:
        self._wait(FIRST_LOOK_S)
        try:
            while not self._is_done():
                for step in (self._take_turn, self._wait, self._give_up_late):
                    self._try(step)
        finally:
            self._coordinator.leave()

    def _try(self, step: Callable[[], None]) -> None:
        try:
            step()
        except Exception as error:  # of any kind: the thread must continue
            if self._stop_at is not None and isinstance(error, StorageError):
                self._ended.clear()  # the call log may be closed: do not wait for it
            logger.error("runs are delayed: %s", describe_failure(error))

    def _is_done(self) -> bool:
        is_stopping = self._stop_at is not None
        return is_stopping and not self._ended and all(each.is_late for each in self._at_work)

    def _take_turn(self) -> None:
        """Record attempts that have ended, and claim runs."""
        self._hung.note(self._hung_now())
        if not self._may_work():
            return
        ended = list(self._ended)
        claimed = self._writer.run(partial(self._write, ended=ended))
        del self._ended[: len(ended)]
        self._turns += 1
        self._begin(claimed)
        self._tell({*(end.run.call_id for end in ended), *(run.call_id for run in claimed)})

    def _may_work(self) -> bool:
        """Check in; a process that stops does not become active."""
        is_stopping = self._stop_at is not None
        may_check_in = self._coordinator.is_active or not is_stopping
        return may_check_in and self._coordinator.check_in(self._now())

    def _write(self, connection: Connection, *, ended: Sequence[AttemptEnd]) -> list[ClaimedRun]:
        """Runs in the writer's transaction, while this thread waits."""
        failure_hooks, now = self._router.failure_handlers, self._now()
        store.record(connection, ended, failure_hooks)
        if self._stop_at is not None:
            return []
        if self._coordinator.leads:
            self._wake(connection, now)
        if time.monotonic() >= self._search_at:
            self._search_at = time.monotonic() + SEARCH_EVERY_S
            self._search(connection, now)
        for handler, wait, reason in self._hung.given_up():
            since = now - wait
            store.fail_waiting(
                connection, handler, reason, now, waiting_since=since, failure_hooks=failure_hooks
            )
        slots = self._slots()
        claimed = store.claim(
            connection,
            slots,
            now,
            late=[each.run for each in self._at_work if each.is_late],
            failure_hooks=failure_hooks,
            flip=partial(random.randrange, 2),
            runner=self._coordinator.runner,
        )
        self._is_short = slots.is_short
        return claimed

    def _slots(self) -> Slots:
        at_work, is_blocked = self._at_work, self._executor.is_blocked
        return Slots(
            [each for each in self._handlers() if not (each.is_async and is_blocked)],
            self._concurrency,
            busy=[each.handler for each in at_work if not each.is_late],
            late=[each.handler for each in at_work if each.is_late],
        )

    def _hung_now(self) -> list[Handler]:
        """Return the handlers that have no slot because of calls that do not return."""
        slots, hung_answering = self._slots(), self._executor.hung_answering
        is_blocked = self._executor.is_blocked
        return [
            each
            for each in self._router
            if (each.is_async and is_blocked)
            or (each.name in hung_answering if each.hook in ANSWERING else slots.is_hung(each))
        ]

    def _handlers(self) -> list[Handler]:
        """Return the handlers that have runs, the least recently served first."""
        handlers = [handler for handler in self._router if handler.hook not in ANSWERING]
        return sorted(handlers, key=lambda handler: self._served[key_of(handler)])

    def _wake(self, connection: Connection, now: datetime) -> None:
        """Make pending the runs whose retry is due."""
        store.wake_due(connection, now)
        if now < self._latest - store.CLOCK_TOLERANCE:
            store.wake_stranded(connection, now)
        self._latest = now

    def _search(self, connection: Connection, now: datetime) -> None:
        """Recover runs that would otherwise wait forever."""
        at_work = [each.run for each in self._at_work]
        lost = store.take_back(connection, self._coordinator.runner, at_work, now)
        if lost:
            logger.warning("%d runs were claimed and never begun; they are pending again", lost)
        if self._coordinator.leads:
            known = set(map(key_of, self._router))
            store.fail_unknown(
                connection,
                known,
                now,
                waiting_since=now - UNKNOWN_FOR,
                failure_hooks=self._router.failure_handlers,
            )

    def _wait(self, longest_s: float | None = None) -> None:
        """Wait for an event or the next deadline, then handle all events."""
        ends = [at_work.deadline for at_work in self._at_work]
        waits = [end - time.monotonic() for end in [*ends, self._stop_at] if end is not None]
        try:
            events = [self._events.get(timeout=max(min([longest_s or POLL_S, *waits]), 0.001))]
        except Empty:
            return
        if self._writer.is_flooded:  # acknowledgements come first: more goes into one turn
            time.sleep(GATHER_S)
        events += [self._events.get_nowait() for _ in range(self._events.qsize())]
        for event in events:
            if event is not None:
                event()
        if None not in events and self._stop_at is None:
            self._gather_ends()

    def _gather_ends(self) -> None:
        """Let more attempts end before their ends are recorded, unless there may be runs to claim:
        a turn costs as much for many as for one."""
        until = time.monotonic() + GATHER_S
        while (left_s := until - time.monotonic()) > 0:
            if self._is_short and all(each.is_late for each in self._at_work):
                return
            try:
                event = self._events.get(timeout=left_s)
            except Empty:
                return
            if event is None:
                return
            event()

    def _begin(self, claimed: Sequence[ClaimedRun]) -> None:
        if not claimed:
            return
        bodies: Bodies = {}
        try:
            bodies = read_bodies(self._reader, claimed)
        except SQLAlchemyError as error:  # each attempt fails for lack of its body, and is retried
            logger.error("the bodies of runs could not be read: %s", describe_failure(error))
        for run in claimed:
            self._begin_one(run, bodies)

    def _begin_one(self, run: ClaimedRun, bodies: Bodies) -> None:
        handler = self._router.get(run.hook, run.handler)
        assert handler is not None  # noqa: S101 - only runs of known handlers are claimed
        self._served[run.hook, run.handler] = self._turns
        at_work = _AtWork(run, handler)
        self._at_work.add(at_work)
        try:
            event = event_of(
                self._reader,
                run,
                bodies,
                own_numbers=self._own_numbers,
                read_ends=self._read_ends,
            )
        except Exception as error:  # the stored bytes may be anything
            self._finished(at_work, HandlerResult(error=error))
            self._left(at_work)
        else:
            call = event if isinstance(event, EndOfCall) else event.call
            at_work.session_id, at_work.is_made_up = call.session_id, call.is_made_up
            at_work.trace = bodies[run.call_id].trace
            at_work.running = self._executor.submit(
                handler,
                event,
                partial(self._finished, at_work),
                partial(self._left, at_work),
                around=self._around(at_work),
                read=read_results if handler.hook == "end_of_call" else None,
            )

    def _around(self, at_work: _AtWork) -> Around:
        if self._tracing is None:
            return NOTHING_AROUND
        run = at_work.run
        return self._tracing.attempt(
            at_work.trace,
            run_id=run.id,
            handler=run.handler,
            number=run.attempt,
            session_id=at_work.session_id,
        )

    def _finished(self, at_work: _AtWork, finished: HandlerResult) -> None:
        """Called on the handler's thread: adds an event for ours."""
        self._events.put(partial(self._note_end, at_work, finished))

    def _left(self, at_work: _AtWork) -> None:
        """Called on the handler's thread when its code ends, maybe long after its attempt."""
        self._events.put(partial(self._note_left, at_work))

    def _note_end(self, at_work: _AtWork, finished: HandlerResult) -> None:
        run = at_work.run
        if isinstance(finished.error, HandlerTimeoutError | HandedBackError):
            at_work.is_late = True
        else:
            self._at_work.discard(at_work)
        end = end_of_attempt(run, at_work.handler, finished, self._now(), random.random)
        if end.results is not None:
            end = replace(end, results=self._redact(end.results))
            self._warn(run, finished.value)
        self._ended.append(end)
        if end.outcome != "not_wanted":
            if not at_work.is_made_up:
                self._count(run.hook, run.handler, end.outcome, end.duration_ms / 1000)
            attempt = Attempt(
                run_id=run.id,
                handler=run.handler,
                attempt=run.attempt,
                session_id=at_work.session_id,
                outcome=end.outcome,
                duration_ms=end.duration_ms,
                trace_id=trace_id(at_work.trace),
            )
            log_attempt(attempt, state=end.state, due_at=end.due_at, failure=end.failure)

    def _warn(self, run: ClaimedRun, results: object) -> None:
        """Log what was left out of results; of a handler that returns none at all only once."""
        if not isinstance(results, Results) or not results.problems:
            return
        if results.is_mapping or run.handler not in self._warned:
            logger.warning(
                "handler %r, run %d: %s", run.handler, run.id, "; ".join(results.problems)
            )
        if not results.is_mapping:
            self._warned.add(run.handler)

    def _note_left(self, at_work: _AtWork) -> None:
        self._at_work.discard(at_work)

    def _give_up_late(self) -> None:
        now = time.monotonic()
        for at_work in list(self._at_work):
            if at_work.running is None or at_work.is_late:
                continue
            if at_work.deadline is not None and at_work.deadline <= now:
                self._executor.give_up(at_work.running, at_work.timeout_s)
            elif self._stop_at is not None and self._stop_at <= now:
                at_work.running.give_up(HandedBackError())
            elif at_work.deadline is None and (reason := self._hung.reason_for(at_work.handler)):
                at_work.running.give_up(HandlerError(reason))
