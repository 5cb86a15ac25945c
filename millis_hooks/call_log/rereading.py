"""Reads the deliveries of some sessions again, and puts what they tell in the place of what there
is.

What cannot be read any more becomes unparsed, and what can be read at last is stored as if it had
just come in.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any, TypeAlias

from sqlalchemy import ColumnElement, Connection, Row, and_, exists, or_, select, update

from ..events import EndOfCall
from ..exceptions import AnotherAgentError, PayloadError
from ..failures import describe_failure
from .derived import refuse
from .digest import Digest, of_session
from .rederived import Rederived, Scratch, bring_up
from .tables import calls, deliveries, inbox
from .values import clean_text

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
