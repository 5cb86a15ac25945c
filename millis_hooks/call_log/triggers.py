"""Triggers that count the changes to the calls of each hour, whatever code makes them.

A summary remembers the count it was made at, so it is known to be out of date as soon as anything
in it is added, changed or removed. Runs and attempts belong to the hour in which their call was
received. Cost items have no triggers: the code that writes them writes the call's `cost_total` in
the same transaction. A migration that recreates one of these tables has to recreate its triggers.
"""

from __future__ import annotations

from sqlalchemy import TextClause, text

_OF_CALL = "SELECT substr(received_at, 1, 13), 1 FROM calls WHERE id = {row}.call_id"
_OF_RUN = (
    "SELECT substr(received_at, 1, 13), 1 FROM calls "
    "WHERE id = (SELECT call_id FROM handler_runs WHERE id = {row}.run_id)"
)
_ITS_OWN = "SELECT substr({row}.received_at, 1, 13), 1 WHERE true"
_BOTH_ITS_OWN = (
    "SELECT hour, 1 FROM (SELECT substr(OLD.received_at, 1, 13) AS hour "
    "UNION SELECT substr(NEW.received_at, 1, 13)) WHERE true"
)
CALL_CHANGED = (
    "UPDATE OF received_at, agent_id, outcome, call_status, duration_s, cost_total, prefetch_ms, "
    "prefetch_outcome"
)
#: A run that begins, fails or succeeds changes no figure by that: its attempts do.
RUN_CHANGED = (
    "OLD.hook <> NEW.hook OR OLD.handler <> NEW.handler OR OLD.is_latest <> NEW.is_latest "
    "OR (OLD.state = 'parked') <> (NEW.state = 'parked')"
)


def _counting(name: str, event: str, table: str, hours: str, *, when: str = "") -> TextClause:
    row = "OLD" if event == "DELETE" else "NEW"
    condition = f"WHEN {when.format(row=row)} " if when else ""
    return text(
        f"CREATE TRIGGER {table}_{name} AFTER {event} ON {table} {condition}BEGIN "
        f"INSERT INTO hours (hour, changes) {hours.format(row=row)} "
        "ON CONFLICT (hour) DO UPDATE SET changes = changes + 1; END"
    )


IS_OVER = "{row}.outcome IS NOT NULL"

CREATE_TRIGGERS = (
    _counting("added", "INSERT", "calls", _ITS_OWN),
    _counting("changed", CALL_CHANGED, "calls", _BOTH_ITS_OWN),
    _counting("removed", "DELETE", "calls", _ITS_OWN),
    _counting("added", "INSERT", "handler_runs", _OF_CALL),
    _counting("changed", "UPDATE", "handler_runs", _OF_CALL, when=RUN_CHANGED),
    _counting("removed", "DELETE", "handler_runs", _OF_CALL),
    _counting("added", "INSERT", "attempts", _OF_RUN, when=IS_OVER),
    _counting("changed", "UPDATE OF outcome, duration_ms", "attempts", _OF_RUN),
    _counting("removed", "DELETE", "attempts", _OF_RUN, when=IS_OVER),
)
