"""Reads deliveries together with the earlier ones of their sessions, and projects the sessions."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, TypeAlias

from sqlalchemy import Connection, Row, Select, select

from ..exceptions import AnotherAgentError, PayloadError
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from ..protocol.reading import collecting_nothing
from .call_ends import IS_TOLD, ReadEnds, RunsFor, outermost
from .change_feed import Change
from .change_feed import Kind as ChangeKind
from .dialects import is_postgresql
from .projection import READABLE, Digest, Part, Projection, digest_delivery, project, transcript_of
from .raw_body import length_of
from .sanitize import clean_text
from .search import Excerpt, Item, excerpts, transcript_excerpts
from .statements import Columns, Prepared, among
from .tables import calls, deliveries

#: Reads a row of `deliveries`; raises `PayloadError` for one that cannot be read.
ToDigest: TypeAlias = Callable[[Row[Any]], Digest]

#: Earlier deliveries of sessions are read up to this many bytes at once; of one session, all.
MOST_KNOWN_BYTES = 2 * 1024 * 1024
#: Any number that no other program takes for its advisory locks, beside the hash of a session.
_SESSION_LOCK = 1_208_330_257

_d = deliveries.c
_TOLD: Select[Any] = (
    select(
        _d.id,
        _d.kind,
        _d.received_at,
        _d.outcome,
        _d.latency_ms,
        _d.session_id,
        _d.query,
        _d.body,
        _d.content_hash,
        _d.imported,
        _d.source,
        _d.secret_agent,
        _d.content_type,
        _d.function,
        _d.kept,
    )
    .where(among(_d.id, "ids"))
    .order_by(_d.id)
)
_KNOWN = Prepared(
    select(
        _d.id,
        _d.kind,
        _d.session_id,
        _d.received_at,
        _d.content_hash,
        _d.source,
        _d.secret_agent,
        _d.kept.is_not(None).label("kept"),
        length_of(_d.body).label("body_bytes"),
    )
    .where(among(_d.session_id, "sessions"), IS_TOLD)
    .order_by(_d.id)
)
_TOLD_AT_ONCE = Prepared(_TOLD)
#: The bodies of calls with one end-of-call.
_BODIES = Prepared(
    select(calls.c.session_id, _d.body)
    .join(deliveries, _d.id == calls.c.delivery_id)
    .where(among(calls.c.session_id, "sessions"), ~calls.c.repeated)
)
_CHANGES: Mapping[str, ChangeKind] = {
    "prefetch": "started",
    "function": "function",
    "end_of_call": "ended",
}
_OTHER_AGENT = str(AnotherAgentError())
_LOCK = (
    "SELECT session_id FROM unnest(%s::text[]) AS s (session_id) "
    "WHERE pg_try_advisory_xact_lock(%s, hashtext(session_id))"
)


@dataclass(frozen=True, slots=True)
class Session:
    """A session of deliveries that were read. `projection` is None where an end has come once more,
    and nothing else."""

    delivery_ids: Sequence[int]
    #: The deliveries that were processed before.
    known_ids: Sequence[int]
    drift: Sequence[Columns]
    projection: Projection | None = None


@dataclass(slots=True)
class Batch:
    """Deliveries that were read, and the projections of their sessions."""

    is_again: bool
    sessions: dict[str, Session] = field(default_factory=dict)
    #: Deliveries that name no session, or cannot be read, and the drift in them.
    loose_ids: list[int] = field(default_factory=list)
    loose_drift: list[Columns] = field(default_factory=list)
    #: Columns of deliveries to update, by their ids; each with the `id`.
    outcomes: dict[int, Columns] = field(default_factory=dict)
    session_ids: dict[int, Columns] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    @property
    def delivery_ids(self) -> list[int]:
        """The deliveries that are in it."""
        of_sessions = (each.delivery_ids for each in self.sessions.values())
        return [*self.loose_ids, *chain.from_iterable(of_sessions)]

    def hand_on(self, read_ends: ReadEnds) -> None:
        """Keep the end-of-calls that runs are for, where a call has just one."""
        for session in self.sessions.values():
            digest = session.projection and session.projection.end
            if digest and (end := digest.end):
                read_ends.put(end.delivery_id, end.call, digest.body_bytes)


class SessionReader:
    """Reads and projects sessions; writes nothing."""

    def __init__(
        self, to_digest: ToDigest, runs_for: RunsFor, mask: MaskPolicy = SECRETS_ALONE
    ) -> None:
        self._to_digest = to_digest
        self._runs_for = runs_for
        self._mask = mask

    def read(self, connection: Connection, ids: Sequence[int], *, is_again: bool = False) -> Batch:
        """Read deliveries and project their sessions.

        Left out are sessions that another process has locked, and those for which too much would
        have to be read at once.

        `is_again`: all were processed before; the calls then are as in a new call log.
        """
        batch = Batch(is_again)
        new = self._read_new(connection, ids, batch)
        known = known_of(connection, _lock(connection, list(new)), besides=ids)
        if not is_again:
            for session_id in [each for each in known if _is_repetition(new[each], known[each])]:
                rows = known.pop(session_id)
                batch.sessions[session_id] = _session(new[session_id], rows)
        stored = {} if is_again else _stored_parts(new, known)
        chosen = _bounded({each: () if each in stored else known[each] for each in known})
        before = self.read_known(connection, chosen)
        for session_id in chosen:
            projection = project(
                session_id,
                new[session_id],
                before.get(session_id, ()),
                runs_for=self._runs_for,
                mask=self._mask,
                is_again=is_again,
                stored=stored.get(session_id),
            )
            if projection.stored != "end":
                _ = projection.search_text  # made here, where no acknowledgement waits for it
            batch.sessions[session_id] = _session(new[session_id], known[session_id], projection)
            for id_ in projection.refused:
                batch.outcomes[id_] = _outcome(id_, "rejected", _OTHER_AGENT)
        return batch

    def _read_new(
        self, connection: Connection, ids: Sequence[int], batch: Batch
    ) -> dict[str, list[Digest]]:
        """Return the digests by session, and put into the batch the deliveries without one."""
        sessions: dict[str, list[Digest]] = {}
        for row in _TOLD_AT_ONCE(connection, {"ids": ids}):
            try:
                digest = self._to_digest(row)
            except PayloadError as error:
                batch.loose_ids.append(row.id)
                if row.outcome != "unparsed":
                    batch.outcomes[row.id] = _outcome(row.id, "unparsed", str(error))
                batch.changes.append(Change("unparsed", row.session_id))
                continue
            batch.changes.append(Change(_CHANGES[row.kind], digest.session_id))
            if row.outcome == "unparsed":
                batch.outcomes[row.id] = _outcome(row.id, READABLE[row.kind])
            if digest.session_id is None:
                batch.loose_ids.append(row.id)
                batch.loose_drift += digest.drift
                continue
            sessions.setdefault(digest.session_id, []).append(digest)
            if digest.session_id != row.session_id:
                batch.session_ids[row.id] = {"session_id": digest.session_id, "id": row.id}
        return sessions

    def read_known(
        self, connection: Connection, chosen: Mapping[str, Sequence[int]]
    ) -> dict[str, list[Digest]]:
        """Read the chosen deliveries of sessions, but for what cannot be read."""
        sessions: dict[str, list[Digest]] = {}
        ids = list(chain.from_iterable(chosen.values()))
        if len(chosen) > 1 or not ids:
            rows: Iterable[Any] = _TOLD_AT_ONCE(connection, {"ids": ids}) if ids else ()
        else:  # may be many, of which one at a time is held
            rows = connection.execute(_TOLD.execution_options(yield_per=1), {"ids": ids})
        for row in rows:
            with suppress(PayloadError):
                sessions.setdefault(row.session_id, []).append(self._to_digest(row))
        return sessions


def known_of(
    connection: Connection, session_ids: Sequence[str], *, besides: Collection[int]
) -> dict[str, list[Row[Any]]]:
    """Return the earlier deliveries of each session, `besides` these, without their bodies."""
    known: dict[str, list[Row[Any]]] = {session_id: [] for session_id in session_ids}
    left_out = set(besides)
    for row in _KNOWN(connection, {"sessions": session_ids}) if session_ids else ():
        if row.id not in left_out:
            known[row.session_id].append(row)
    return known


def excerpts_of(
    connection: Connection, query: str, session_ids: Sequence[str]
) -> dict[str, tuple[Excerpt, ...]]:
    """Return by session the text around what was searched for, as it stands in the deliveries."""
    with collecting_nothing():
        ends = _BODIES(connection, {"sessions": session_ids})
        transcripts = {row.session_id: transcript_of(row.body) or "" for row in ends}
        around = transcript_excerpts(query, transcripts)
        others = [each for each in session_ids if each not in around]
        return around | excerpts(query, _items_of(connection, others))


def _items_of(connection: Connection, session_ids: Sequence[str]) -> dict[str, Sequence[Item]]:
    """Return what can be searched of calls, as it was written."""
    reader = SessionReader(partial(digest_delivery, own_numbers=frozenset()), lambda call: ())
    known = reader.read_known(connection, _bounded(known_of(connection, session_ids, besides=())))
    return {
        session_id: project(session_id, (), digests, runs_for=lambda call: ()).items
        for session_id, digests in known.items()
    }


def _lock(connection: Connection, session_ids: Sequence[str]) -> Sequence[str]:
    """Lock the sessions until the transaction ends; return those that were free."""
    if not is_postgresql(connection):
        return session_ids
    locked = connection.exec_driver_sql(_LOCK, (list(session_ids), _SESSION_LOCK))
    return locked.scalars().all()


def _session(
    new: Sequence[Digest], known: Sequence[Row[Any]], projection: Projection | None = None
) -> Session:
    refused = projection.refused if projection else ()
    drift = [row for each in new if each.delivery_id not in refused for row in each.drift]
    ids = [each.delivery_id for each in new]
    return Session(ids, [row.id for row in known], drift, projection)


def _outcome(delivery_id: int, outcome: str, reason: str | None = None) -> Columns:
    return {"outcome": outcome, "reason": clean_text(reason), "id": delivery_id}


def _is_repetition(new: Sequence[Digest], known: Sequence[Row[Any]]) -> bool:
    """Tell whether each is an end-of-call that came before, byte for byte, from the same source."""
    first: dict[object, datetime] = {}
    for row in known:
        key = (row.kind, row.content_hash, row.source)
        first[key] = min(row.received_at, first.get(key, row.received_at))
    at = [first.get(("end_of_call", each.content_hash, each.source)) for each in new]
    return all(
        before is not None
        and before <= each.received_at
        and each.secret_agent is None
        and each.is_end
        for before, each in zip(at, new, strict=True)
    )


def _stored_parts(
    new: Mapping[str, Sequence[Digest]], known: Mapping[str, Sequence[Row[Any]]]
) -> dict[str, Part]:
    """Return, by session, the part of a call that its row has, and that no new delivery tells.

    Where secrets are bound to agents, any delivery may refuse others; and what prefetches keep
    goes before the metadata of ends. There all are read.
    """
    parts: dict[str, Part] = {}
    for session_id, rows in known.items():
        told = {row.kind == "end_of_call" for row in rows}
        telling = {each.is_end for each in new[session_id]}
        both: Iterable[Any] = chain(rows, new[session_id])
        is_plain = not any(each.secret_agent or each.kept for each in both)
        if is_plain and len(told) == len(telling) == 1 and told != telling:
            parts[session_id] = "end" if True in told else "beginning"
    return parts


def _bounded(known: Mapping[str, Sequence[Row[Any]]]) -> dict[str, list[int]]:
    """Choose sessions, at least one, and the earlier deliveries of each that are read again."""
    chosen: dict[str, list[int]] = {}
    size = 0
    for session_id, rows in known.items():
        told = [row for kind in READABLE for row in _of_kind(rows, kind)]
        size += sum(row.body_bytes for row in told)
        if size <= MOST_KNOWN_BYTES or not chosen:
            chosen[session_id] = [row.id for row in told]
    return chosen


def _of_kind(rows: Sequence[Row[Any]], kind: str) -> Sequence[Row[Any]]:
    return outermost([row for row in rows if row.kind == kind])
