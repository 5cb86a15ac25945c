"""The end-of-calls of a call, merged into what the call is now; and those that the call log lacks.

Entries of Millis' call logs are stored in place of what is missing. A fetched end goes into the
inbox like a webhook: the service processes it and calls its handlers. Whether an end is missing is
decided in the transaction that stores it, so a fetched end only ever follows one of a call in
progress. Functions with a connection work in the caller's transaction.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import reduce
from typing import Any, TypeAlias, TypeVar

from pydantic_core import to_json
from sqlalchemy import (
    Connection,
    Integer,
    and_,
    cast,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
)

from ..exceptions import PayloadError
from ..protocol.call_status import UNDER_WAY
from ..protocol.events import EndOfCall, merged, rank_of
from ..protocol.test_marks import MADE_UP_SOURCES
from .deliveries import Delivery, content_hash, insert_deliveries
from .sanitize import clean_text, clean_time
from .tables import calls, deliveries, forgotten, inbox, outbound_calls, reconciled

T = TypeVar("T")

#: The handlers that want this call, by name.
RunsFor: TypeAlias = Callable[[EndOfCall], Iterable[str]]

#: A delivery describes its call if it was processed and could be read.
IS_TOLD = and_(
    deliveries.c.outcome.not_in([literal_column("'rejected'"), literal_column("'unparsed'")]),
    ~exists().where(inbox.c.delivery_id == deliveries.c.id),
)
#: Of more deliveries of a session, the first and the last describe its call, this many of each.
_MOST_OF_EACH = 10


#: The most bytes of bodies that wait, once read, for their runs.
_MOST_WAITING_BYTES = 2 * 1024 * 1024


class ReadEnds:
    """End-of-calls that were read when they were processed, for their first run, which need not
    read them again. The oldest go when there are too many. For any thread."""

    def __init__(self) -> None:
        self._ends: OrderedDict[int, tuple[EndOfCall, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, delivery_id: int, call: EndOfCall, body_bytes: int) -> None:
        """Keep the end-of-call of a delivery until it is taken."""
        with self._lock:
            _, before = self._ends.pop(delivery_id, (None, 0))
            self._ends[delivery_id] = call, body_bytes
            self._bytes += body_bytes - before
            while self._bytes > _MOST_WAITING_BYTES:
                self._bytes -= self._ends.popitem(last=False)[1][1]

    def take(self, delivery_id: int) -> EndOfCall | None:
        """Return the end-of-call once, as a handler may change it; None if it has to be read."""
        with self._lock:
            call, body_bytes = self._ends.pop(delivery_id, (None, 0))
            self._bytes -= body_bytes
        return call


@dataclass(frozen=True, slots=True)
class End:
    """An end-of-call, read."""

    delivery_id: int
    received_at: datetime
    content_hash: bytes
    call: EndOfCall

    @property
    def weight(self) -> tuple[int, datetime, bytes]:
        """What tells which of two ends counts for more."""
        return rank_of(self.call), self.received_at, self.content_hash


def put_together(ends: Iterable[End]) -> End:
    """Return the end that counts for most, with what all ends of its session come to.

    The same whatever order they come in.
    """
    ordered = list(ends)
    if len(ordered) > 1:
        ordered = sorted(_distinct(ordered), key=lambda end: end.weight)
    return replace(ordered[-1], call=reduce(merged, (end.call for end in ordered)))


def changes(ends: Iterable[End]) -> Iterator[tuple[End, EndOfCall, EndOfCall]]:
    """Yield the ends that changed what is known of a call, in the order in which they came, each
    with the call before and after it."""
    known: list[End] = []
    for end in _distinct(ends):
        if known:
            before, after = put_together(known).call, put_together([*known, end]).call
            if before.raw != after.raw:
                yield end, before, after
        known.append(end)


def _distinct(ends: Iterable[End]) -> Sequence[End]:
    """Return the ends in the order in which they were received, without exact repetitions."""
    first: dict[bytes, End] = {}
    for end in sorted(ends, key=lambda end: (end.received_at, end.delivery_id)):
        first.setdefault(end.content_hash, end)
    return list(first.values())


def outermost(items: Sequence[T]) -> Sequence[T]:
    """Return the deliveries of one kind that describe a call, in the order of their ids."""
    if len(items) <= 2 * _MOST_OF_EACH:
        return items
    return [*items[:_MOST_OF_EACH], *items[-_MOST_OF_EACH:]]


def ids_of(connection: Connection, session_id: str) -> list[int]:
    """Return the deliveries of a session that describe its call, in order."""
    found = select(deliveries.c.id, deliveries.c.kind).where(
        deliveries.c.session_id == session_id, IS_TOLD
    )
    by_kind: defaultdict[str, list[int]] = defaultdict(list)
    for id_, kind in connection.execute(found.order_by(deliveries.c.id)):
        by_kind[kind].append(id_)
    return sorted(id_ for ids in by_kind.values() for id_ in outermost(ids))


def read_whole(
    connection: Connection, session_id: str, *, own_numbers: frozenset[str]
) -> EndOfCall | None:
    """Return what the ends of a session come to; None if there is none that can be read."""
    is_end = and_(
        deliveries.c.id.in_(ids_of(connection, session_id)), deliveries.c.kind == "end_of_call"
    )
    rows = connection.execution_options(yield_per=1).execute(select(deliveries).where(is_end))
    ends = [end for row in rows if (end := end_of(row, own_numbers)) is not None]
    return put_together(ends).call if ends else None


def end_of(row: Any, own_numbers: frozenset[str] = frozenset()) -> End | None:
    """Read a delivery; None if it cannot be."""
    try:
        call = EndOfCall.parse(row.body, own_numbers=own_numbers)
    except PayloadError:
        return None
    return End(row.id, row.received_at, content_hash(row.body), call)


#: The `source` of fetched deliveries.
FETCHED = "millis_api"
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
