"""Does the pending runs: takes them from the ledger, gives them to the workbench, writes down how
they ended.

One thread decides everything, and each of its turns is one transaction: what has ended is recorded
and as many new runs are taken as there is room for.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from queue import Empty, SimpleQueue

from sqlalchemy import Connection

from ..call_log.writer import Writer
from ..events import EndOfCall
from ..exceptions import HandlerError, HandlerTimeoutError, PayloadError, StorageError
from ..failures import describe_failure
from ..routing import DEFAULT_TIMEOUT_S, Router
from ..running import NOT_WANTED, Finished, Running
from ..workbench import Workbench
from .ledger import AttemptEnd, ClaimedRun, claim, record

logger = logging.getLogger("millis_hooks.runs")

#: Runs are looked for at least this often, whoever wrote them.
SWEEP_S = 5.0
#: Those the last process left wait this long: who calls first should not wait for them.
FIRST_SWEEP_S = 0.2


@dataclass(frozen=True, slots=True)
class _AtWork:
    run: ClaimedRun
    running: Running
    deadline: float  # on the monotonic clock
    timeout_s: float


class Runner:
    """Keeps at most `concurrency` handlers at work."""

    def __init__(
        self,
        writer: Writer,
        workbench: Workbench,
        router: Router,
        *,
        concurrency: int,
        own_numbers: frozenset[str] = frozenset(),
    ) -> None:
        self._writer = writer
        self._workbench = workbench
        self._router = router
        self._concurrency = concurrency
        self._own_numbers = own_numbers
        self._at_work: dict[int, _AtWork] = {}
        self._ended: list[AttemptEnd] = []
        self._events: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="millis-hooks-runner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be new runs."""
        self._events.put(None)

    def close(self, *, grace_s: float = 5.0) -> None:
        """Take no more runs, and wait at most `grace_s` for those at work to end."""
        self._closing = True
        self._events.put(None)
        self._thread.join(grace_s)

    def _run(self) -> None:
        self._wait(FIRST_SWEEP_S)
        while True:
            try:
                self._turn()
            except StorageError:
                logger.exception("runs wait: the call log failed")
                if self._closing:
                    return  # perhaps after the log was closed: there is nothing to wait for
            if self._closing and not self._at_work and not self._ended:
                return
            self._wait()
            self._give_up_late()

    def _turn(self) -> None:
        """Record what has ended and take what there is room for."""
        ended = list(self._ended)
        room = 0 if self._closing else self._concurrency - len(self._at_work)
        claimed = self._writer.run(partial(_record_and_claim, ended=ended, room=room))
        del self._ended[: len(ended)]
        for run in claimed:
            self._begin(run)

    def _wait(self, sweep_s: float = SWEEP_S) -> None:
        """Wait until something happens or the next handler is late, then note all that happened."""
        deadlines = [at_work.deadline for at_work in self._at_work.values()]
        timeout_s = min([sweep_s, *(deadline - time.monotonic() for deadline in deadlines)])
        try:
            happened = [self._events.get(timeout=max(timeout_s, 0.001))]
        except Empty:
            return
        happened += [self._events.get_nowait() for _ in range(self._events.qsize())]
        for note in happened:
            if note is not None:
                note()

    def _begin(self, run: ClaimedRun) -> None:
        handler = self._router.get("end_of_call", run.handler)
        try:
            if handler is None:
                raise HandlerError(f"No end-of-call handler is named {run.handler!r} any more.")
            call = EndOfCall.parse(run.body, own_numbers=self._own_numbers)
        except (HandlerError, PayloadError) as error:
            self._ended.append(_end(run, Finished(error=error)))
            self._events.put(None)
            return
        timeout_s = handler.timeout_s or DEFAULT_TIMEOUT_S
        running = self._workbench.run(handler, call, partial(self._finished, run))
        self._at_work[run.id] = _AtWork(run, running, time.monotonic() + timeout_s, timeout_s)

    def _finished(self, run: ClaimedRun, finished: Finished) -> None:
        """Called on the handler's thread: only leaves a note for ours."""
        self._events.put(partial(self._note_end, run, finished))

    def _note_end(self, run: ClaimedRun, finished: Finished) -> None:
        self._at_work.pop(run.id, None)
        self._ended.append(_end(run, finished))

    def _give_up_late(self) -> None:
        now = time.monotonic()
        for at_work in [each for each in self._at_work.values() if each.deadline <= now]:
            self._workbench.give_up(at_work.running, at_work.timeout_s)


def _record_and_claim(
    connection: Connection, *, ended: Sequence[AttemptEnd], room: int
) -> list[ClaimedRun]:
    record(connection, ended)
    return claim(connection, room, datetime.now(UTC)) if room > 0 else []


def _end(run: ClaimedRun, finished: Finished) -> AttemptEnd:
    error = finished.error
    if error is not None:
        logger.warning("run %d of %s failed: %s", run.id, run.handler, describe_failure(error))
    return AttemptEnd(
        run_id=run.id,
        attempt=run.attempt,
        ended_at=datetime.now(UTC),
        duration_ms=finished.duration_ms,
        outcome=_outcome(finished),
        failure=describe_failure(error) if error is not None else None,
    )


def _outcome(finished: Finished) -> str:
    if finished.error is None:
        return "not_wanted" if finished.value is NOT_WANTED else "succeeded"
    return "timed_out" if isinstance(finished.error, HandlerTimeoutError) else "failed"
