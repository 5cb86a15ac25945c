"""End-of-calls that the call log lacks, and entries of Millis' call logs stored in their place.

Functions with a connection work in the caller's transaction. A fetched end goes into the inbox like
a webhook: the service processes it and calls its handlers. Whether an end is missing is decided in
the transaction that stores it, so a fetched end only ever follows one of a call in progress.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, Integer, and_, cast, delete, exists, func, insert, or_, select

from ..protocol.call_status import UNDER_WAY
from ..protocol.events import EndOfCall
from ..protocol.test_marks import MADE_UP_SOURCES
from .deliveries import Delivery, content_hash, insert_deliveries
from .sanitize import clean_text, clean_time
from .tables import calls, deliveries, forgotten, outbound_calls, reconciled

#: The `source` of fetched deliveries.
SOURCE = "millis_api"
#: Sessions in one query.
_AT_ONCE = 500
_IS_UNDER_WAY = calls.c.call_status.in_(sorted(UNDER_WAY))


def missing_of(connection: Connection, session_ids: Collection[str]) -> set[str]:
    """Return the sessions whose end is missing, without those that were deleted by `forget`.

    An end is missing if there is none, stored or processed, or only one of a call in progress.
    """
    hashes = {_hash(session_id): session_id for session_id in session_ids}
    d = deliveries.c
    was_fetched = and_(d.source.is_not(None), d.reason.is_not(None))
    is_open = exists().where(calls.c.session_id == d.session_id, _IS_UNDER_WAY)
    has_end = select(d.session_id).where(
        d.session_id.in_(session_ids),
        d.kind == "end_of_call",
        # An unparsed one does not count; a fetched one would be the same again.
        or_(and_(d.outcome == "stored", ~is_open), was_fetched),
    )
    deleted = select(forgotten.c.session_hash).where(forgotten.c.session_hash.in_(hashes))
    return (
        set(session_ids)
        - set(connection.scalars(has_end))
        - {hashes[hash_] for hash_ in connection.scalars(deleted)}
    )


def unended(connection: Connection, *, since: datetime, before: datetime) -> list[str]:
    """Return the sessions without an end that began in a period.

    These are calls with a prefetch, and calls that were requested from Millis.
    """
    c, o = calls.c, outbound_calls.c
    received = select(c.session_id).where(
        or_(c.ended_at.is_(None), _IS_UNDER_WAY),
        c.received_at >= since,
        c.received_at < before,
        or_(c.source.is_(None), c.source.not_in(MADE_UP_SOURCES)),  # unknown to Millis
    )
    requested = select(o.session_id).where(o.started_at >= since, o.started_at < before)
    sessions = sorted({*connection.scalars(received), *connection.scalars(requested)})
    parts = (sessions[start : start + _AT_ONCE] for start in range(0, len(sessions), _AT_ONCE))
    return [each for part in parts for each in sorted(missing_of(connection, part))]


def fill_in(connection: Connection, fetched: Sequence[Delivery]) -> int:
    """Store those of the ends that are still missing; return how many."""
    by_session = {end.session_id: end for end in fetched if end.session_id is not None}
    missing = sorted(missing_of(connection, by_session))
    made_up = _made_up(connection, missing)
    storable = [by_session[each]._replace(**made_up.get(each, {})) for each in missing]
    if storable:
        insert_deliveries(connection, storable)
    return len(storable)


def _made_up(connection: Connection, session_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the marks of those sessions that Millis did not make."""
    d = deliveries.c
    marked = select(d.session_id, func.max(d.source), func.max(cast(d.dry_run, Integer))).where(
        d.session_id.in_(session_ids), d.source.in_(MADE_UP_SOURCES)
    )
    rows = connection.execute(marked.group_by(d.session_id)).all()
    return {row[0]: {"source": row[1], "dry_run": bool(row[2])} for row in rows}


def remember_started(connection: Connection, session_id: str, now: datetime) -> None:
    """Note that this call was requested from Millis, until its end is known."""
    cleaned = clean_text(session_id)
    connection.execute(delete(outbound_calls).where(outbound_calls.c.session_id == cleaned))
    connection.execute(insert(outbound_calls).values(session_id=cleaned, started_at=now))


def forget_at_millis(connection: Connection, session_ids: Sequence[str]) -> None:
    """Note that these sessions must never be fetched."""
    if not session_ids:
        return
    hashes = {_hash(session_id) for session_id in session_ids}
    connection.execute(delete(outbound_calls).where(outbound_calls.c.session_id.in_(session_ids)))
    connection.execute(delete(forgotten).where(forgotten.c.session_hash.in_(hashes)))
    connection.execute(insert(forgotten), [{"session_hash": hash_} for hash_ in hashes])


def read_until(connection: Connection, api: str) -> datetime | None:
    """Return until when these call logs of Millis have been read without a gap, if ever."""
    until: datetime | None = connection.scalar(
        select(reconciled.c.until).where(reconciled.c.api == api)
    )
    return until


def note_read(connection: Connection, api: str, *, since: datetime, until: datetime) -> None:
    """Note that they have been read from `since` until `until`, unless that leaves a gap.

    Calls that were requested before `since` are not looked for any more.
    """
    before = read_until(connection, api)
    if before is not None and not since <= before <= until:
        return
    connection.execute(delete(reconciled).where(reconciled.c.api == api))
    connection.execute(insert(reconciled).values(api=api, until=until))
    connection.execute(delete(outbound_calls).where(outbound_calls.c.started_at < since))


def first_received(connection: Connection) -> datetime | None:
    """Return when the first call of this log was received."""
    first: datetime | None = connection.scalar(select(func.min(calls.c.received_at)))
    return first


def _hash(session_id: str) -> bytes:
    return content_hash(session_id.encode("utf-8", "replace"))


def delivery_of(
    entry: EndOfCall, now: datetime, *, imported: bool = False, source: str | None = None
) -> Delivery:
    """Return an entry as a delivery: compact JSON, received when the call ended."""
    return Delivery(
        kind="end_of_call",
        received_at=min(ended_at(entry) or now, now),
        outcome="stored",
        status_code=200,
        session_id=clean_text(entry.session_id),
        reason="from Millis' call log",
        content_type="application/json",
        body=to_json(entry.raw),
        imported=imported,
        source=source,
    )


def ended_at(entry: EndOfCall) -> datetime | None:
    """Return when the call ended by Millis' clock; None if unknown."""
    started_at = clean_time(entry.started_at)
    if started_at is None:
        return None
    try:
        return started_at + timedelta(seconds=entry.duration_s or 0)
    except OverflowError:
        return None
