"""Writes down requests that were refused, where nobody waits for it and no flood can do harm.

Whoever refuses a request only leaves a note in memory. A thread writes the notes, once a second at
most: requests that are alike become one row, rows are few a minute, and of what was refused most
often the oldest go. All are counted, by reason, so that a page can say how many there were.

Every limit holds twice: for requests that brought an accepted secret, and for those of strangers,
who can so take no room from them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import Connection, Insert, Select, delete, insert, select, update

from ..environment.addresses import network_of
from ..masking.error_report import describe_failure
from .deliveries import Kind
from .dialects import upsert
from .tables import rejection_counts, rejections

logger = logging.getLogger("millis_hooks.call_log")

#: How long notes gather before they are written, in seconds.
WRITE_EVERY_S = 1.0
#: Rows that a minute may add, and rows that are kept.
ROWS_PER_MINUTE = 60
KEPT_ROWS = 1_000
#: Kinds of requests that may wait to become rows; more are only counted.
_MOST_NOTES = 50


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


#: What makes requests alike, whether they brought a secret first; and what they are counted by.
_Alike: TypeAlias = tuple[bool, str, int, str, str]
_Reason: TypeAlias = tuple[str, int, str]


@dataclass(slots=True)
class _Tally:
    """How many there were, and when the first and the last came."""

    first_at: datetime
    last_at: datetime
    times: int = 0

    def add(self, at: datetime) -> None:
        self.times += 1
        self.last_at = at


@dataclass(slots=True)
class _Notes:
    """What is to be written next."""

    firsts: dict[_Alike, Rejection] = field(default_factory=dict)
    alike: dict[_Alike, _Tally] = field(default_factory=dict)
    counts: dict[_Reason, _Tally] = field(default_factory=dict)

    def add(self, note: Rejection) -> None:
        at = note.received_at
        reason = (note.webhook, note.status_code, note.reason)
        self.counts.setdefault(reason, _Tally(at, at)).add(at)
        alike = _alike(note)
        if alike in self.firsts or _room(_MOST_NOTES, self.firsts, alike[0]):
            self.firsts.setdefault(alike, note)
            self.alike.setdefault(alike, _Tally(at, at)).add(at)


class RejectionLog:
    """Takes notes of refused requests, from any thread, and has them written."""

    def __init__(
        self,
        write: Callable[[Callable[[Connection], dict[_Alike, int]]], dict[_Alike, int]],
        describe: Callable[[Rejection], Described],
    ) -> None:
        """Write what `describe` leaves of a request, with `write`."""
        self._write = write
        self._describe = describe
        self._lock = threading.Lock()
        self._notes = _Notes()
        self._is_noted = threading.Event()
        self._is_closing = threading.Event()
        self._thread: threading.Thread | None = None  # most never refuse anything
        self._minute: datetime | None = None
        self._rows: dict[_Alike, int] = {}  # those of this minute

    def note(self, rejection: Rejection) -> None:
        """Have the request written down soon."""
        with self._lock:
            self._notes.add(rejection)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="millis-hooks-rejections", daemon=True
                )
                self._thread.start()
        self._is_noted.set()

    def close(self) -> None:
        """Write what is left, then end."""
        self._is_closing.set()
        self._is_noted.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._is_closing.is_set():
            self._is_noted.wait()
            self._is_noted.clear()
            self._write_notes()
            self._is_closing.wait(WRITE_EVERY_S)
        self._write_notes()

    def _write_notes(self) -> None:
        with self._lock:
            notes, self._notes = self._notes, _Notes()
        if not notes.counts:
            return
        try:
            self._rows |= self._store(notes)
        except Exception as error:  # whatever it is, the next ones shall be written
            lost = sum(tally.times for tally in notes.counts.values())
            why = describe_failure(error)
            logger.warning("%d refused requests could not be written down: %s", lost, why)

    def _store(self, notes: _Notes) -> dict[_Alike, int]:
        """Write the notes, and return the rows that are new."""
        rows = self._rows_in(max(tally.last_at for tally in notes.counts.values()))
        described: dict[_Alike, Described] = {}
        for brought_secret in (True, False):
            new = [each for each in notes.firsts if each not in rows and each[0] == brought_secret]
            room = _room(ROWS_PER_MINUTE, rows, brought_secret)
            described |= {alike: self._describe(notes.firsts[alike]) for alike in new[:room]}
        return self._write(partial(_write, notes, rows, described))

    def _rows_in(self, moment: datetime) -> dict[_Alike, int]:
        minute = moment.replace(second=0, microsecond=0)
        if minute != self._minute:
            self._minute, self._rows = minute, {}
        return self._rows


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


def _write(
    notes: _Notes,
    rows: Mapping[_Alike, int],
    described: Mapping[_Alike, Described],
    connection: Connection,
) -> dict[_Alike, int]:
    for alike in rows.keys() & notes.alike.keys():
        _add_to(connection, rows[alike], notes.alike[alike])
    for reason, tally in notes.counts.items():
        connection.execute(_count(connection, reason, tally))
    new = {
        alike: _insert(connection, notes.firsts[alike], told, notes.alike[alike])
        for alike, told in described.items()
    }
    if new:
        connection.execute(delete(rejections).where(rejections.c.id.in_(_surplus(connection))))
    return new


def _surplus(connection: Connection) -> list[int]:
    """Return the ids of the rows beyond those to keep: the newest row of each kind is kept before
    the second of any, and so on.
    """
    seen: Counter[_Alike] = Counter()
    ranked: list[tuple[int, bool, int]] = []
    for row in connection.execute(_KINDS):
        seen[_alike(row)] += 1
        ranked.append((seen[_alike(row)], row.brought_secret, row.id))
    ranked.sort(key=lambda each: each[0])
    known, strangers = ([each for each in ranked if each[1] == is_] for is_ in (True, False))
    return [row_id for *_, row_id in known[KEPT_ROWS:] + strangers[KEPT_ROWS:]]


def _room(most: int, taken: Collection[_Alike], brought_secret: bool) -> int:
    return max(most - sum(alike[0] == brought_secret for alike in taken), 0)


_KINDS = select(
    rejections.c.id,
    rejections.c.brought_secret,
    rejections.c.webhook,
    rejections.c.status_code,
    rejections.c.reason,
    rejections.c.client,
).order_by(rejections.c.id.desc())


def _stored(row: Mapping[Any, Any]) -> StoredRejection:
    headers = tuple((name, value) for name, value in json.loads(row["headers"]))
    return StoredRejection(**{**row, "headers": headers})


def _alike(note: Any) -> _Alike:
    """Return what kind a rejection, or a row of `_KINDS`, is of."""
    network = network_of(note.client or "")
    return note.brought_secret, note.webhook, note.status_code, note.reason, network


def _insert(connection: Connection, note: Rejection, told: Described, tally: _Tally) -> int:
    row = insert(rejections).values(
        received_at=tally.first_at,
        webhook=note.webhook,
        method=told.method,
        status_code=note.status_code,
        reason=note.reason,
        brought_secret=note.brought_secret,
        client=told.client,
        query=told.query,
        headers=json.dumps(told.headers),
        body_bytes=told.body_bytes,
        times=tally.times,
        last_at=tally.last_at,
    )
    return int(connection.execute(row.returning(rejections.c.id)).scalar_one())


def _add_to(connection: Connection, row_id: int, tally: _Tally) -> None:
    more = {"times": rejections.c.times + tally.times, "last_at": tally.last_at}
    connection.execute(update(rejections).where(rejections.c.id == row_id).values(more))


def _count(connection: Connection, reason: _Reason, tally: _Tally) -> Insert:
    c = rejection_counts.c
    named = dict(zip((c.webhook, c.status_code, c.reason), reason, strict=True))
    row = upsert(connection, rejection_counts).values(
        {**named, c.times: tally.times, c.first_at: tally.first_at, c.last_at: tally.last_at}
    )
    more = {"times": c.times + row.excluded.times, "last_at": row.excluded.last_at}
    counted: Insert = row.on_conflict_do_update(index_elements=list(named), set_=more)
    return counted
