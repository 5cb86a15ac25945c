"""Marks the days whose calls changed, so that the totals of these days are made again.

Whatever writes calls, their costs, runs or attempts marks their days in the same transaction. A
mark is a new row: processes that write never wait for one another here, and the totals that are
made meanwhile by `queries/day_totals.py` remove only marks whose changes they have seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from sqlalchemy import ColumnElement, Connection, func, insert, select

from .tables import calls, changed_days


def mark_days(connection: Connection, received_at: Iterable[datetime]) -> None:
    """Mark the UTC days of calls that were received then; of a call that moves, both days."""
    days = {moment.astimezone(UTC).date() for moment in received_at}
    if days:
        connection.execute(insert(changed_days), [{"day": day} for day in sorted(days)])


def mark_days_of(connection: Connection, these: ColumnElement[bool]) -> None:
    """Mark the UTC days of the calls of which the condition holds."""
    days = select(func.date(calls.c.received_at)).where(these).distinct()
    connection.execute(insert(changed_days).from_select(["day"], days))
