"""Keeps a list of people who asked not to be called, and tells agents of it.

Millis notes such a wish if the agent's `privacy_settings.do_not_call_detection` is on. A person who
changes their mind tells the agent, which then calls its function `allow_calls`. The list is a file
of its own, because it has to outlive the call log and other programs may read it. Run it with

    MILLIS_HOOKS_OWN_NUMBERS=+14155550199 millis-hooks dev examples/do_not_call.py
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime

from millis_hooks import EndOfCall, GiveUp, MillisHooks, PrefetchRequest, PrefetchResponse, Router

_SCHEMA = """
CREATE TABLE IF NOT EXISTS wishes (
    digits TEXT PRIMARY KEY, may_call INTEGER NOT NULL, said_at REAL NOT NULL
)
"""
#: A wish that arrives late, after a retry, does not undo a later one.
_NOTE = """
INSERT INTO wishes VALUES (?, ?, ?)
ON CONFLICT (digits) DO UPDATE SET may_call = excluded.may_call, said_at = excluded.said_at
WHERE excluded.said_at >= wishes.said_at
"""
_FORBIDS = "SELECT 1 FROM wishes WHERE digits = ? AND NOT may_call"


class DoNotCallList:
    """The last wish of each person about being called, by number. Safe to use from threads."""

    def __init__(self, path: str) -> None:
        self._path = path

    def note(self, phone: str, *, may_call: bool, said_at: datetime) -> None:
        """Keep a wish, unless there is a later one of that person."""
        with self._opened() as connection:
            connection.execute(_NOTE, (_digits(phone), may_call, said_at.timestamp()))

    def forbids(self, phone: str) -> bool:
        """Tell whether that person asked not to be called."""
        with self._opened() as connection:
            return connection.execute(_FORBIDS, (_digits(phone),)).fetchone() is not None

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path)) as connection, connection:
            connection.execute(_SCHEMA)
            yield connection


def _digits(phone: str) -> str:
    return "".join(filter(str.isdigit, phone))


def wish_of(call: EndOfCall) -> bool | None:
    """Tell whether the customer may be called from now on; None if they did not mention it."""
    if call.opted_out:
        return False
    return True if any(each.name == "allow_calls" for each in call.function_calls) else None


people = DoNotCallList(os.environ.get("DO_NOT_CALL_FILE", "do_not_call.db"))
consent = Router()


@consent.on_end_of_call(channel="phone", when=lambda call: wish_of(call) is not None)
def note_wish(call: EndOfCall) -> None:
    """Keep the customer's wish."""
    # Without your numbers, the customer's side of an outbound call is unknown.
    if call.direction is None or call.customer_phone is None:
        raise GiveUp("which number is the customer's? Add yours to MILLIS_HOOKS_OWN_NUMBERS")
    if not call.dry_run:
        said_at = call.started_at or datetime.now(UTC)
        people.note(call.customer_phone, may_call=bool(wish_of(call)), said_at=said_at)


@consent.on_prefetch(channel="phone")
def warn_agent(call: PrefetchRequest) -> PrefetchResponse | None:
    """Keep the agent from promising a call to a person who wants none."""
    if call.customer_phone is None or not people.forbids(call.customer_phone):
        return None
    return PrefetchResponse(
        metadata={"may_be_called": False},
        extra_prompt="The customer has asked us not to call. Do not offer to call back.",
    )


hooks = MillisHooks(consent)
