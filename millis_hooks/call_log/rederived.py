"""Derives calls anew in a small log in memory, and brings the call log up to what came out.

The code that processes deliveries writes into both, so what comes out is what a fresh call log
would hold. Only what differs is written: most calls are what they were.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest

from sqlalchemy import (
    Connection,
    StaticPool,
    Table,
    bindparam,
    create_engine,
    delete,
    insert,
    select,
    update,
)

from .derived import derive
from .digest import Columns, Digest
from .search import call_search, search_row
from .tables import IS_OF_CALL, call_metadata, calls, cost_items, drift, handler_runs, metadata

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
            metadata.create_all(connection, [calls, *_OWNED, handler_runs, drift])
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
        if before.owned[cost_items] != call.owned[cost_items]:
            # What is summed up of costs is known to be out of date by this column.
            differing["cost_total"] = call.columns["cost_total"]
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
