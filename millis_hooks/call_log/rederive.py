"""Derives calls again from all their deliveries, when one differs from an earlier one.

A second end-of-call or a second prefetch may change a call. The call is derived anew from all its
deliveries, so the result is the same in any order of arrival, and handlers that asked for it are
called again. The code that processes deliveries writes into a small database in memory, so the
result is what a fresh call log would hold; only what differs is then written to the call log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import zip_longest
from typing import Any

from sqlalchemy import (
    Connection,
    Row,
    StaticPool,
    Table,
    bindparam,
    create_engine,
    delete,
    func,
    insert,
    select,
    update,
)

from ..exceptions import StorageOutageError
from .call_ends import End, ids_of, put_together
from .call_rows import derive, pending_run, refuse
from .changed_days import mark_days, mark_days_of
from .database import Database
from .projection import Columns, Digest, of_session
from .search import call_search, search_row
from .tables import (
    IS_OF_CALL,
    call_metadata,
    calls,
    changed_days,
    cost_items,
    deliveries,
    drift,
    handler_runs,
    inbox,
    metadata,
)
from .writer import Writer

_OWNED = (cost_items, call_metadata)
#: A statement takes so many parameters and no more.
_IDS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class CallRows:
    """A call and what is derived with it; calls with equal rows may have different ids."""

    id: int = field(compare=False)
    columns: Columns
    text: str | None
    owned: Mapping[Table, Sequence[Columns]]

    @property
    def session_id(self) -> str:
        """The session it is the call of."""
        return str(self.columns["session_id"])

    @property
    def has_ended(self) -> bool:
        """Whether its end was read."""
        return self.columns["delivery_id"] is not None

    def handled_as(self, before: CallRows | None) -> CallRows:
        """Return this call with what depends on the handlers there were when it ended."""
        if before is None or not before.has_ended:
            return self
        return replace(self, columns=self.columns | {"unhandled": before.columns["unhandled"]})


@dataclass(frozen=True, slots=True)
class Rederived:
    """What some deliveries come to: the calls they tell of, their runs, and drift by delivery."""

    calls: Sequence[CallRows]
    runs: Mapping[int, Sequence[Columns]]
    drift: Mapping[int, Sequence[Columns]]
    #: Deliveries that are another agent's than their secret.
    refused: Collection[int] = ()


class Scratch:
    """A call log in memory, empty again after each use."""

    def __init__(self) -> None:
        self._engine = create_engine("sqlite://", poolclass=StaticPool, hide_parameters=True)
        with self._engine.begin() as connection:
            metadata.create_all(connection, [calls, *_OWNED, handler_runs, drift, changed_days])
            connection.exec_driver_sql("CREATE TABLE call_search (text TEXT, folded TEXT)")

    def close(self) -> None:
        self._engine.dispose()

    def derive(self, sessions: Iterable[Sequence[Digest]]) -> Rederived:
        """Derive whole sessions: for each, what all its deliveries say, oldest first."""
        with self._engine.connect() as connection:  # and leave without a commit
            refused: set[int] = set()
            for turn in zip_longest(*sessions):
                refused |= derive(connection, [digest for digest in turn if digest is not None])
            made = _read_calls(connection, connection.scalars(select(calls.c.session_id)).all())
            ids = connection.scalars(select(drift.c.delivery_id)).all()
            return Rederived(
                made,
                _read_by(connection, handler_runs, "call_id", [call.id for call in made]),
                _read_by(connection, drift, "delivery_id", ids),
                refused,
            )


def bring_up(connection: Connection, fresh: Rederived, delivery_ids: Sequence[int]) -> int:
    """Make the log's rows what `fresh` has for these deliveries; return how many calls changed.

    Runs are written for calls that had no end and have one now, unless they have had runs.
    """
    known = _read_calls(connection, [call.session_id for call in fresh.calls])
    stored = {call.session_id: call for call in known}
    changed_calls = 0
    for call in fresh.calls:
        before = stored.get(call.session_id)
        now = call.handled_as(before)
        if now != before:
            changed_calls += 1
            mark_days(connection, [each.columns["received_at"] for each in (before, now) if each])
            call_id = _write_call(connection, before, now)
            if now.has_ended and not (before and before.has_ended):
                _write_runs(connection, call_id, fresh.runs.get(call.id, ()))
    _write_drift(connection, fresh.drift, delivery_ids)
    return changed_calls


def _write_call(connection: Connection, before: CallRows | None, call: CallRows) -> int:
    if before is None:
        new = insert(calls).values(call.columns).returning(calls.c.id)
        call_id: int = connection.execute(new).scalar_one()
    else:
        call_id = before.id
        # Columns that stay as they are cost nothing in indexes.
        differing = dict(call.columns.items() - before.columns.items())
        if differing:
            is_it = calls.c.id == call_id
            connection.execute(update(calls).where(is_it).values(differing))
    for table, rows in call.owned.items():
        if before is None or before.owned[table] != rows:
            _replace(connection, table, "call_id", {call_id: rows})
    if before is None or before.text != call.text:
        connection.execute(delete(call_search).where(call_search.c.rowid == call_id))
        if call.text is not None:
            connection.execute(insert(call_search), search_row(call_id, call.text))
    return call_id


def _write_runs(connection: Connection, call_id: int, runs: Sequence[Columns]) -> None:
    had = select(handler_runs.c.id).where(IS_OF_CALL, handler_runs.c.call_id == call_id)
    if runs and connection.execute(had.limit(1)).first() is None:
        connection.execute(insert(handler_runs), [{**run, "call_id": call_id} for run in runs])


def _write_drift(
    connection: Connection, fresh: Mapping[int, Sequence[Columns]], delivery_ids: Sequence[int]
) -> None:
    stored = _read_by(connection, drift, "delivery_id", delivery_ids)
    differing = {
        id_: fresh.get(id_, []) for id_ in delivery_ids if stored.get(id_) != fresh.get(id_)
    }
    if differing:
        _replace(connection, drift, "delivery_id", differing)


def _replace(
    connection: Connection, table: Table, owner: str, rows: Mapping[int, Sequence[Columns]]
) -> None:
    is_theirs = table.c[owner] == bindparam("id")
    connection.execute(delete(table).where(is_theirs), [{"id": id_} for id_ in rows])
    new = [{**row, owner: id_} for id_, each in rows.items() for row in each]
    if new:
        connection.execute(insert(table), new)


def _read_calls(connection: Connection, session_ids: Sequence[str]) -> list[CallRows]:
    found = connection.execute(select(calls).where(calls.c.session_id.in_(session_ids)))
    rows = [dict(row) for row in found.mappings()]
    ids = [row["id"] for row in rows]
    text = select(call_search.c.rowid, call_search.c.text).where(call_search.c.rowid.in_(ids))
    texts = {row.rowid: row.text for row in connection.execute(text)}
    owned = {table: _read_by(connection, table, "call_id", ids) for table in _OWNED}
    return [
        CallRows(
            row.pop("id"),
            row,
            texts.get(id_),
            {table: of_call.get(id_, []) for table, of_call in owned.items()},
        )
        for id_, row in zip(ids, rows, strict=True)
    ]


def _read_by(
    connection: Connection, table: Table, owner: str, ids: Sequence[int]
) -> dict[int, list[Columns]]:
    """Return rows by whose they are, in order, without the ids that only this log gave them."""
    own = select(*(column for column in table.c if column.name != "id"))
    rows: defaultdict[int, list[Columns]] = defaultdict(list)
    for start in range(0, len(ids), _IDS_AT_ONCE):
        some = table.c[owner].in_(ids[start : start + _IDS_AT_ONCE])
        for row in connection.execute(own.where(some).order_by(*table.primary_key)).mappings():
            columns = dict(row)
            rows[columns.pop(owner)].append(columns)
    return dict(rows)


#: How often it begins anew because something of the session was processed elsewhere meanwhile.
_TRIES = 5
_KEY_CHARS = 12


class Changes:
    """Brings calls up to what later deliveries say of them."""

    def __init__(
        self,
        database: Database,
        writer: Writer,
        digest: Callable[[Row[Any]], Digest | None],
        hears_of_changes: Callable[[str], bool],
    ) -> None:
        """`hears_of_changes` tells whether the handler of a name is called again on a change."""
        self._database = database
        self._writer = writer
        self._digest = digest
        self._hears_of_changes = hears_of_changes

    def among(self, read: Sequence[tuple[Row[Any], Digest | None]]) -> set[int]:
        """Return which of these deliveries are not the first of their kind in their session.

        An exact repetition that came later changes nothing, and is not among them.
        """
        told = [(row, digest) for row, digest in read if digest is not None and digest.call]
        d = deliveries.c
        columns = (d.session_id, d.kind, d.content_hash)
        chosen = select(*columns, func.min(d.received_at).label("at")).where(
            d.session_id.in_([digest.call["session_id"] for _, digest in told]),
            d.id.not_in([row.id for row, _ in read]),
            d.outcome.not_in(["rejected", "unparsed"]),
            ~select(inbox.c.delivery_id).where(inbox.c.delivery_id == d.id).exists(),
        )
        if not told:
            return set()
        with self._database.reader.connect() as connection:
            found = connection.execute(chosen.group_by(*columns)).all()
        there = {(each.session_id, each.kind): each.at for each in found}
        same = {(each.session_id, each.kind, each.content_hash): each.at for each in found}
        return {
            row.id
            for row, digest in told
            if (key := (digest.call["session_id"], row.kind)) in there
            and not _repeats(row, same.get((*key, row.content_hash)))
        }

    def take(self, row: Row[Any], session_id: str) -> tuple[int, list[str]]:
        """Take in one of them. Return 1, or 0 if another process has, and who is called for it.

        Raises `StorageOutageError` if others are at the same session all the time.
        """
        scratch = Scratch()
        try:
            for _ in range(_TRIES):
                with self._database.reader.connect() as connection:
                    ids = ids_of(connection, session_id, row.id)
                    told = self._read(connection, ids)
                fresh = scratch.derive([of_session(told)])
                change = _change_by(row.id, told)
                about = {"session_id": session_id, "delivery_id": row.id, "ids": ids}
                save = partial(self._save, **about, fresh=fresh, change=change)
                if (taken := self._writer.run(save)) is not None:
                    return taken
        finally:
            scratch.close()
        raise StorageOutageError("other processes change the same call all the time")

    def _read(self, connection: Connection, ids: Sequence[int]) -> list[Digest]:
        chosen = select(deliveries).where(deliveries.c.id.in_(ids)).order_by(deliveries.c.id)
        rows = connection.execution_options(yield_per=1).execute(chosen)
        return [digest for row in rows if (digest := self._digest(row)) is not None]

    def _save(
        self,
        connection: Connection,
        *,
        session_id: str,
        delivery_id: int,
        ids: Sequence[int],
        fresh: Rederived,
        change: tuple[str, list[str]] | None,
    ) -> tuple[int, list[str]] | None:
        """Write what has changed; None if the deliveries are not those any more that were read."""
        is_it = inbox.c.delivery_id == delivery_id
        waiting = select(inbox.c.delivery_id).where(is_it).with_for_update(skip_locked=True)
        if connection.execute(waiting).first() is None:
            return 0, []
        # Who processes another delivery of the call waits here, and then finds what has changed.
        its_call = select(calls.c.id).where(calls.c.session_id == session_id)
        call_id = connection.scalar(its_call.with_for_update())
        if ids_of(connection, session_id, delivery_id) != ids:
            return None
        bring_up(connection, fresh, ids)
        refuse(connection, fresh.refused)
        connection.execute(delete(inbox).where(is_it))
        if change is None or call_id is None or delivery_id in fresh.refused:
            return 1, []
        return 1, self._write_runs(connection, call_id, *change, fresh)

    def _write_runs(
        self, connection: Connection, call_id: int, key: str, wanted_by: list[str], fresh: Rederived
    ) -> list[str]:
        """Have handlers called that want the call as it is now: who never was, and who is again."""
        latest = select(handler_runs).where(IS_OF_CALL, handler_runs.c.call_id == call_id)
        runs = {run.handler: run for run in connection.execute(latest)}
        again = [
            name
            for name in wanted_by
            if name in runs and self._hears_of_changes(name) and _has_begun(runs[name])
        ]
        ids = [runs[name].id for name in again]
        replaced = update(handler_runs).where(handler_runs.c.id.in_(ids))
        connection.execute(replaced.values(is_latest=False))
        (at,) = {call.columns["ended_at"] for call in fresh.calls}
        new = [pending_run(call_id, name, at) for name in wanted_by if name not in runs]
        new += [pending_run(call_id, name, at, change=key) for name in again]
        if new:
            mark_days_of(connection, calls.c.id == call_id)
            connection.execute(insert(handler_runs), new)
            handled = update(calls).where(calls.c.id == call_id, calls.c.unhandled)
            connection.execute(handled.values(unhandled=False))
        return [run["handler"] for run in new]


def _repeats(row: Row[Any], before: Any) -> bool:
    return row.kind == "end_of_call" and before is not None and before <= row.received_at


def _change_by(delivery_id: int, told: Sequence[Digest]) -> tuple[str, list[str]] | None:
    """Return the key of the change that an end has made, and the handlers that want the call now;
    None if it changed nothing."""
    ends = [digest.end for digest in told if digest.end is not None]
    own = [end for end in ends if end.delivery_id == delivery_id]
    before = [end for end in ends if end.delivery_id != delivery_id]
    if not own or not before:
        return None
    whole = put_together(ends).call
    if whole.raw == put_together(before).call.raw:
        return None
    return _key_of(own[0]), list(own[0].runs_for(whole))


def _key_of(end: End) -> str:
    return end.content_hash.hex()[:_KEY_CHARS]


def _has_begun(run: Row[Any]) -> bool:
    """Tell whether its handler may have seen the call as it was before; one that waits will not."""
    return run.state in ("running", "succeeded", "failed")
