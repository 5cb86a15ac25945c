"""Which calls have ended since a list of them was looked at.

Ends are processed in the order they were stored in, so the delivery of the newest end is a mark in
time that needs no clock.
"""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, func, select

from .filters import CallFilter, wishes, within
from .tables import calls

#: Of so many calls at most, the newest, is said whether they match.
MOST_LOOKED_AT = 500


def newest_end(connection: Connection) -> int:
    """Return the mark of now."""
    return connection.scalar(select(func.max(calls.c.delivery_id))) or 0


def ended_since(connection: Connection, mark: int, wanted: CallFilter, now: datetime) -> int:
    """Count the calls that ended since the mark and match the filter, up to `MOST_LOOKED_AT`."""
    newest = (
        select(calls.c.id)
        .where(calls.c.delivery_id > mark)
        .order_by(calls.c.delivery_id.desc())
        .limit(MOST_LOOKED_AT)
    )
    conditions = [*within(*wanted.period(now)), *(wish.where for wish in wishes(wanted))]
    matching = select(func.count()).select_from(calls).where(calls.c.id.in_(newest), *conditions)
    return connection.scalar(matching) or 0
