"""Writes projections to the tables: calls, costs, search text and pending runs.

Everything happens in the caller's transaction, and repeating it changes nothing. It is for the
first prefetch and the first end-of-call of a session and for exact repetitions of them;
`rederive.py` handles a delivery that differs from an earlier one. A session belongs to the agent
that began it: a secret that is bound to an agent is accepted for the sessions of that agent only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from sqlalchemy import Connection, Engine, and_, case, delete, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import AnotherAgentError, StorageError
from .changed_days import mark_days, mark_days_of
from .dialects import upsert_on
from .projection import Columns, Digest
from .sanitize import clean_id, clean_text
from .search import call_search, search_row
from .tables import call_metadata, calls, cost_items, deliveries, drift, handler_runs, inbox


def pending_run(
    call_id: int,
    handler: str,
    at: datetime,
    *,
    hook: str = "end_of_call",
    is_replay: bool = False,
    failed_run_id: int | None = None,
    change: str | None = None,
) -> dict[str, Any]:
    """Return the columns of `handler_runs` for a handler that is to be called for a call."""
    return {
        "call_id": call_id,
        "hook": hook,
        "handler": handler,
        "state": "pending",
        "created_at": at,
        "state_since": at,
        "is_latest": True,
        "is_replay": is_replay,
        "failed_run_id": failed_run_id,
        "spent": 0,
        "change": change,
    }


def agent_of_session(reader: Engine, session_id: str) -> str | None:
    """Return the agent of a session; None if it is not known, or cannot be looked up now.

    What is not known at the door is known when the delivery is processed.
    """
    found = select(calls.c.agent_id).where(calls.c.session_id == clean_id(session_id))
    try:
        with reader.connect() as connection:
            agent_id: str | None = connection.scalar(found)
    except SQLAlchemyError:
        return None
    return agent_id


def of_another_agent(connection: Connection, digests: Iterable[Digest]) -> set[int]:
    """Return the deliveries whose session another agent began than the one of their secret."""
    bound = [digest for digest in digests if digest.secret_agent is not None and digest.call]
    sessions = {digest.call["session_id"] for digest in bound}
    if not sessions:
        return set()
    known = select(calls.c.session_id, calls.c.agent_id).where(calls.c.session_id.in_(sessions))
    agents = {row.session_id: row.agent_id for row in connection.execute(known)}
    return {
        digest.delivery_id
        for digest in bound
        if agents.get(digest.call["session_id"]) not in (None, digest.secret_agent)
    }


#: What both webhooks tell. A prefetch fills it in only where the end has not.
_SHARED = ("agent_id", "channel", "direction", "from_phone", "to_phone", "customer_phone")


def save(
    connection: Connection,
    digests: Sequence[Digest],
    done: Sequence[int],
    refused: Collection[int] = (),
) -> int:
    """Write what `digests` say and take `done` out of the inbox; return how many were in it.

    `refused` are deliveries that are another agent's. Repeating it changes nothing.
    """
    in_inbox = select(inbox.c.delivery_id).where(inbox.c.delivery_id.in_(done))
    # What another process is at is left to it: it may yet fail.
    free = in_inbox.with_for_update(skip_locked=True)
    waiting = set(connection.execute(free).scalars())
    derived = [digest for digest in digests if digest.delivery_id in waiting]
    refuse(connection, {*derive(connection, derived), *waiting.intersection(refused)})
    connection.execute(delete(inbox).where(inbox.c.delivery_id.in_(waiting)))
    return len(waiting)


def derive(connection: Connection, digests: Sequence[Digest]) -> set[int]:
    """Write what `digests`, none of the same session as another, say that was not said before.

    Return the deliveries that say nothing, as their session is another agent's.
    """
    refused = of_another_agent(connection, digests)
    digests = [digest for digest in digests if digest.delivery_id not in refused]
    told = [digest for digest in digests if digest.call]
    sessions = [digest.call["session_id"] for digest in told]
    mark_days_of(connection, calls.c.session_id.in_(sessions))  # a call may move to another day
    mark_days(connection, [digest.call["received_at"] for digest in told])
    _save_prefetches(connection, [digest for digest in told if not digest.ends_call])
    _save_ended_calls(connection, [digest for digest in told if digest.ends_call])
    _insert(connection, drift, _drift_rows(digests))
    return refused


def refuse(connection: Connection, delivery_ids: Collection[int]) -> None:
    """Show deliveries as rejected that were acknowledged and turned out to be another agent's."""
    rejected = {"outcome": "rejected", "reason": str(AnotherAgentError())}
    if delivery_ids:
        these = deliveries.c.id.in_(delivery_ids)
        connection.execute(update(deliveries).where(these).values(rejected))


def give_up(connection: Connection, delivery_id: int, reason: str) -> None:
    """Show a delivery as unparsed that nothing can be derived from; it stays as it was received."""
    unparsed = {"outcome": "unparsed", "reason": clean_text(reason)}
    connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(unparsed))
    connection.execute(delete(inbox).where(inbox.c.delivery_id == delivery_id))


def _save_prefetches(connection: Connection, digests: Sequence[Digest]) -> None:
    if not digests:
        return
    ids = _upsert(connection, [digest.call for digest in digests], kind="prefetch")
    known = select(call_search.c.rowid).where(call_search.c.rowid.in_(ids.values()))
    searchable = set(connection.execute(known).scalars())  # maybe by what was said, too
    rows = _search_rows(ids, digests)
    _insert(connection, call_search, [row for row in rows if row["rowid"] not in searchable])
    _date_metadata(connection, searchable)


def _date_metadata(connection: Connection, call_ids: Collection[int]) -> None:
    """Let metadata follow its call, which a prefetch that was processed late sets back in time."""
    of_call = select(calls.c.received_at).where(calls.c.id == call_metadata.c.call_id)
    received_at = of_call.scalar_subquery()
    moved = and_(call_metadata.c.call_id.in_(call_ids), call_metadata.c.received_at != received_at)
    if call_ids:
        connection.execute(update(call_metadata).where(moved).values(received_at=received_at))


def _save_ended_calls(connection: Connection, digests: Sequence[Digest]) -> None:
    ended = _already_ended(connection, [digest.call["session_id"] for digest in digests])
    first = [digest for digest in digests if digest.call["session_id"] not in ended]
    again = [digest for digest in digests if digest.call["session_id"] in ended]
    _require_repetitions(connection, again)
    _mark_repeated(connection, again)
    if not first:
        return
    ids = _upsert(connection, [digest.call for digest in first], kind="end_of_call")
    owned = [(ids[digest.call["session_id"]], digest) for digest in first]
    _insert(connection, cost_items, _cost_rows(owned))
    _insert(connection, call_metadata, _metadata_rows(connection, owned))
    _insert(connection, handler_runs, _run_rows(owned))
    connection.execute(delete(call_search).where(call_search.c.rowid.in_(ids.values())))
    _insert(connection, call_search, _search_rows(ids, first))


def _already_ended(connection: Connection, session_ids: Sequence[str]) -> Collection[str]:
    ended = select(calls.c.session_id).where(
        calls.c.session_id.in_(session_ids), calls.c.delivery_id.is_not(None)
    )
    return set(connection.execute(ended).scalars()) if session_ids else ()


def _require_repetitions(connection: Connection, digests: Sequence[Digest]) -> None:
    """Raise `StorageError` for an end that differs from those there are: another process has
    written the first one since this was read, and `rederive.py` puts them together."""
    read = {(each.call["session_id"], each.end.content_hash) for each in digests if each.end}
    if not read:
        return
    d = deliveries.c
    same = select(d.session_id, d.content_hash).where(
        d.session_id.in_([session_id for session_id, _ in read]),
        d.kind == "end_of_call",
        d.id.not_in([digest.delivery_id for digest in digests]),
    )
    if read - {(row.session_id, row.content_hash) for row in connection.execute(same)}:
        raise StorageError("another process was quicker to process the end-of-call")


def _mark_repeated(connection: Connection, digests: Sequence[Digest]) -> None:
    again = and_(
        calls.c.session_id.in_([digest.call["session_id"] for digest in digests]),
        calls.c.delivery_id.not_in([digest.delivery_id for digest in digests]),
    )
    if digests:
        connection.execute(update(calls).where(again).values(repeated=True))


def _cost_rows(owned: Sequence[tuple[int, Digest]]) -> list[Columns]:
    return [{"call_id": id_, **item} for id_, digest in owned for item in digest.cost_items]


def _metadata_rows(connection: Connection, owned: Sequence[tuple[int, Digest]]) -> list[Columns]:
    received = select(calls.c.id, calls.c.received_at).where(
        calls.c.id.in_([id_ for id_, digest in owned if digest.metadata])
    )
    received_at = {row.id: row.received_at for row in connection.execute(received)}
    return [
        {"call_id": id_, "key": key, "value": value, "received_at": received_at[id_]}
        for id_, digest in owned
        for key, value in digest.metadata.items()
    ]


def _run_rows(owned: Sequence[tuple[int, Digest]]) -> list[Columns]:
    return [
        pending_run(id_, handler, digest.call["received_at"])
        for id_, digest in owned
        for handler in digest.handlers
    ]


def _drift_rows(digests: Sequence[Digest]) -> list[Columns]:
    return [
        {"delivery_id": digest.delivery_id, **found} for digest in digests for found in digest.drift
    ]


def _search_rows(ids: Mapping[str, int], digests: Sequence[Digest]) -> list[Columns]:
    return [search_row(ids[digest.call["session_id"]], digest.search_text) for digest in digests]


def _insert(connection: Connection, into: Any, rows: Sequence[Columns]) -> None:
    if rows:
        connection.execute(insert(into), rows)


def _upsert(connection: Connection, rows: Sequence[Columns], *, kind: str) -> dict[str, int]:
    """Insert the calls, or fill in those that are known; return their ids by session."""
    statement = _upsert_statement(connection.dialect.name, tuple(rows[0]), kind)
    ids = {session_id: id_ for id_, session_id in connection.execute(statement, rows)}
    if len(ids) < len(rows):
        raise StorageError("another process was quicker to process the end-of-call")
    return ids


@cache
def _upsert_statement(dialect: str, columns: tuple[str, ...], kind: str) -> Any:
    into = upsert_on(dialect, calls)
    told = into.excluded
    changes = {name: told[name] for name in columns if name not in {"session_id", "received_at"}}
    for name in _SHARED:
        sides = (calls.c[name], told[name]) if kind == "prefetch" else (told[name], calls.c[name])
        changes[name] = func.coalesce(*sides)
    # An end-of-call without `voip` looks like one from the web; the prefetch may know better.
    first, second = (
        (calls.c.channel, told.channel) if kind == "prefetch" else (told.channel, calls.c.channel)
    )
    changes["channel"] = func.coalesce(func.nullif(first, "web"), second, first)
    # Records of prefetches linger, so the end of a short call may be processed before its start.
    changes["received_at"] = case(
        (told.received_at < calls.c.received_at, told.received_at), else_=calls.c.received_at
    )
    # What its end is, the call is; until then it is what its prefetch is.
    ended_as = case((calls.c.ended_at.is_(None), told.source), else_=calls.c.source)
    changes["source"] = told.source if kind == "end_of_call" else ended_as
    # The end of the same call may be processed elsewhere at this moment: the first one stays.
    unended = calls.c.delivery_id.is_(None) if kind == "end_of_call" else None
    return into.on_conflict_do_update(
        index_elements=["session_id"], set_=changes, where=unended
    ).returning(calls.c.id, calls.c.session_id)
