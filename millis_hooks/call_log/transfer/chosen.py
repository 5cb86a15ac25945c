"""Which calls go out, and reading them one after another.

Which ones they are is settled at once, in one look at the log: what comes later is not among them.
Each is then read at its turn, the first received first, so no write waits for an export, and memory
holds one number for each call (8 bytes) and a handful of calls.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Connection, Engine, exists, func, or_, select

from ..deliveries import Delivery
from ..filters import CallFilter, is_overdue, wishes, within
from ..raw_bytes import length_of
from ..tables import calls, deliveries

#: What is told of a call: its columns, without what is said of this log alone.
COLUMNS = tuple(
    column for column in calls.c if column.name not in {"id", "delivery_id", "unhandled"}
)

#: Plain text: SQLAlchemy has a kind of its own, which is slow to write as JSON.
_NAMES = tuple(str(column.name) for column in COLUMNS)
_AS_STORED = tuple(deliveries.c[name] for name in Delivery._fields)
#: Read at once: so many calls, and of their deliveries about so many bytes.
_CALLS = 250
_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Chosen:
    """Numbers of rows: of `calls`, and of the `deliveries` that belong to no call."""

    calls: array[int]
    loose: array[int]


class Told(NamedTuple):
    """What is told of a call: `COLUMNS` by name, and its deliveries where they were asked for."""

    columns: Mapping[str, Any]
    deliveries: Sequence[Delivery] = ()


def choose(
    connection: Connection, wanted: CallFilter, now: datetime, *, with_loose: bool = False
) -> Chosen:
    """Choose the calls that are wanted, those that go on among them.

    `with_loose` also chooses what belongs to no call, where all calls are wanted.
    """
    by_time = select(calls.c.id).order_by(calls.c.received_at, calls.c.id)
    found = connection.scalars(by_time.where(*_conditions(wanted, now)))
    of_a_call = exists().where(calls.c.session_id == deliveries.c.session_id)
    apart = or_(deliveries.c.session_id.is_(None), ~of_a_call)
    loose = select(deliveries.c.id).where(apart).order_by(deliveries.c.id)
    is_all = with_loose and wanted == CallFilter(range="all")
    return Chosen(array("q", found), array("q", connection.scalars(loose) if is_all else ()))


def _conditions(wanted: CallFilter, now: datetime) -> Iterator[ColumnElement[bool]]:
    yield from within(*wanted.period(now))
    if wanted.outcome == "lost":
        yield is_overdue(now)
    for wish in wishes(wanted):
        # All calls are looked at, so what is searched for is better looked up once for all.
        searched = wish.ids if wish.search is not None else None
        yield wish.where if searched is None else calls.c.id.in_(searched)


def read_calls(
    engine: Engine, ids: Sequence[int], *, with_deliveries: bool = False
) -> Iterator[Told]:
    """Read these calls; one that is gone meanwhile is left out.

    Deliveries are in the order they were stored in.
    """
    for start in range(0, len(ids), _CALLS):
        part = ids[start : start + _CALLS]
        with engine.connect() as connection:
            rows = connection.execute(select(calls.c.id, *COLUMNS).where(calls.c.id.in_(part)))
            found = {id_: columns for id_, *columns in rows}
        told = [Told(dict(zip(_NAMES, found[id_], strict=True))) for id_ in part if id_ in found]
        yield from _with_deliveries(engine, told) if with_deliveries else told


def read_loose(engine: Engine, ids: Sequence[int]) -> Iterator[Told]:
    """Read these deliveries, each as if of a call of which nothing is known."""
    nothing = dict.fromkeys(_NAMES)
    for id_ in ids:
        one = select(*_AS_STORED).where(deliveries.c.id == id_)
        with engine.connect() as connection:
            row = connection.execute(one).one_or_none()
        if row is not None:
            yield Told(nothing, [Delivery(*row)])


def _with_deliveries(engine: Engine, told: Sequence[Told]) -> Iterator[Told]:
    columns = {call.columns["session_id"]: call.columns for call in told}
    for sessions in _by_size(engine, list(columns)):
        rows = _deliveries_of(engine, sessions)
        yield from (Told(columns[session], rows.get(session, ())) for session in sessions)


def _by_size(engine: Engine, sessions: Sequence[str]) -> Iterator[list[str]]:
    """Split sessions into parts, each with no more to read than fits well into memory."""
    size = func.sum(length_of(deliveries.c.body)).label("size")
    of_these = deliveries.c.session_id.in_(sessions)
    sums = select(deliveries.c.session_id, size).where(of_these).group_by(deliveries.c.session_id)
    with engine.connect() as connection:
        sizes = {row.session_id: row.size for row in connection.execute(sums)}
    part: list[str] = []
    filled = 0
    for session in sessions:
        if part and filled + sizes.get(session, 0) > _BYTES:
            yield part
            part, filled = [], 0
        part.append(session)
        filled += sizes.get(session, 0)
    yield part


def _deliveries_of(engine: Engine, sessions: Sequence[str]) -> dict[str, list[Delivery]]:
    of_these = select(*_AS_STORED).where(deliveries.c.session_id.in_(sessions))
    found: dict[str, list[Delivery]] = {}
    with engine.connect() as connection:
        for row in connection.execute(of_these.order_by(deliveries.c.id)):
            delivery = Delivery(*row)
            found.setdefault(str(delivery.session_id), []).append(delivery)
    return found
