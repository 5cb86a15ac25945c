"""The traces of calls that are going on, so that a restart does not cut them in two."""

from __future__ import annotations

from sqlalchemy import Engine, select

from .tables import calls, deliveries

#: So many of the newest are read.
MOST = 10_000


def traces_going_on(reader: Engine) -> list[tuple[str, str]]:
    """Return session and context of the calls without an end that are traced, oldest first."""
    c = deliveries.c
    found = (
        select(c.session_id, c.trace)
        .join(calls, calls.c.session_id == c.session_id)
        .where(calls.c.ended_at.is_(None), c.kind == "prefetch", c.trace.is_not(None))
        .order_by(calls.c.received_at.desc())
        .limit(MOST)
    )
    with reader.connect() as connection:
        rows = connection.execute(found).all()
    return [(row.session_id, row.trace) for row in reversed(rows)]
