"""Reads stored deliveries again with the present code: after an upgrade, a fix, a setting.

It goes session by session, so that each comes out as in a fresh call log: a session is taken at its
first chosen delivery, with all of its processed deliveries. Deliveries that still wait in the inbox
are left to the service. A delivery that cannot be read any more becomes unparsed, and one that can
be read at last is stored as if it had just come in. The progress is stored in the call log, so an
interrupted run goes on there, and memory stays flat.
"""

from __future__ import annotations

import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from datetime import datetime
from functools import partial
from itertools import accumulate
from typing import Any, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    FromClause,
    Row,
    Select,
    and_,
    delete,
    exists,
    func,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from ...exceptions import AnotherAgentError, PayloadError
from ...masking.error_report import describe_failure
from ...protocol.events import EndOfCall
from ..call_ends import RunsFor
from ..call_rows import refuse
from ..database import Database
from ..deliveries import content_hash
from ..projection import Digest, digest_delivery, of_session
from ..raw_body import length_of
from ..rederive import Rederived, Scratch, bring_up
from ..sanitize import clean_text
from ..tables import calls, deliveries, handlers, inbox, keys
from .removal import Write

logger = logging.getLogger("millis_hooks.call_log")

#: Says what a row of `deliveries` tells.
ToDigest: TypeAlias = Callable[[Row[Any]], Digest | None]

#: The outcome of a delivery that can be read. Which of a prefetch's it was is lost.
_READ = {"prefetch": "fresh", "end_of_call": "stored"}


@dataclass(frozen=True, slots=True)
class Reread:
    """What came of reading again: deliveries read, those that can be read now and could not before
    (`recovered`), those that cannot (`unreadable`), and calls that are not what they were."""

    deliveries: int = 0
    recovered: int = 0
    unreadable: int = 0
    changed_calls: int = 0

    def __add__(self, other: Reread) -> Reread:
        return Reread(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class ToldAgain:
    """A delivery that was read again, and what is kept of it; `reason` says why nothing is told.

    One that `is_refused` is another agent's than its secret.
    """

    id: int
    kind: str
    outcome: str
    kept_session_id: str | None
    digest: Digest | None = None
    reason: str | None = None
    is_refused: bool = False

    @property
    def session_id(self) -> str | None:
        told: str | None = self.digest.call.get("session_id") if self.digest else None
        return told

    @property
    def is_recovered(self) -> bool:
        return self.digest is not None and self.outcome == "unparsed"


@dataclass(frozen=True, slots=True)
class Batch:
    """Sessions with all their deliveries, and deliveries that are of none, oldest first."""

    told: Sequence[ToldAgain]
    sessions: Collection[str]
    loose: Collection[int]


def read_again(connection: Connection, chosen: Sequence[Row[Any]], digest: ToDigest) -> Batch:
    """Read all sessions of the `chosen` (id, session_id).

    Those that name no session are read alone, unless they turn out to be of one.
    """
    loose = [row.id for row in chosen if row.session_id is None]
    told = list(_told(connection, deliveries.c.id.in_(loose), digest))
    sessions: set[str] = set()
    new: set[Any] = {row.session_id for row in chosen} | {each.session_id for each in told}
    while new := new - sessions - {None}:
        sessions |= new
        found = list(_told(connection, deliveries.c.session_id.in_(new), digest))
        told += found
        new = {each.session_id for each in found}
    return Batch(sorted(told, key=lambda each: each.id), sessions, loose)


def _told(
    connection: Connection, which: ColumnElement[bool], digest: ToDigest
) -> Iterator[ToldAgain]:
    rows = select(deliveries).where(which, _is_processed())
    for row in connection.execution_options(yield_per=1).execute(rows):
        told = ToldAgain(row.id, row.kind, row.outcome, row.session_id)
        try:
            yield replace(told, digest=_digest(row, digest))
        except AnotherAgentError:
            yield replace(told, is_refused=True)
        except PayloadError as error:
            yield replace(told, reason=str(error))
        except Exception as error:
            yield replace(told, reason=_log_failure(row.id, error))


def _digest(row: Row[Any], digest: ToDigest) -> Digest:
    """Digest a row. Raises `PayloadError` for one that cannot be read."""
    found = digest(row)
    if found is None:
        EndOfCall.parse(row.body)
        raise PayloadError
    if found.call and row.kind == "prefetch" and row.outcome == "unparsed":
        found.call["prefetch_outcome"] = _READ[row.kind]
    return found


def _is_processed() -> ColumnElement[bool]:
    waits = exists().where(inbox.c.delivery_id == deliveries.c.id)
    return and_(deliveries.c.outcome != "rejected", ~waits)


def _log_failure(delivery_id: int, error: Exception) -> str:
    failure = describe_failure(error)
    logger.error("delivery %d could not be processed\n%s", delivery_id, failure.block)
    return str(failure)


def derive_again(scratch: Scratch, batch: Batch) -> tuple[Batch, Rederived]:
    """Derive what the batch tells; a delivery that nothing can be derived from tells nothing."""
    try:
        return batch, scratch.derive(_by_session(batch))
    except Exception:  # one of them holds the others up
        told = [_tried(scratch, each) for each in batch.told]
    batch = replace(batch, told=told)
    return batch, scratch.derive(_by_session(batch))


def _tried(scratch: Scratch, told: ToldAgain) -> ToldAgain:
    try:
        scratch.derive([[told.digest]] if told.digest else [])
    except Exception as error:
        return replace(told, digest=None, reason=_log_failure(told.id, error))
    return told


def _by_session(batch: Batch) -> list[list[Digest]]:
    sessions: defaultdict[str | int, list[Digest]] = defaultdict(list)
    for told in batch.told:
        if told.digest is not None:
            sessions[told.session_id or told.id].append(told.digest)
    return [of_session(digests) for digests in sessions.values()]


def write_again(connection: Connection, batch: Batch, fresh: Rederived) -> Reread | None:
    """Write what differs; None if the deliveries are not those any more that were read."""
    ids = [told.id for told in batch.told]
    of_batch = or_(deliveries.c.session_id.in_(batch.sessions), deliveries.c.id.in_(batch.loose))
    now = select(deliveries.c.id).where(of_batch, _is_processed()).order_by(deliveries.c.id)
    if list(connection.scalars(now)) != ids:
        return None
    # Who processes an end of one of these calls waits here, and then finds what has changed.
    these = calls.c.session_id.in_(batch.sessions)
    connection.execute(select(calls.c.id).where(these).order_by(calls.c.id).with_for_update())
    changed_calls = bring_up(connection, fresh, ids)
    refused = {told.id for told in batch.told if told.is_refused} | set(fresh.refused)
    refuse(connection, refused)
    for told in batch.told:
        if told.id not in refused:
            _note(connection, told)
    return Reread(
        len(ids),
        sum(told.is_recovered and told.id not in refused for told in batch.told),
        sum(told.digest is None for told in batch.told),
        changed_calls,
    )


def _note(connection: Connection, told: ToldAgain) -> None:
    """Say of a delivery whether it can be read, and whose it is, as if it had just come in."""
    changes: dict[str, str | None] = {}
    if told.is_recovered:
        changes = {"outcome": _READ[told.kind], "reason": None}
    elif told.digest is None and told.outcome != "unparsed":
        changes = {"outcome": "unparsed", "reason": clean_text(told.reason)}
    if told.session_id not in (None, told.kept_session_id):
        changes["session_id"] = told.session_id
    if changes:
        is_it = deliveries.c.id == told.id
        connection.execute(update(deliveries).where(is_it).values(changes))


#: How often it begins anew because something of the session came in meanwhile.
_TRIES = 5


def reread_delivery(
    reader: Engine, write: Write, delivery_id: int, digest: ToDigest
) -> Reread | None:
    """Put what the delivery tells in the place of what there is; None if there is no such one.

    Raises what `write` raises.
    """
    asked: Select[Any] = select(deliveries.c.id, deliveries.c.session_id).where(
        deliveries.c.id == delivery_id, deliveries.c.outcome != "rejected"
    )
    scratch = Scratch()
    try:
        for _ in range(_TRIES):
            with reader.connect() as connection:
                chosen = list(connection.execute(asked))
                batch = read_again(connection, chosen, digest)
            if not chosen:
                return None
            batch, fresh = derive_again(scratch, batch)
            reread = write(partial(_write, batch, fresh))
            if reread is not None:
                return reread
        return Reread()
    finally:
        scratch.close()


def _write(batch: Batch, fresh: Rederived, connection: Connection) -> Reread | None:
    return write_again(connection, batch, fresh)


#: Deliveries whose sessions go into one transaction, by number and by size.
BATCH_DELIVERIES = 50
BATCH_BYTES = 2 * 1024 * 1024
#: It may keep others from writing for so long, in seconds; down to so many deliveries.
_WRITE_S = 0.01
_LEAST_DELIVERIES = 4

#: Where the place is kept that an interrupted one had come to.
_PLACE = "reparse"


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which deliveries are read again: all, unless it says which; `since` is inclusive."""

    unparsed: bool = False
    since: datetime | None = None
    session_id: str | None = None


@dataclass(frozen=True, slots=True)
class Place:
    """How far it came, in ids of deliveries: up to `after`, of those up to `last`."""

    after: int
    last: int


class Reparse:
    """Reads what is chosen again, batch by batch."""

    def __init__(
        self,
        database: Database,
        chosen: Chosen,
        *,
        version: str,
        own_numbers: frozenset[str] = frozenset(),
        runs_for: RunsFor = lambda call: (),
        afresh: bool = False,
    ) -> None:
        """Go on where the last one was that chose the same and did not end, unless `afresh`.

        `version` names the code that reads; another one begins at the beginning.
        """
        self._database = database
        self._chosen = chosen
        self._digest = partial(digest_delivery, own_numbers=own_numbers, runs_for=runs_for)
        self._size = BATCH_DELIVERIES
        self._task = _name_task(chosen, version, own_numbers)
        with database.writer.begin() as connection:
            place = None if afresh else _read_place(connection, self._task)
            self.is_resumed = place is not None
            self.place = place or _beginning(connection)
            _write_place(connection, self._task, self.place)

    def batches(self, *, rest: Callable[[float], None] | None = None) -> Iterator[Reread]:
        """Read a batch with each step.

        Where others write too, give what to `rest` with: it is called after each batch with the
        seconds they had to wait for it, and batches are made smaller to keep that short.
        """
        scratch = Scratch()
        try:
            while self.place.after < self.place.last:
                reread, wrote_s = self._do_batch(scratch)
                if rest is not None:
                    rest(wrote_s)
                    self._size = _next_size(self._size, wrote_s)
                yield reread
        finally:
            scratch.close()
        with self._database.writer.begin() as connection:
            connection.execute(delete(keys).where(keys.c.name == _PLACE))

    def _do_batch(self, scratch: Scratch) -> tuple[Reread, float]:
        while True:
            with self._database.reader.connect() as connection:
                chosen = self._choose(connection)
                batch = read_again(connection, chosen, self._digest)
            come_to = chosen[-1].id if chosen else self.place.last
            batch, fresh = derive_again(scratch, batch)
            with self._database.writer.begin() as connection:
                began = time.perf_counter()
                reread = write_again(connection, batch, fresh)
                if reread is not None:
                    self.place = Place(come_to, self.place.last)
                    _write_place(connection, self._task, self.place)
            if reread is not None:  # else something was processed or removed meanwhile
                return reread, time.perf_counter() - began

    def _choose(self, connection: Connection) -> list[Row[Any]]:
        """Take the next deliveries, of each session the first of those that are chosen."""
        earlier = deliveries.alias()
        first = ~exists().where(
            earlier.c.session_id == deliveries.c.session_id,
            earlier.c.id < deliveries.c.id,
            *_conditions(earlier, self._chosen),
        )
        found = (
            select(
                deliveries.c.id,
                deliveries.c.session_id,
                length_of(deliveries.c.body).label("body_bytes"),
            )
            .where(
                deliveries.c.id > self.place.after,
                deliveries.c.id <= self.place.last,
                *_conditions(deliveries, self._chosen),
                first,
            )
            .order_by(deliveries.c.id)
            .limit(self._size)
        )
        return _bounded(list(connection.execute(found)))


def registered_runs(connection: Connection) -> RunsFor:
    """Return which handlers want a call, as far as the application that started last wrote it down:
    a handler's own `when` is asked once its turn comes."""
    chosen = select(handlers.c.name, handlers.c.filters).where(handlers.c.hook == "end_of_call")
    registered = [(name, json.loads(filters)) for name, filters in connection.execute(chosen)]
    return lambda call: [
        name
        for name, filters in registered
        if all(getattr(call, field) in wanted for field, wanted in filters.items())
    ]


def _conditions(table: FromClause, chosen: Chosen) -> Iterator[ColumnElement[bool]]:
    # Spelled out, not bound: SQLite then sees that the index of the unparsed answers it.
    if chosen.unparsed:
        yield table.c.outcome == literal_column("'unparsed'")
    else:
        yield table.c.outcome != literal_column("'rejected'")
    if chosen.since is not None:
        yield table.c.received_at >= chosen.since
    if chosen.session_id is not None:
        yield table.c.session_id == clean_text(chosen.session_id)


def _bounded(chosen: list[Row[Any]]) -> list[Row[Any]]:
    """Take as many as go into one batch by their size, at least one."""
    sizes = accumulate(row.body_bytes for row in chosen)
    within = sum(size <= BATCH_BYTES for size in sizes)
    return chosen[: max(within, 1)]


def _next_size(size: int, wrote_s: float) -> int:
    if wrote_s > _WRITE_S:
        return max(size // 2, _LEAST_DELIVERIES)
    return min(size * 2, BATCH_DELIVERIES) if wrote_s < _WRITE_S / 2 else size


def _name_task(chosen: Chosen, version: str, own_numbers: frozenset[str]) -> str:
    named = [version, *map(str, astuple(chosen)), *sorted(own_numbers)]
    return content_hash(json.dumps(named).encode()).hex()


def _beginning(connection: Connection) -> Place:
    return Place(0, connection.scalar(select(func.max(deliveries.c.id))) or 0)


def _read_place(connection: Connection, task: str) -> Place | None:
    kept = connection.scalar(select(keys.c.value).where(keys.c.name == _PLACE))
    named, *place = json.loads(kept) if kept else [None]
    return Place(*place) if named == task else None


def _write_place(connection: Connection, task: str, place: Place) -> None:
    connection.execute(delete(keys).where(keys.c.name == _PLACE))
    value = json.dumps([task, place.after, place.last]).encode()
    connection.execute(insert(keys).values(name=_PLACE, value=value))
