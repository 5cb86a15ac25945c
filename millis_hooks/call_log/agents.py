"""Names of agents in the call log, for pages and commands that do not import the application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from sqlalchemy import Connection, delete, select

from ..protocol.agent_names import AgentNames
from .dialects import upsert
from .tables import agents


def write_names(
    connection: Connection, names: Mapping[str, str], *, source: Literal["given", "millis"]
) -> None:
    """Replace the names of a source."""
    connection.execute(delete(agents).where(agents.c.source == source))
    rows = [
        {"source": source, "agent_id": agent_id, "name": name} for agent_id, name in names.items()
    ]
    if rows:  # another process that starts may have written them meanwhile
        row = upsert(connection, agents)
        key = list(agents.primary_key.columns)
        changed = row.on_conflict_do_update(index_elements=key, set_={"name": row.excluded.name})
        connection.execute(changed, rows)


def names_at_millis(connection: Connection) -> dict[str, str]:
    """Return the names that Millis answered last."""
    return _of(connection, "millis")


def stored_names(connection: Connection, given: Mapping[str, str]) -> AgentNames:
    """Return the names in the call log; those of an application come before those `given`."""
    names = AgentNames({**given, **_of(connection, "given")})
    names.take(names_at_millis(connection))
    return names


def _of(connection: Connection, source: str) -> dict[str, str]:
    rows = connection.execute(
        select(agents.c.agent_id, agents.c.name).where(agents.c.source == source)
    )
    return {row.agent_id: row.name for row in rows}
