"""Rejected requests: a bounded queue in memory, and their rows in the call log.

Requests that are alike become one row a minute, rows are few a minute, and the oldest of what was
rejected most often are removed first. All are counted by reason. Every limit holds twice: for
requests that brought an accepted secret, and for others, who can so take no room from them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Insert, Select, delete, func, insert, select, update

from ..environment.addresses import network_of
from ..masking.error_report import describe_failure
from .deliveries import Kind
from .dialects import upsert
from .tables import rejection_counts, rejections

logger = logging.getLogger("millis_hooks.call_log")

#: How long rejected requests gather before they are written, in seconds.
WRITE_AFTER_S = 1.0
#: Rows that a minute may add, and rows that are kept.
ROWS_PER_MINUTE = 60
KEPT_ROWS = 1_000
#: Requests that may wait to be written; more are dropped, and their number is logged.
MOST_WAITING = 1_000


class Rejection(NamedTuple):
    """A refused request as it came: with all its secrets, and so never to be stored as it is."""

    received_at: datetime
    webhook: Kind
    method: str
    status_code: int
    reason: str
    client: str | None
    query: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    path_secret: bytes | None = None
    brought_secret: bool = False  # an accepted one, wherever it was and in whatever form


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What may be kept of a refused request; `body_bytes` is what its sender said."""

    method: str
    client: str | None
    query: str
    headers: tuple[tuple[str, str], ...]
    body_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRejection:
    """A row of `rejections`: the first of `times` requests that were alike."""

    id: int
    received_at: datetime
    webhook: str
    method: str
    status_code: int
    reason: str
    client: str | None
    query: str
    headers: tuple[tuple[str, str], ...]
    body_bytes: int | None
    times: int
    last_at: datetime
    brought_secret: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectionCount:
    """How many requests to a webhook were refused for a reason, ever."""

    webhook: str
    status_code: int
    reason: str
    times: int
    first_at: datetime
    last_at: datetime


#: Requests that agree in these are alike: they become one row a minute.
_Alike: TypeAlias = tuple[bool, str, int, str, str]


class RejectionLog:
    """A bounded queue of rejected requests, which is written once a second at most."""

    def __init__(
        self,
        write: Callable[[Callable[[Connection], None]], None],
        describe: Callable[[Rejection], Described],
    ) -> None:
        """Write, with `write`, what `describe` leaves of a request."""
        self._write = write
        self._describe = describe
        self._lock = threading.Lock()
        self._waiting: list[Rejection] = []
        self._dropped = 0
        self._timer: threading.Timer | None = None
        self._minute: datetime | None = None
        self._rows: dict[_Alike, int] = {}  # the ids of those of this minute

    def note(self, rejection: Rejection) -> None:
        """Have the request written soon; never waits."""
        with self._lock:
            waiting = sum(each.brought_secret == rejection.brought_secret for each in self._waiting)
            if waiting >= MOST_WAITING:
                self._dropped += 1
                return
            self._waiting.append(rejection)
            if self._timer is None:
                self._timer = threading.Timer(WRITE_AFTER_S, self._empty)
                self._timer.daemon = True
                self._timer.start()

    def close(self) -> None:
        """Write what is waiting."""
        if self._timer is not None:
            self._timer.cancel()
        self._empty()

    def _empty(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            dropped, self._dropped = self._dropped, 0
            self._timer = None
        if dropped:
            logger.warning("%d rejected requests were not kept: too many at once", dropped)
        if not waiting:
            return
        try:
            self._write(partial(self._store, waiting))
        except Exception as error:  # the next ones shall be written
            self._rows.clear()
            why = describe_failure(error)
            logger.warning("%d rejected requests could not be written: %s", len(waiting), why)

    def _store(self, waiting: Sequence[Rejection], connection: Connection) -> None:
        minute = waiting[-1].received_at.replace(second=0, microsecond=0)
        if minute != self._minute:
            self._minute, self._rows = minute, {}
        for group in _grouped(waiting, by=_reason):
            connection.execute(_count(connection, group))
        for group in _grouped(waiting, by=_alike):
            self._store_alike(connection, group)
        connection.execute(delete(rejections).where(rejections.c.id.in_(_surplus(known=True))))
        connection.execute(delete(rejections).where(rejections.c.id.in_(_surplus(known=False))))

    def _store_alike(self, connection: Connection, group: Sequence[Rejection]) -> None:
        alike = _alike(group[0])
        if alike in self._rows:
            more = {"times": rejections.c.times + len(group), "last_at": group[-1].received_at}
            row = update(rejections).where(rejections.c.id == self._rows[alike])
            connection.execute(row.values(more))
        elif sum(brought_secret == alike[0] for brought_secret, *_ in self._rows) < ROWS_PER_MINUTE:
            self._rows[alike] = _insert(connection, group, self._describe(group[0]))


def list_rejections(connection: Connection, *, limit: int) -> tuple[StoredRejection, ...]:
    """List refused requests, newest first."""
    newest = select(rejections).order_by(rejections.c.id.desc()).limit(limit)
    return tuple(_stored(row) for row in connection.execute(newest).mappings())


def find_rejection(connection: Connection, rejection_id: int) -> StoredRejection | None:
    """Return one refused request, or None."""
    one = select(rejections).where(rejections.c.id == rejection_id)
    row = connection.execute(one).mappings().one_or_none()
    return None if row is None else _stored(row)


def count_rejections(connection: Connection) -> tuple[RejectionCount, ...]:
    """Count all requests that were ever refused, by reason; the last refused first."""
    counted: Select[Any] = select(rejection_counts).order_by(rejection_counts.c.last_at.desc())
    return tuple(RejectionCount(**row) for row in connection.execute(counted).mappings())


def _grouped(
    waiting: Sequence[Rejection], *, by: Callable[[Rejection], object]
) -> Collection[Sequence[Rejection]]:
    groups: dict[object, list[Rejection]] = {}
    for rejection in waiting:
        groups.setdefault(by(rejection), []).append(rejection)
    return groups.values()


def _reason(rejection: Rejection) -> tuple[str, int, str]:
    return rejection.webhook, rejection.status_code, rejection.reason


def _alike(rejection: Rejection) -> _Alike:
    network = network_of(rejection.client or "")
    return (rejection.brought_secret, *_reason(rejection), network)


def _insert(connection: Connection, group: Sequence[Rejection], described: Described) -> int:
    first = group[0]
    row = insert(rejections).values(
        received_at=first.received_at,
        webhook=first.webhook,
        method=described.method,
        status_code=first.status_code,
        reason=first.reason,
        brought_secret=first.brought_secret,
        client=described.client,
        query=described.query,
        headers=json.dumps(described.headers),
        body_bytes=described.body_bytes,
        times=len(group),
        last_at=group[-1].received_at,
    )
    return int(connection.execute(row.returning(rejections.c.id)).scalar_one())


def _count(connection: Connection, group: Sequence[Rejection]) -> Insert:
    c = rejection_counts.c
    key = dict(zip((c.webhook, c.status_code, c.reason), _reason(group[0]), strict=True))
    row = upsert(connection, rejection_counts).values(
        {
            **key,
            c.times: len(group),
            c.first_at: group[0].received_at,
            c.last_at: group[-1].received_at,
        }
    )
    more = {"times": c.times + row.excluded.times, "last_at": row.excluded.last_at}
    counted: Insert = row.on_conflict_do_update(index_elements=list(key), set_=more)
    return counted


def _surplus(*, known: bool) -> Select[Any]:
    """Select the ids of the rows beyond `KEPT_ROWS`: of each kind the newest row is kept before the
    second of any, and so on."""
    c = rejections.c
    kind = (c.webhook, c.status_code, c.reason, c.client)
    rank = func.row_number().over(partition_by=kind, order_by=c.id.desc()).label("rank")
    ranked = select(c.id, rank).where(c.brought_secret.is_(known)).subquery()
    return select(ranked.c.id).order_by(ranked.c.rank, ranked.c.id.desc()).offset(KEPT_ROWS)


def _stored(row: Mapping[Any, Any]) -> StoredRejection:
    headers = tuple((name, value) for name, value in json.loads(row["headers"]))
    return StoredRejection(**{**row, "headers": headers})
