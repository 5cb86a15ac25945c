"""Checks of the clock: against what was stored last, against Millis', and against the service's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from sqlalchemy import Connection, select

from ..call_log.retention import doubt_of_clock
from ..call_log.tables import calls, deliveries
from ..finding import Finding, bad, ok, warn

_TOLERATED = timedelta(seconds=5)
_ABSURD = timedelta(seconds=60)
_SET_IT = "Have the machine set its clock by itself: timedatectl set-ntp true"
#: Calls that are looked at for Millis' clock.
_NEWEST_CALLS = 20


def examine_clock(connection: Connection, now: Callable[[], datetime]) -> Iterator[Finding]:
    """Compare the clock with the newest rows of the call log."""
    newest = select(deliveries.c.received_at).order_by(deliveries.c.id.desc()).limit(1)
    received_at = connection.scalar(newest)
    if received_at is None:
        return
    yield judge(received_at - now(), "the newest delivery", only_ahead=True)
    ahead = _millis_ahead(connection)
    if ahead is not None and ahead > _ABSURD:
        yield warn("clock", f"Millis began a call {_words(ahead)} after we saw it end", _SET_IT)


def _millis_ahead(connection: Connection) -> timedelta | None:
    """Return by how much the beginning of a call came after its end, at most."""
    ended = select(calls.c.started_at, calls.c.ended_at).where(
        calls.c.delivery_id.is_not(None), calls.c.started_at.is_not(None)
    )
    newest = ended.order_by(calls.c.id.desc()).limit(_NEWEST_CALLS)
    apart = [started_at - ended_at for started_at, ended_at in connection.execute(newest)]
    return max(apart, default=None)


def judge(ahead: timedelta, what: str, *, only_ahead: bool = False) -> Finding:
    """Say how far `what` is ahead of our clock; behind is natural for what was stored."""
    apart = ahead if only_ahead else abs(ahead)
    if apart <= _TOLERATED:
        return ok("clock", f"agrees with {what}")
    side = "ahead of" if ahead > timedelta() else "behind"
    found = f"{what} is {_words(abs(ahead))} {side} this machine's clock"
    return (bad if apart > _ABSURD else warn)("clock", found, _SET_IT)


def _words(apart: timedelta) -> str:
    seconds = apart.total_seconds()
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def examine_retention(connection: Connection, days: int, now: datetime) -> Iterator[Finding]:
    """Tell where nothing is removed because the clock may be wrong."""
    doubt = doubt_of_clock(connection, kept=timedelta(days=days), now=now) if days else None
    if doubt is not None:
        yield bad(
            "retention",
            f"nothing is removed, because the clock may be wrong: {doubt}",
            f"{_SET_IT}. If it is right: millis-hooks prune --clock-is-right",
        )
