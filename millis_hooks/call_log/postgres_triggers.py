"""The triggers of `triggers.py` for PostgreSQL: each calls a function of its own."""

from __future__ import annotations

from .triggers import CALL_CHANGED, IS_OVER, RUN_CHANGED

# ruff: noqa: S608 - nothing in these statements comes from outside


_HOUR = "to_char({row}.received_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24')"
_COUNT = (
    "INSERT INTO hours (hour, changes) {hours} "
    "ON CONFLICT (hour) DO UPDATE SET changes = hours.changes + 1;"
)
_ITS_OWN = f"SELECT {_HOUR}, 1"
_BOTH_ITS_OWN = (
    f"SELECT hour, 1 FROM (SELECT {_HOUR.format(row='OLD')} AS hour "
    f"UNION SELECT {_HOUR.format(row='NEW')} ORDER BY hour) AS both_hours"
)
_OF_CALL = f"SELECT {_HOUR.format(row='calls')}, 1 FROM calls WHERE id = {{row}}.call_id"
_OF_RUN = (
    f"SELECT {_HOUR.format(row='calls')}, 1 FROM calls "
    "WHERE id = (SELECT call_id FROM handler_runs WHERE id = {row}.run_id)"
)


def _counting(name: str, event: str, table: str, hours: str, *, when: str = "") -> tuple[str, str]:
    """Return a function and its trigger, as those of `analytics/triggers.py`."""
    row = "OLD" if event == "DELETE" else "NEW"
    condition = f"WHEN ({when.format(row=row)}) " if when else ""
    count = _COUNT.format(hours=hours.format(row=row))
    function = f"{table}_{name}_in_hour"
    return (
        f"CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN {count} RETURN NULL; END $$",
        f"CREATE TRIGGER {table}_{name} AFTER {event} ON {table} FOR EACH ROW {condition}"
        f"EXECUTE FUNCTION {function}()",
    )


CREATE_TRIGGERS = (
    *_counting("added", "INSERT", "calls", _ITS_OWN),
    *_counting("changed", CALL_CHANGED, "calls", _BOTH_ITS_OWN),
    *_counting("removed", "DELETE", "calls", _ITS_OWN),
    *_counting("added", "INSERT", "handler_runs", _OF_CALL),
    *_counting("changed", "UPDATE", "handler_runs", _OF_CALL, when=RUN_CHANGED),
    *_counting("removed", "DELETE", "handler_runs", _OF_CALL),
    *_counting("added", "INSERT", "attempts", _OF_RUN, when=IS_OVER),
    *_counting("changed", "UPDATE OF outcome, duration_ms", "attempts", _OF_RUN),
    *_counting("removed", "DELETE", "attempts", _OF_RUN, when=IS_OVER),
)
