"""Fetches end-of-calls that never arrived from Millis' call logs.

These are of calls while the receiver was down, and of calls that never connected, for which Millis
sends no webhook. A fetched end is stored as a delivery, marked with its source, and handled like
one that was sent. Every step can be repeated: a look that was interrupted is simply done again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime, timedelta
from functools import partial
from operator import add
from typing import NamedTuple

from sqlalchemy import Engine

from ..call_log import missing_ends
from ..call_log.deliveries import Delivery
from ..call_log.missing_ends import delivery_of, ended_at
from ..call_log.queries.records import LIVE_FOR
from ..call_log.writer import Write
from ..exceptions import MillisApiError, MillisBusyError, MillisKeyError, MillisNotFoundError
from ..protocol.test_marks import SANDBOX_SOURCE
from . import CallLogPage, LoggedCall, MillisApi
from .background import RepeatedWork

logger = logging.getLogger("millis_hooks.reconcile")

#: A webhook may take so long; Millis documents no limit.
SETTLES_IN = timedelta(minutes=5)
#: Each look begins so long before the end of the last one: calls in progress then are over now.
OVERLAP = LIVE_FOR + timedelta(minutes=15)
#: The first look goes back so far at most, and not beyond the first call of the log: handlers are
#: for calls that have just ended.
FIRST_LOOK = timedelta(days=1)
#: Seconds between two requests: Millis documents no rate limit.
REST_S = 0.5

#: Ends stored in one transaction: acknowledgements wait for it.
_AT_ONCE = 20


class Reconciled(NamedTuple):
    """The result of a look.

    Counts calls that Millis listed, ends that were filled in (in a trial: would be), sessions that
    Millis does not know, and unreadable entries.
    """

    listed: int = 0
    filled: int = 0
    unknown: int = 0
    unreadable: int = 0

    def __str__(self) -> str:
        text = f"Calls in Millis' call logs: {self.listed:,}; filled in: {self.filled:,}."
        if self.unknown:
            text += f" Not in them, and without an end here: {self.unknown:,}."
        if self.unreadable:
            text += f" Could not be read: {self.unreadable:,}."
        return text


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
        """Pass every end through `redact` before it is stored; store nothing in a trial.

        An end is fetched once its call is over for `settles_in`: until then the webhook may
        arrive. `tell` is called with the results so far.
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
        """Return the time from which ends may be missing."""
        with self._reader.connect() as connection:
            until = missing_ends.read_until(connection, self._api.base_url)
            first = missing_ends.first_received(connection)
        now = self._now()
        return until - OVERLAP if until else max(now - FIRST_LOOK, first or now)

    async def look(self, since: datetime) -> Reconciled:
        """Fetch the missing end-of-calls that began at `since` or later."""
        began = self._now()
        async with self._api as api:
            async for page in api.pages(since=since):
                await self._take_page(page, began)
                await self._rest(REST_S)
            for session_id in self._unended(since, before=began - self._settles_in):
                await self._take_session(session_id, began)
                await self._rest(REST_S)
        if not self._is_trial:
            note = partial(missing_ends.note_read, api=api.base_url, since=since, until=began)
            self._write(note)
        return self._so_far

    def _unended(self, since: datetime, *, before: datetime) -> list[str]:
        with self._reader.connect() as connection:
            unended = missing_ends.unended(connection, since=since, before=before)
        return [session_id for session_id in unended if session_id not in self._seen]

    async def _take_page(self, page: CallLogPage, now: datetime) -> None:
        self._seen |= {call.session_id for call in page.calls}
        over = {call.session_id: call for call in page.calls if self._is_settled(call, now)}
        with self._reader.connect() as connection:
            missing = missing_ends.missing_of(connection, over)
        fetched = [await self._in_full(over[session_id]) for session_id in sorted(missing)]
        for start in range(0, len(fetched), _AT_ONCE):
            self._fill_in(fetched[start : start + _AT_ONCE], now)
        self._add(Reconciled(listed=len(page.calls), unreadable=page.unreadable))

    async def _in_full(self, call: LoggedCall) -> LoggedCall:
        """Return a call with its transcript, which lists may leave out."""
        if call.chat or not call.duration_s:
            return call
        await self._rest(REST_S)
        try:
            return await self._api.call_log(call.session_id)
        except MillisApiError as error:
            _raise_if_general(error)
            return call

    async def _take_session(self, session_id: str, now: datetime) -> None:
        try:
            call = await self._api.call_log(session_id)
        except MillisNotFoundError:
            self._add(Reconciled(unknown=1))
        except MillisApiError as error:
            _raise_if_general(error)
            logger.warning("a call could not be fetched: %s", error)
            self._add(Reconciled(unreadable=1))
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
        self._add(Reconciled(filled=filled))

    def _is_settled(self, call: LoggedCall, now: datetime) -> bool:
        """Tell whether a call has been over for so long that its webhook will not arrive."""
        over_since = ended_at(call)
        return call.is_over and (over_since is None or over_since <= now - self._settles_in)

    def _add(self, result: Reconciled) -> None:
        self._so_far = Reconciled(*map(add, self._so_far, result))
        self._tell(self._so_far)


def _raise_if_general(error: MillisApiError) -> None:
    """Raise the error again if it is not about one call: the next request would fail as well."""
    if error.status is None or isinstance(error, MillisKeyError | MillisBusyError):
        raise error


#: Seconds before the first look, and between checks whether this process is the one that looks.
FIRST_S = 30.0


def reconciler(
    prepare: Callable[[], Reconciliation],
    *,
    every_s: float,
    is_ours: Callable[[], bool],
    on_filled: Callable[[], None] = lambda: None,
) -> RepeatedWork:
    """Return the work that makes a look by `prepare`, and calls `on_filled` when it stored ends.

    It may be closed during a look: the next start looks again.
    """

    async def look() -> None:
        reconciliation = prepare()
        result = await reconciliation.look(reconciliation.since())
        if result.filled:
            logger.info("%d calls filled in from Millis' call logs", result.filled)
            on_filled()

    return RepeatedWork(
        look,
        name="millis-hooks-reconcile",
        title="reconciliation",
        first_s=FIRST_S,
        every_s=every_s,
        is_ours=is_ours,
    )
