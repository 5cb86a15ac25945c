"""Fetches from Millis' call logs the ends that never arrived: of calls that came in while the
receiver was down, and of calls that never connected, of which Millis tells nobody.

An end that is fetched is kept as a delivery, marked with its source, and handled like one that was
sent. Every step can be repeated: what was cut short is begun again, and fills in what is left.

Reconciles with Millis' call logs now and then, on a thread inside the service.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import Engine

from ..call_log import missing_ends
from ..call_log.deliveries import Delivery
from ..call_log.missing_ends import delivery_of, ended_at
from ..call_log.queries.records import LIVE_FOR
from ..call_log.upkeep.removal import Write
from ..exceptions import MillisApiError, MillisBusyError, MillisKeyError, MillisNotFoundError
from ..masking.error_report import describe_failure
from ..protocol.test_marks import SANDBOX_SOURCE
from .client import CallLogPage, LoggedCall, MillisApi

logger = logging.getLogger("millis_hooks.reconcile")

#: A webhook has so long to arrive by itself: Millis does not say how long it may take.
SETTLES_IN = timedelta(minutes=5)
#: Each look begins so long before the end of the last: a call under way then is over by now.
OVERLAP = LIVE_FOR + timedelta(minutes=15)
#: The first look goes back no further, and not to before the log's first call: handlers are for
#: calls that have just ended.
FIRST_LOOK = timedelta(days=1)
#: Rested between two requests, in seconds: Millis states no limit.
REST_S = 0.5

#: Stored in one transaction, which acknowledgements wait for.
_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class Reconciled:
    """What came of a look: calls that Millis listed, ends that were filled in (in a trial: would
    be), sessions that Millis knows nothing of, and what could not be read."""

    listed: int = 0
    filled: int = 0
    unknown: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        told = f"Calls in Millis' call logs: {self.listed:,}; filled in: {self.filled:,}."
        if self.unknown:
            told += f" Not in them, and without an end here: {self.unknown:,}."
        if self.unreadable:
            told += f" Could not be read: {self.unreadable:,}."
        return told


class Reconciliation:
    """One look into Millis' call logs. Raises `MillisApiError` and `StorageError`."""

    def __init__(
        self,
        api: MillisApi,
        reader: Engine,
        write: Write,
        *,
        now: Callable[[], datetime],
        redact: Callable[[Delivery], Delivery] | None = None,
        is_trial: bool = False,
        settles_in: timedelta = SETTLES_IN,
        rest: Callable[[float], Awaitable[None]] = asyncio.sleep,
        tell: Callable[[Reconciled], None] = lambda so_far: None,
    ) -> None:
        """Pass everything through `redact` before it is stored; store nothing in a trial.

        A webhook has `settles_in` to arrive by itself, from the end of its call on.
        `tell` hears how far it is.
        """
        self._api = api
        self._reader = reader
        self._write = write
        self._now = now
        self._redact = redact
        self._is_trial = is_trial
        self._settles_in = settles_in
        self._rest = rest
        self._tell = tell
        self._so_far = Reconciled()
        self._seen: set[str] = set()

    def since(self) -> datetime:
        """Return from when on there may be something to fetch."""
        with self._reader.connect() as connection:
            until = missing_ends.read_until(connection, self._api.base_url)
            first = missing_ends.first_received(connection)
        now = self._now()
        return until - OVERLAP if until else max(now - FIRST_LOOK, first or now)

    async def look(self, since: datetime) -> Reconciled:
        """Fetch what is lacking of the calls that began at `since` or later."""
        began = self._now()
        async with self._api as api:
            async for page in api.pages(since=since):
                await self._take_page(page, began)
                await self._rest(REST_S)
            for session_id in self._unended(since, before=began - self._settles_in):
                await self._ask_for(session_id, began)
                await self._rest(REST_S)
        if not self._is_trial:
            note = partial(missing_ends.note_read, api=api.base_url, since=since, until=began)
            self._write(note)
        return self._so_far

    def _unended(self, since: datetime, *, before: datetime) -> list[str]:
        with self._reader.connect() as connection:
            found = missing_ends.unended(connection, since=since, before=before)
        return [session_id for session_id in found if session_id not in self._seen]

    async def _take_page(self, page: CallLogPage, now: datetime) -> None:
        self._seen |= {call.session_id for call in page.calls}
        over = {call.session_id: call for call in page.calls if self._is_settled(call, now)}
        with self._reader.connect() as connection:
            wanted = missing_ends.lacking(connection, over)
        fetched = [await self._in_full(over[session_id]) for session_id in sorted(wanted)]
        for some in _stretches(fetched):
            self._fill_in(some, now)
        self._add(listed=len(page.calls), unreadable=page.unreadable)

    async def _in_full(self, call: LoggedCall) -> LoggedCall:
        """Return a call with what was said in it: a list may leave that out."""
        if call.chat or not call.duration_s:
            return call
        await self._rest(REST_S)
        try:
            return await self._api.call_log(call.session_id)
        except MillisApiError as error:
            _raise_unless_of_one(error)
            return call

    async def _ask_for(self, session_id: str, now: datetime) -> None:
        """Fetch the end of a call that was not listed."""
        try:
            call = await self._api.call_log(session_id)
        except MillisNotFoundError:
            self._add(unknown=1)
        except MillisApiError as error:
            _raise_unless_of_one(error)
            logger.warning("a call could not be fetched: %s", error)
            self._add(unreadable=1)
        else:
            if self._is_settled(call, now):
                self._fill_in([call], now)

    def _fill_in(self, fetched: Sequence[LoggedCall], now: datetime) -> None:
        source = SANDBOX_SOURCE if self._api.is_stand_in else missing_ends.SOURCE
        ends = [delivery_of(call, now, source=source) for call in fetched]
        if self._is_trial:
            filled = len({end.session_id for end in ends})
        else:
            storable = [self._redact(end) if self._redact else end for end in ends]
            filled = self._write(partial(missing_ends.fill_in, fetched=storable))
        self._add(filled=filled)

    def _is_settled(self, call: LoggedCall, now: datetime) -> bool:
        """Tell whether a call has been over for so long that its webhook will not come."""
        over_since = ended_at(call)
        return call.is_over and (over_since is None or over_since <= now - self._settles_in)

    def _add(
        self, *, listed: int = 0, filled: int = 0, unknown: int = 0, unreadable: int = 0
    ) -> None:
        before = self._so_far
        self._so_far = replace(
            before,
            listed=before.listed + listed,
            filled=before.filled + filled,
            unknown=before.unknown + unknown,
            unreadable=before.unreadable + unreadable,
        )
        self._tell(self._so_far)


def _raise_unless_of_one(error: MillisApiError) -> None:
    """Raise the error again if there would be more of its kind: nothing can be fetched now."""
    if error.status is None or isinstance(error, MillisKeyError | MillisBusyError):
        raise error


def _stretches(calls: Sequence[LoggedCall]) -> Iterable[Sequence[LoggedCall]]:
    return (calls[start : start + _AT_ONCE] for start in range(0, len(calls), _AT_ONCE))


#: After a start there is other work to do first, for so many seconds; and after as many more, one
#: process of several sees that it is the one now.
FIRST_S = 30.0


class Reconciler:
    """Looks every `every_s` seconds, in the one process of several that `is_ours` says."""

    def __init__(
        self,
        prepare: Callable[[], Reconciliation],
        *,
        every_s: float,
        is_ours: Callable[[], bool],
        on_filled: Callable[[], None] = lambda: None,
    ) -> None:
        """`prepare` makes each look; `on_filled` is called when ends were stored."""
        self._prepare = prepare
        self._every_s = every_s
        self._is_ours = is_ours
        self._on_filled = on_filled
        self._loop = asyncio.new_event_loop()
        self._closing = asyncio.Event()
        self._thread = threading.Thread(
            target=self._run, name="millis-hooks-reconcile", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Leave off, wherever it is; what is not fetched yet is the next time."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def look(self) -> None:
        """Look once, and say in the log what came of it; never raises."""
        try:
            reconciliation = self._prepare()
            found = await reconciliation.look(reconciliation.since())
        except MillisApiError as error:
            logger.warning("calls without an end wait for the next look: %s", error)
        except Exception as error:  # whatever it is: the thread must live
            failure = describe_failure(error)
            logger.error("calls without an end wait for the next look: %s", failure)
        else:
            if found.filled:
                logger.info("%d calls filled in from Millis' call logs", found.filled)
                self._on_filled()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._look_until_closed())

    async def _look_until_closed(self) -> None:
        looking = asyncio.create_task(self._look_now_and_then())
        await self._closing.wait()
        looking.cancel()
        with suppress(asyncio.CancelledError):
            await looking

    async def _look_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(FIRST_S)
            if self._is_ours():
                await self.look()
                await asyncio.sleep(self._every_s)
