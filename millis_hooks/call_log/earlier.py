"""The earlier calls of a caller, for the handlers that answer while that caller waits.

They are looked up on threads of their own, by a reader: the serving loop and the writer never wait
for them. Nothing of a call is kept here, so one that was erased never comes back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeAlias

from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Select,
    and_,
    bindparam,
    case,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.exc import SQLAlchemyError

from ..exceptions import PayloadError
from ..protocol.events import EndOfCall
from ..protocol.functions import FunctionRequest
from ..protocol.memory import EarlierCall, is_of_one_caller
from ..protocol.phones import customer_of, digits_of, direction_of
from ..protocol.prefetch import PrefetchRequest
from ..protocol.results import Result
from ..protocol.test_marks import MADE_UP_SOURCES
from .dialects import describe
from .raw_body import length_of
from .results import results_of
from .sanitize import clean_text
from .statements import aside
from .tables import calls, deliveries

logger = logging.getLogger("millis_hooks.memory")

#: An event whose handler may ask.
Asking: TypeAlias = PrefetchRequest[Any, Any] | FunctionRequest[Any]

_THREADS = 4
#: Questions that may wait for a thread; more are answered with no calls at once.
_MOST_WAITING = 1_000
#: Sessions whose prefetch is remembered until the record of it is stored.
_MOST_SESSIONS = 2_000
#: The newest calls of a number on either side that are looked at.
_LOOKED_AT = 500
#: Of larger end-of-calls neither metadata nor words are read: it would take too long.
_MOST_BYTES = 2_000_000

#: The names of the spellings of a number.
_NUMBERS = ("as_sent", "plus", "digits")
_COLUMNS = (
    "id",
    "session_id",
    "received_at",
    "started_at",
    "agent_id",
    "outcome",
    "call_status",
    "duration_s",
)

_Work: TypeAlias = Callable[[], list[EarlierCall]]


class _Caller(NamedTuple):
    """The two numbers of a call, and its agent."""

    from_phone: str | None
    to_phone: str | None
    agent_id: str | None


class Memory:
    """Looks up the earlier calls of callers in the log that `engine` reads."""

    def __init__(self, engine: Engine, own_numbers: frozenset[str]) -> None:
        self._engine = engine
        self._own_numbers = own_numbers
        self._own = frozenset(map(digits_of, own_numbers))
        self._recent: dict[str, _Caller] = {}
        self._queue: SimpleQueue[tuple[Future[list[EarlierCall]], _Work] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def note(self, call: PrefetchRequest[Any, Any]) -> None:
        """Remember who is in a session: its functions come without a number, maybe before the
        prefetch is stored. Called on one thread."""
        if call.session_id and (call.from_phone or call.to_phone):
            self._recent.pop(call.session_id, None)
            self._recent[call.session_id] = _Caller(call.from_phone, call.to_phone, call.agent_id)
            if len(self._recent) > _MOST_SESSIONS:
                del self._recent[next(iter(self._recent))]

    def recall(self, event: Asking, until: float) -> Recollection:
        """Return what looks up earlier calls for an event whose handler has until then, in seconds
        of the monotonic clock."""
        return Recollection(self, event, until)

    def close(self) -> None:
        """End the threads, those that wait for the database when it answers."""
        for _ in self._threads:
            self._queue.put(None)

    def submit(self, work: _Work) -> Future[list[EarlierCall]]:
        """Have `work` done in a thread."""
        asked: Future[list[EarlierCall]] = Future()
        if self._queue.qsize() >= _MOST_WAITING:
            asked.set_result([])
            logger.warning("earlier calls were not looked up: too many look-ups wait")
            return asked
        self._queue.put((asked, work))
        if len(self._threads) < _THREADS:
            # The standard pool joins its threads at exit, and one may wait for a database.
            thread = threading.Thread(target=self._run, name="millis-hooks-memory", daemon=True)
            self._threads.append(thread)
            thread.start()
        return asked

    def look_up(self, event: Asking, limit: int, agent: str | None) -> list[EarlierCall]:
        """Return the earlier calls of an event's caller. Blocks; raises SQLAlchemy's errors."""
        if isinstance(event, PrefetchRequest):
            caller: _Caller | None = _Caller(event.from_phone, event.to_phone, event.agent_id)
        else:
            caller = self._recent.get(event.session_id or "")
        with self._engine.connect() as connection:
            if caller is None and event.session_id:
                caller = _stored_caller(connection, event.session_id)
            if caller is None or caller.agent_id != (event.agent_id or caller.agent_id):
                return []
            question = self._question(caller, event, limit, agent)
            rows = connection.execute(*question).all() if question else []
            results = results_of(connection, [row.id for row in rows]) if rows else {}
        return [_read(row, results.get(row.id, ())) for row in rows]

    def _question(
        self, caller: _Caller, event: Asking, limit: int, agent: str | None
    ) -> tuple[Select[Any], dict[str, Any]] | None:
        """Return the statement and its parameters; None for a number that is not one caller's."""
        sides = (caller.from_phone, caller.to_phone)
        number = customer_of(*sides, self._own_numbers)
        if not is_of_one_caller(number) or digits_of(number) in self._own:
            return None
        # Where neither is known to be ours, `number` may be, and its calls are those of many.
        is_certain = direction_of(*sides, self._own_numbers) is not None
        other = None if is_certain else caller.to_phone
        statement = _earlier(
            has_other=other is not None,
            has_agent=agent is not None,
            is_made_up=event.is_made_up,
        )
        named = {"besides": clean_text(event.session_id) or "", "most": limit}
        if agent is not None:
            named["agent"] = clean_text(agent) or ""
        others = _spellings("other", other) if other is not None else {}
        return statement, {**named, **_spellings("number", number), **others}

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            asked, work = item
            if asked.set_running_or_notify_cancel():
                asked.set_result(_answer_of(work))


@dataclass(frozen=True, slots=True)
class Recollection:
    """Looks up earlier calls for one event; see `protocol.memory.Recall`."""

    memory: Memory
    event: Asking
    until: float

    def ask(self, limit: int, agent: str | None) -> Future[list[EarlierCall]]:
        """Begin to look them up."""
        return self.memory.submit(lambda: self.memory.look_up(self.event, limit, agent))

    def wait_s(self) -> float:
        """Return half of what is left, so that the handler can still answer."""
        return max(0.0, self.until - time.monotonic()) / 2

    def give_up(self, asked: Future[list[EarlierCall]]) -> list[EarlierCall]:
        """Warn that they took too long, and return none."""
        asked.cancel()
        logger.warning("earlier calls were not looked up: the call log did not answer in time")
        return []


def _answer_of(work: _Work) -> list[EarlierCall]:
    try:
        return work()
    except SQLAlchemyError as error:
        logger.warning("earlier calls were not looked up: %s", describe(error))
    except Exception as error:  # the call must continue, and the thread too
        logger.warning("earlier calls were not looked up: %s", type(error).__name__)
    return []


def _stored_caller(connection: Connection, session_id: str) -> _Caller | None:
    c = calls.c
    known = select(c.from_phone, c.to_phone, c.agent_id)
    row = connection.execute(known.where(c.session_id == clean_text(session_id))).one_or_none()
    return None if row is None else _Caller(*row)


@cache
def _earlier(*, has_other: bool, has_agent: bool, is_made_up: bool) -> Select[Any]:
    """Select the calls, each side by its index in order of time; made once for each kind."""
    c, d = calls.c, deliveries.c
    newest = [
        # Between twice the same: in this order PostgreSQL takes no index but that of the number.
        select(c.id)
        .where(side.between(spelling, spelling))
        .order_by(side.desc(), c.received_at.desc())
        .limit(_LOOKED_AT)
        .subquery()
        for name in (("number", "other") if has_other else ("number",))
        for side in (c.from_phone, c.to_phone)
        for spelling in _bound(name)
    ]
    ids = union_all(*(select(each.c.id) for each in newest))
    wanted = [c.ended_at.is_not(None), c.session_id != bindparam("besides")]
    if has_other:
        wanted.append(_is_between())
    if has_agent:
        wanted.append(aside(c.agent_id) == bindparam("agent"))
    if not is_made_up:
        wanted.append(or_(c.source.is_(None), c.source.not_in(sorted(MADE_UP_SOURCES))))
    order = (aside(c.received_at).desc(), aside(c.id).desc())
    few = select(c.id).where(c.id.in_(ids), *wanted).order_by(*order).limit(bindparam("most"))
    body = case((length_of(d.body) <= _MOST_BYTES, d.body), else_=null()).label("body")
    found = select(*(c[name] for name in _COLUMNS), body).where(c.id.in_(few))
    return found.join(deliveries, d.id == c.delivery_id, isouter=True).order_by(*order)


def _bound(name: str) -> list[ColumnElement[str]]:
    return [bindparam(f"{name}_{each}", type_=calls.c.from_phone.type) for each in _NUMBERS]


def _is_between() -> ColumnElement[bool]:
    """Return the condition for a call to be between the two numbers, in either direction."""
    sides = [aside(calls.c.from_phone), aside(calls.c.to_phone)]
    ways = (zip(sides, names, strict=True) for names in (("number", "other"), ("other", "number")))
    return or_(*(and_(*(side.in_(_bound(name)) for side, name in way)) for way in ways))


def _spellings(name: str, number: str | None) -> dict[str, str]:
    """Return how a number may have been sent, as parameters: mostly it was + and digits."""
    digits = digits_of(number)
    as_sent = clean_text(number) or ""
    spellings = (as_sent, f"+{digits}" if digits else as_sent, digits or as_sent)
    return {f"{name}_{key}": each for key, each in zip(_NUMBERS, spellings, strict=True)}


def _read(row: Any, results: Sequence[Result]) -> EarlierCall:
    end = None
    with suppress(PayloadError):  # it was read once, and may have been redacted since
        end = EndOfCall.parse(row.body) if row.body else None
    return EarlierCall(
        session_id=row.session_id,
        started_at=row.started_at or row.received_at,
        agent_id=row.agent_id,
        outcome=row.outcome,
        call_status=row.call_status,
        duration_s=row.duration_s,
        metadata=dict(end.metadata) if end else {},
        results={each.name: each.value for each in results},
        caller_last_words=_last_words(end, "user"),
        agent_last_words=_last_words(end, "assistant"),
    )


def _last_words(end: EndOfCall | None, role: str) -> str | None:
    said = (each.content for each in reversed(end.chat if end else ()) if each.role == role)
    return next((words for words in said if words and words.strip()), None)
