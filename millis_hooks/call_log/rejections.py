"""Rejected requests: which are written, and their rows in the call log.

Rows are few a minute, and fewer of one network; the oldest of what was rejected most often are
removed first. Every limit holds twice: for requests that brought an accepted secret, and for
others, which so take no room from them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, Select, delete, func, insert, select

from ..environment.addresses import network_of
from ..exceptions import StorageError
from ..masking.error_report import describe_failure
from .deliveries import Kind
from .tables import rejections

logger = logging.getLogger("millis_hooks.call_log")

#: Rows that a minute may add, of them from one network, and rows that are kept.
ROWS_PER_MINUTE = 60
ROWS_PER_NETWORK = 20
KEPT_ROWS = 1_000


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
    """A rejected request without its secrets; `body_bytes` is what its sender declared."""

    method: str
    client: str | None
    query: str
    headers: tuple[tuple[str, str], ...]
    body_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRejection:
    """A row of `rejections`."""

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
    brought_secret: bool


@dataclass(frozen=True, slots=True)
class RejectionCount:
    """How many of the kept requests to a webhook were refused for a reason."""

    webhook: str
    status_code: int
    reason: str
    times: int
    first_at: datetime
    last_at: datetime


class RejectionLog:
    """Has rejected requests written, a few a minute. For one thread, which never waits."""

    def __init__(
        self,
        submit: Callable[[Callable[[Connection], None]], Future[None]],
        describe: Callable[[Rejection], Described],
        *,
        on_written: Callable[[], None] = lambda: None,
    ) -> None:
        """Write, by `submit`, what `describe` leaves of a request."""
        self._submit = submit
        self._describe = describe
        self._on_written = on_written
        self._minute: datetime | None = None
        self._rows: Counter[tuple[bool, str]] = Counter()  # of this minute, by network

    def note(self, rejection: Rejection) -> None:
        """Have the request written, if this minute has room for it."""
        if self._has_room(rejection):
            with suppress(StorageError):  # the call log is closed
                written = self._submit(partial(self._store, rejection))
                written.add_done_callback(self._note_written)

    def _has_room(self, rejection: Rejection) -> bool:
        minute = rejection.received_at.replace(second=0, microsecond=0)
        if minute != self._minute:
            self._minute, self._rows = minute, Counter()
        kind = rejection.brought_secret
        network = kind, network_of(rejection.client or "")
        of_kind = sum(rows for (other, _), rows in self._rows.items() if other == kind)
        if of_kind >= ROWS_PER_MINUTE or self._rows[network] >= ROWS_PER_NETWORK:
            return False
        self._rows[network] += 1
        return True

    def _store(self, rejection: Rejection, connection: Connection) -> None:
        described = self._describe(rejection)
        row = insert(rejections).values(
            received_at=rejection.received_at,
            webhook=rejection.webhook,
            method=described.method,
            status_code=rejection.status_code,
            reason=rejection.reason,
            brought_secret=rejection.brought_secret,
            client=described.client,
            query=described.query,
            headers=json.dumps(described.headers),
            body_bytes=described.body_bytes,
        )
        connection.execute(row)
        surplus = rejections.c.id.in_(_surplus(brought_secret=rejection.brought_secret))
        connection.execute(delete(rejections).where(surplus))

    def _note_written(self, written: Future[None]) -> None:
        if (error := written.exception()) is None:
            self._on_written()
        else:
            why = describe_failure(error)
            logger.warning("a rejected request could not be written: %s", why)


def find_rejection(connection: Connection, rejection_id: int) -> StoredRejection | None:
    """Return one refused request, or None."""
    one = select(rejections).where(rejections.c.id == rejection_id)
    row = connection.execute(one).mappings().one_or_none()
    return None if row is None else _stored(row)


def count_rejections(connection: Connection) -> tuple[RejectionCount, ...]:
    """Count the kept requests by reason; the last refused first."""
    c = rejections.c
    reason = (c.webhook, c.status_code, c.reason)
    first_at, last_at = func.min(c.received_at), func.max(c.received_at)
    counted = select(*reason, func.count(), first_at, last_at).group_by(*reason)
    rows = connection.execute(counted.order_by(last_at.desc()))
    return tuple(RejectionCount(*row) for row in rows)


def _surplus(*, brought_secret: bool) -> Select[Any]:
    """Select the ids of the rows beyond `KEPT_ROWS`: of each kind the newest row is kept before the
    second of any, and so on."""
    c = rejections.c
    kind = (c.webhook, c.status_code, c.reason, c.client)
    rank = func.row_number().over(partition_by=kind, order_by=c.id.desc()).label("rank")
    ranked = select(c.id, rank).where(c.brought_secret.is_(brought_secret)).subquery()
    return select(ranked.c.id).order_by(ranked.c.rank, ranked.c.id.desc()).offset(KEPT_ROWS)


def _stored(row: Mapping[Any, Any]) -> StoredRejection:
    headers = tuple((name, value) for name, value in json.loads(row["headers"]))
    return StoredRejection(**{**row, "headers": headers})
