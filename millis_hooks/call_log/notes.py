"""What replicas tell one another of changes, as the text of a note: who tells, and what."""

from __future__ import annotations

import json
from typing import get_args

from .news import REFRESH, Change, Kind

#: PostgreSQL takes less than 8000 bytes.
_MOST_BYTES = 7000
_KINDS = frozenset(get_args(Kind))


def write_note(sender: str, changes: tuple[Change, ...]) -> str:
    """Return the note; if there is too much to tell, that anything may have changed."""
    note = json.dumps([sender, changes], separators=(",", ":"))
    return note if len(note) <= _MOST_BYTES else json.dumps([sender, [REFRESH]])


def read_note(note: str) -> tuple[str | None, tuple[Change, ...]]:
    """Return who told what; of one that cannot be read nobody, and that anything may have."""
    try:
        sender, changes = json.loads(note)
        return str(sender), tuple(_change(*each) for each in changes)
    except (ValueError, TypeError):
        return None, (REFRESH,)


def _change(kind: Kind, session_id: str | None) -> Change:
    is_known = kind in _KINDS and (session_id is None or isinstance(session_id, str))
    return Change(kind, session_id) if is_known else REFRESH
