"""Finds and removes everything stored about a telephone number, or under one session.

A number is compared by its digits, in whatever spelling it is given or stored. `removal.py` also
erases what deleted rows leave in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus

from sqlalchemy import ColumnElement, Connection, Engine, Row, Select, func, select

from ...protocol.phones import digits_of
from ..missing_ends import forget_at_millis
from ..sanitize import clean_text
from ..search import clean_query, matching_ids
from ..tables import IS_UNPARSED, call_metadata, calls, deliveries
from .removal import (
    BATCH_S,
    Removal,
    Write,
    busy_sessions,
    in_batches,
    overwriting,
    planned,
    remove_deliveries,
    remove_sessions,
    survey_deliveries,
    survey_sessions,
)

#: Fewer digits are no telephone number, and stand in every other message.
MIN_DIGITS = 6
#: How many other sessions are named that speak of a number.
MENTIONS = 20
_READ_IDS = 5_000

_NUMBER = re.compile(r"\+?[\d\s()./-]+")
_BETWEEN = r"[\s()./-]{0,3}"


@dataclass(frozen=True, slots=True)
class Found:
    """What is kept about somebody: whole sessions, and deliveries that belong to none."""

    session_ids: tuple[str, ...] = ()
    delivery_ids: tuple[int, ...] = ()


def is_number(who: str) -> bool:
    """Tell whether this is how a telephone number is written."""
    return _NUMBER.fullmatch(who.strip()) is not None and len(digits_of(who)) >= MIN_DIGITS


def find_session(reader: Engine, session_id: str) -> Found:
    """Find what is kept under a session id; nothing if there is no such session."""
    wanted = clean_text(session_id)
    known = select(calls.c.session_id).where(calls.c.session_id == wanted)
    sent = select(deliveries.c.session_id).where(deliveries.c.session_id == wanted)
    with reader.connect() as connection:
        return Found(tuple({*connection.scalars(known), *connection.scalars(sent)}))


def find_number(reader: Engine, number: str) -> Found:
    """Find the sessions from, to or with a number, and whatever names it.

    Prefetches name it in their query, calls in their metadata, and what could not be read anywhere.
    Reads the whole log, a stretch at a time.
    """
    digits = digits_of(number)
    spelled = _spelled(digits)
    sessions: set[str] = set()
    loose: set[int] = set()
    for row in _stretches(reader, _CALLS, calls.c.id):
        if digits in map(digits_of, (row.from_phone, row.to_phone, row.customer_phone)):
            sessions.add(row.session_id)
    for row in _stretches(reader, _METADATA, call_metadata.c.call_id):
        if spelled.search(row.value):
            sessions.add(row.session_id)
    for query, read in ((_QUERIES, unquote_plus), (_UNPARSED, _decoded)):
        for row in _stretches(reader, query, deliveries.c.id):
            if spelled.search(read(row.text)):
                if row.session_id is None:
                    loose.add(row.id)
                else:
                    sessions.add(row.session_id)
    return Found(tuple(sorted(sessions)), tuple(sorted(loose)))


def mentions(reader: Engine, number: str, found: Found) -> tuple[str, ...]:
    """Name other sessions in which the number was spoken of, or written; at most `MENTIONS`."""
    digits = clean_query(digits_of(number))
    with_it = select(calls.c.session_id).where(calls.c.id.in_(matching_ids(digits)))
    with reader.connect() as connection:
        named = connection.scalars(with_it.limit(MENTIONS + len(found.session_ids)))
        return tuple(sorted(set(named) - set(found.session_ids)))[:MENTIONS]


def plan(reader: Engine, found: Found) -> Removal:
    """Count what `forget` would remove."""
    sessions = planned(reader, survey_sessions, iter(found.session_ids))
    return sessions + planned(reader, survey_deliveries, iter(found.delivery_ids))


def forget(write: Write, found: Found, *, batch_s: float = BATCH_S) -> Iterator[Removal]:
    """Remove what was found, a batch with each step of the iterator; what goes is overwritten.

    Raises what `write` raises.
    """
    write = overwriting(write)
    yield from in_batches(write, _forget_sessions, iter(found.session_ids), batch_s=batch_s)
    yield from in_batches(write, remove_deliveries, iter(found.delivery_ids), batch_s=batch_s)


def _forget_sessions(connection: Connection, batch: Sequence[str]) -> Removal:
    """Remove sessions, and see to it that those that went are not fetched from Millis again."""
    staying = busy_sessions(connection, batch)
    forget_at_millis(connection, [each for each in batch if each not in staying])
    return remove_sessions(connection, batch)


def _spelled(digits: str) -> re.Pattern[str]:
    """Match these digits and no more, with what people write between the digits of a number."""
    return re.compile(rf"(?<!\d){_BETWEEN.join(digits)}(?!\d)")


def _decoded(body: bytes) -> str:
    return body.decode("utf-8", "replace")


def _stretches(reader: Engine, query: Select[Any], key: ColumnElement[int]) -> Iterator[Row[Any]]:
    """Return the rows in the order of `key`; nothing is held open for long."""
    with reader.connect() as connection:
        newest = connection.scalar(select(func.max(key))) or 0
    for before in range(0, newest, _READ_IDS):
        stretch = query.where(key > before, key <= before + _READ_IDS)
        with reader.connect() as connection:
            yield from connection.execution_options(yield_per=100).execute(stretch)


_CALLS = select(calls.c.session_id, calls.c.from_phone, calls.c.to_phone, calls.c.customer_phone)
_METADATA = select(calls.c.session_id, call_metadata.c.value).join(
    calls, calls.c.id == call_metadata.c.call_id
)
_SENT = select(deliveries.c.id, deliveries.c.session_id)
_QUERIES = _SENT.add_columns(deliveries.c.query.label("text")).where(
    deliveries.c.query.is_not(None)
)
_UNPARSED = _SENT.add_columns(deliveries.c.body.label("text")).where(IS_UNPARSED)
