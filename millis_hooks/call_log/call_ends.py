"""The end-of-call deliveries of one call, merged into what the call is now."""

from __future__ import annotations

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import reduce
from typing import Any, TypeAlias, TypeVar

from sqlalchemy import Connection, and_, exists, literal_column, select

from ..exceptions import PayloadError
from ..protocol.events import EndOfCall, merged, rank_of
from .deliveries import content_hash
from .tables import deliveries, inbox

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
