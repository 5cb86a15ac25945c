"""Writes the projections of sessions: calls, costs, metadata, search text, runs, drift.

Everything happens in the caller's transaction, in a fixed number of statements however many
sessions there are, and only what differs is written: repeating it changes nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, Table, delete, select, update
from sqlalchemy.exc import SQLAlchemyError

from .changed_days import mark_days
from .projection import END_COLUMNS, Projection
from .sanitize import clean_id, clean_text
from .search import call_search
from .sessions import Batch, Session, known_of
from .statements import Columns, Prepared, among, insert_rows, update_rows
from .tables import (
    IS_OF_CALL,
    call_metadata,
    call_results,
    calls,
    cost_items,
    deliveries,
    drift,
    handler_runs,
    inbox,
    rereads,
)

_IS_OF_SESSIONS = among(calls.c.session_id, "sessions")
_CALLS = Prepared(select(calls).where(_IS_OF_SESSIONS))
_CALL_IDS = Prepared(select(calls.c.session_id, calls.c.id).where(_IS_OF_SESSIONS))
_REPEAT = Prepared(update(calls).where(_IS_OF_SESSIONS, ~calls.c.repeated).values(repeated=True))
_t, _r = call_search.c, handler_runs.c
_TEXTS = Prepared(select(_t.rowid, _t.folded).where(among(_t.rowid, "ids")))
_RUNS = Prepared(
    select(_r.id, _r.call_id, _r.handler, _r.state).where(IS_OF_CALL, among(_r.call_id, "ids"))
)
_REPLACE_RUNS = Prepared(update(handler_runs).where(among(_r.id, "ids")).values(is_latest=False))
_HANDLED = Prepared(
    update(calls).where(among(calls.c.id, "ids"), calls.c.unhandled).values(unhandled=False)
)
#: Have rows of calls listed by when these were received.
_MOVE = [
    Prepared(
        update(each)
        .where(among(each.c.call_id, "ids"))
        .values(
            received_at=select(calls.c.received_at)
            .where(calls.c.id == each.c.call_id)
            .scalar_subquery()
        )
    )
    for each in (call_results, call_metadata)
]
_HAS_BEGUN = frozenset({"running", "succeeded", "failed"})

#: The deliveries to be processed, and those to be processed again.
QUEUES = (inbox, rereads)


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
    """Return the agent of a session; None for a new session, or if the call log cannot be read.

    The agent is checked again when the delivery is processed.
    """
    found = select(calls.c.agent_id).where(calls.c.session_id == clean_id(session_id))
    try:
        with reader.connect() as connection:
            agent_id: str | None = connection.scalar(found)
    except SQLAlchemyError:
        return None
    return agent_id


def give_up(connection: Connection, delivery_id: int, reason: str) -> None:
    """Show a delivery as unparsed, and take it out of its queue; its body stays as received."""
    unparsed = {"outcome": "unparsed", "reason": clean_text(reason)}
    connection.execute(update(deliveries).where(deliveries.c.id == delivery_id).values(unparsed))
    for queue in QUEUES:
        connection.execute(delete(queue).where(queue.c.delivery_id == delivery_id))


class Written(NamedTuple):
    """How many deliveries were taken out of the queue, and whether handlers are to be called."""

    deliveries: int
    has_runs: bool


def write(
    connection: Connection, batch: Batch, *, hears_of_changes: Callable[[str], bool]
) -> Written:
    """Write the projections of a batch, and take its deliveries out of their queue.

    Sessions of which something else was processed, or removed, since they were read stay there.
    `hears_of_changes` tells whether the handler of a name is called again on a change.
    """
    queue = rereads if batch.is_again else inbox
    loose, sessions = _unchanged(connection, batch, queue)
    made = {
        session_id: each.projection
        for session_id, each in sessions.items()
        if each.projection is not None and each.projection.call
    }
    written, changed = _write_calls(connection, made, is_again=batch.is_again)
    called = _write_runs(connection, written, hears_of_changes)
    mark_days(connection, _days(each for each in written if each.id in changed | called))
    repeated = [session_id for session_id, each in sessions.items() if each.projection is None]
    if repeated:
        _REPEAT(connection, {"sessions": repeated})
    taken = [*loose, *chain.from_iterable(each.delivery_ids for each in sessions.values())]
    _write_of_deliveries(connection, batch, sessions, taken)
    if taken:
        _taking(queue)(connection, {"ids": taken})
    return Written(len(taken), bool(called))


def _write_of_deliveries(
    connection: Connection, batch: Batch, sessions: Mapping[str, Session], taken: Sequence[int]
) -> None:
    """Write the drift of deliveries, and update their outcomes and sessions."""
    ids = set(taken)
    rows = [row for row in batch.loose_drift if row["delivery_id"] in ids]
    rows += chain.from_iterable(each.drift for each in sessions.values())
    _replace(connection, drift, "delivery_id", rows, taken if batch.is_again else ())
    for notes in (batch.outcomes, batch.session_ids):
        update_rows(connection, deliveries, [row for id_, row in notes.items() if id_ in ids])


def _unchanged(
    connection: Connection, batch: Batch, queue: Table
) -> tuple[list[int], dict[str, Session]]:
    """Return the deliveries of no session, and the sessions, that are still as they were read."""
    ids = batch.delivery_ids
    waiting = {row.delivery_id for row in _waiting(queue)(connection, {"ids": ids})}
    known = known_of(connection, list(batch.sessions), besides=ids)
    sessions = {
        session_id: each
        for session_id, each in batch.sessions.items()
        if waiting.issuperset(each.delivery_ids)
        and [row.id for row in known[session_id]] == each.known_ids
    }
    return [id_ for id_ in batch.loose_ids if id_ in waiting], sessions


@cache
def _waiting(queue: Table) -> Prepared:
    return Prepared(select(queue.c.delivery_id).where(among(queue.c.delivery_id, "ids")))


@cache
def _taking(queue: Table) -> Prepared:
    return Prepared(delete(queue).where(among(queue.c.delivery_id, "ids")))


class _Call(NamedTuple):
    """A call as it was before, empty for a new one, and as it is now."""

    id: int
    before: Mapping[str, Any]
    now: Projection

    @property
    def had_ended(self) -> bool:
        return self.before.get("delivery_id") is not None

    @property
    def keeps_its_end(self) -> bool:
        """Whether costs, metadata and text stay as they are stored."""
        return self.had_ended and self.now.stored == "end"


def _write_calls(
    connection: Connection, made: Mapping[str, Projection], *, is_again: bool
) -> tuple[list[_Call], set[int]]:
    """Write calls with their costs, metadata and search text, and return those that changed, too.
    Only those that have ended have any costs and metadata, unless what is read again was damaged.
    """
    if not made:
        return [], set()
    found = _CALLS(connection, {"sessions": list(made)})
    stored = {row.session_id: row._asdict() for row in found}
    for session_id, row in stored.items():
        if made[session_id].stored:
            made[session_id].complete(row)
    new = [each for each in made.values() if each.session_id not in stored]
    insert_rows(connection, calls, [each.call for each in new])
    ids = {session_id: row["id"] for session_id, row in stored.items()}
    if new:
        sessions = [each.session_id for each in new]
        ids |= {row.session_id: row.id for row in _CALL_IDS(connection, {"sessions": sessions})}
    written = [
        _Call(ids[each.session_id], stored.get(each.session_id, {}), each) for each in made.values()
    ]
    changed = {each.id for each in written if not each.before}
    changed |= _update_calls(connection, [each for each in written if each.before])
    told = [each for each in written if not each.keeps_its_end]
    known = [each.id for each in told if each.had_ended or (is_again and each.before)]
    changed |= _replace(connection, cost_items, "call_id", _cost_rows(told), known)
    known += [each.id for each in told if each.now.had_kept and each.id not in known]
    _replace(connection, call_metadata, "call_id", _metadata_rows(told), known)
    _write_texts(connection, told)
    return written, changed


def _days(written: Iterable[_Call]) -> Iterator[datetime]:
    """Yield when calls were received; those that are set back in time are of two days."""
    for each in written:
        yield each.now.call["received_at"]
        yield each.before.get("received_at", each.now.call["received_at"])


def _update_calls(connection: Connection, known: Sequence[_Call]) -> set[int]:
    """Set what differs, and return of which calls: columns that only an end tells, or the others.
    Others are in most indexes, and an end rarely changes them."""
    of_end, of_both = [], []
    for each in known:
        before, now = each.before, each.now.call
        if each.had_ended:  # by the handlers there were then
            now["unhandled"] = before["unhandled"]
        differing = {name for name, value in now.items() if before[name] != value}
        if differing & END_COLUMNS:
            of_end.append({name: now[name] for name in END_COLUMNS} | {"id": each.id})
        if differing - END_COLUMNS:
            of_both.append(
                {name: now[name] for name in now if name not in END_COLUMNS} | {"id": each.id}
            )
    update_rows(connection, calls, of_end)
    update_rows(connection, calls, of_both)
    moved = [
        each.id for each in known if each.before["received_at"] != each.now.call["received_at"]
    ]
    for move in _MOVE if moved else ():
        move(connection, {"ids": moved})
    return {each["id"] for each in (*of_end, *of_both)}


def _cost_rows(written: Iterable[_Call]) -> list[Columns]:
    return [{"call_id": each.id, **item} for each in written for item in each.now.cost_items]


def _metadata_rows(written: Iterable[_Call]) -> list[Columns]:
    return [
        {
            "call_id": each.id,
            "key": key,
            "value": value,
            "received_at": each.now.call["received_at"],
        }
        for each in written
        for key, value in each.now.metadata.items()
    ]


def _write_texts(connection: Connection, written: Sequence[_Call]) -> None:
    """Write what is searched. In the order of their ids, the index takes many texts at once."""
    in_order = sorted(written, key=attrgetter("id"))
    known = [each.id for each in in_order if each.before]
    found = _TEXTS(connection, {"ids": known}) if known else ()
    texts = {row.rowid: row.folded for row in found}
    rows = [{"folded": each.now.search_text, "rowid": each.id} for each in in_order]
    changed = [each for each in rows if texts.get(each["rowid"]) != each["folded"]]
    update_rows(connection, call_search, [each for each in changed if each["rowid"] in texts])
    insert_rows(connection, call_search, [each for each in changed if each["rowid"] not in texts])


def _replace(
    connection: Connection, table: Table, owner: str, rows: Sequence[Columns], stored: Sequence[int]
) -> set[int]:
    """Insert rows; of owners that may have some `stored`, only where these are not the same. Return
    whose rows are others now."""
    same: set[int] = set()
    gone: set[int] = set()
    if stored:
        names = _derived(table)
        known = set(stored)
        before = _by_owner(_of_owners(table, owner)(connection, {"ids": stored}), names, owner)
        columns = itemgetter(*names)
        now = _by_owner((columns(row) for row in rows if row[owner] in known), names, owner)
        same = {id_ for id_ in stored if before.get(id_) == now.get(id_)}
        gone = before.keys() - same
    if gone:
        _deleting(table, owner)(connection, {"ids": list(gone)})
    new = [row for row in rows if row[owner] not in same]
    insert_rows(connection, table, new)
    return gone | {row[owner] for row in new}


def _by_owner(
    rows: Iterable[tuple[Any, ...]], names: Sequence[str], owner: str
) -> dict[int, Counter[object]]:
    """Return the rows of each owner in whatever order; `names` are those of their columns."""
    owned: dict[int, Counter[object]] = {}
    place = names.index(owner)
    for row in rows:
        owned.setdefault(row[place], Counter())[tuple(row)] += 1
    return owned


@cache
def _derived(table: Table) -> Sequence[str]:
    """Return the names of the columns, without the ids that only this log gave."""
    return [column.name for column in table.columns if column.name != "id"]


@cache
def _of_owners(table: Table, owner: str) -> Prepared:
    columns = (table.c[name] for name in _derived(table))
    return Prepared(select(*columns).where(among(table.c[owner], "ids")))


@cache
def _deleting(table: Table, owner: str) -> Prepared:
    return Prepared(delete(table).where(among(table.c[owner], "ids")))


def _write_runs(
    connection: Connection, written: Sequence[_Call], hears_of_changes: Callable[[str], bool]
) -> set[int]:
    """Have handlers called that want the calls as they are now. Return for which calls.

    A call that has ended is for those that want it and were never called for it. A change is also
    for those that hear of changes, unless their run has not begun and will see it by itself.
    """
    asking = [each for each in written if each.now.wanted_by]
    runs = _latest_runs(connection, [each.id for each in asking if each.before])
    new, replaced, handled = [], [], []
    for call in asking:
        known, is_change = runs.get(call.id, {}), call.now.change is not None
        is_first = not call.had_ended and not known
        first = [name for name in call.now.wanted_by if name not in known]
        again = [
            name
            for name in call.now.wanted_by
            if name in known and hears_of_changes(name) and known[name].state in _HAS_BEGUN
        ]
        if is_first or is_change:
            new += [_run(call, name) for name in first]
        if is_change:
            new += [_run(call, name, change=call.now.change) for name in again]
            replaced += [known[name].id for name in again]
            handled += [call.id] if first or again else []
    if replaced:
        _REPLACE_RUNS(connection, {"ids": replaced})
    if handled:
        _HANDLED(connection, {"ids": handled})
    insert_rows(connection, handler_runs, new)
    return {run["call_id"] for run in new}


def _latest_runs(connection: Connection, call_ids: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the latest run of each handler, by call."""
    runs: dict[int, dict[str, Any]] = {}
    for run in _RUNS(connection, {"ids": call_ids}) if call_ids else ():
        runs.setdefault(run.call_id, {})[run.handler] = run
    return runs


def _run(call: _Call, handler: str, *, change: str | None = None) -> Columns:
    at = call.now.wanted_at or call.now.call["ended_at"]
    return pending_run(call.id, handler, at, change=change)
