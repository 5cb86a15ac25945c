"""Writes down which handlers there are, for pages and commands that do not import them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete

from ..call_log.dialects import upsert
from ..call_log.tables import handlers
from ..routing import DEFAULT_TIMEOUT_S, Handler


def write_handlers(
    connection: Connection,
    registered: Iterable[Handler],
    now: datetime,
    *,
    prefetch_budget_s: float,
) -> None:
    """Put the handlers of the application that starts in the place of those of the last one.

    A prefetch handler without a budget of its own has that of the application.
    """
    connection.execute(delete(handlers))
    rows = [_columns(handler, now, prefetch_budget_s) for handler in registered]
    if rows:
        connection.execute(_insert_or_update(connection), rows)


def _insert_or_update(connection: Connection) -> Any:
    """Another process may be starting too, and have written its own meanwhile."""
    row = upsert(connection, handlers)
    key = handlers.primary_key.columns
    told = {each.name: row.excluded[each.name] for each in handlers.c if each.name not in key}
    return row.on_conflict_do_update(index_elements=list(key), set_=told)


def _columns(handler: Handler, now: datetime, prefetch_budget_s: float) -> dict[str, Any]:
    default_s = prefetch_budget_s if handler.hook == "prefetch" else DEFAULT_TIMEOUT_S
    return {
        "hook": handler.hook,
        "name": handler.name,
        "max_attempts": handler.max_attempts,
        "timeout_s": handler.timeout_s or default_s,
        "repeatable": handler.repeatable,
        "filters": json.dumps(handler.filters()),
        "seen_at": now,
    }
