"""Marks the days whose calls changed, so that the totals of these days are made again.

Whatever writes calls, their costs, runs or attempts marks their days in the same transaction. A
mark is a new row: processes that write never wait for one another here, and the totals that are
made meanwhile by `queries/day_totals.py` remove only marks whose changes they have seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime

from sqlalchemy import Connection, delete, func, insert, select

from .statements import Prepared, among, insert_rows
from .tables import calls, changed_days, day_divisions, day_totals


def mark_days(connection: Connection, received_at: Iterable[datetime]) -> None:
    """Mark the UTC days of calls that were received then; of a call that moves, both days."""
    days = {moment.astimezone(UTC).date() for moment in received_at}
    if days:
        insert_rows(connection, changed_days, [{"day": day} for day in sorted(days)])


def mark_days_of(connection: Connection, call_ids: Sequence[int]) -> None:
    """Mark the UTC days of these calls: analytics counts their runs and attempts, too."""
    if call_ids:
        _MARK_THESE(connection, {"ids": call_ids})


def erase_totals_of(connection: Connection, call_ids: Sequence[int]) -> None:
    """Remove the totals of the days of these calls: values of calls that go are in them."""
    days = select(func.date(calls.c.received_at)).where(calls.c.id.in_(call_ids))
    for table in (day_totals, day_divisions):
        connection.execute(delete(table).where(table.c.day.in_(days)))


def changed(connection: Connection) -> set[date]:
    """Return the days that are marked."""
    return set(connection.scalars(select(changed_days.c.day).distinct()))


_days = select(func.date(calls.c.received_at)).where(among(calls.c.id, "ids")).distinct()
_MARK_THESE = Prepared(insert(changed_days).from_select(["day"], _days))
