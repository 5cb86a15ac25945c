"""What ids a call log gives next: of one that was copied, none that was ever given away."""

from __future__ import annotations

from sqlalchemy import Connection, text

from ..dialects import is_postgresql
from ..tables import metadata

#: The tables whose ids are counted up, and never given twice.
COUNTED = [
    table.name
    for table in metadata.sorted_tables
    if table.dialect_options["sqlite"]["autoincrement"]
]

_LAST = text("SELECT seq FROM sqlite_sequence WHERE name = :name")
_FORGET = text("DELETE FROM sqlite_sequence WHERE name = :name")
_REMEMBER = text("INSERT INTO sqlite_sequence (name, seq) VALUES (:name, :last)")
_LAST_DRAWN = "SELECT CASE WHEN is_called THEN last_value END FROM {name}_id_seq"
_DRAW_AFTER = text("SELECT setval(CAST(:sequence AS regclass), :last)")


def last_ids(connection: Connection) -> dict[str, int]:
    """Return the last id that was given away, by table."""
    found = {name: _last(connection, name) for name in COUNTED}
    return {name: last for name, last in found.items() if last is not None}


def give_after(connection: Connection, last: dict[str, int]) -> None:
    """Have the next ids follow these."""
    for name, value in last.items():
        if is_postgresql(connection):
            connection.execute(_DRAW_AFTER, {"sequence": f"{name}_id_seq", "last": value})
        else:
            connection.execute(_FORGET, {"name": name})
            connection.execute(_REMEMBER, {"name": name, "last": value})


def _last(connection: Connection, name: str) -> int | None:
    question = text(_LAST_DRAWN.format(name=name)) if is_postgresql(connection) else _LAST
    last: int | None = connection.scalar(question, {"name": name})
    return last
