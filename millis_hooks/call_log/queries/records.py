"""The results of queries: frozen rows without a database behind them.

`tables.py` documents each column, its unit and its source.

Lists are read a page at a time, newest first, keyed by (received time, id): rows that arrive do not
shift an open page, and page 10,000 costs as much as the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from sqlalchemy import ColumnElement, literal, not_, tuple_

from ...protocol.results import Plain
from ...protocol.test_marks import MADE_UP_SOURCES
from ..results import Result
from ..search import Excerpt

#: A call whose end has not come counts as in progress this long after its first webhook, and as
#: lost from then on. Calls are shorter; of one that never connects Millis sends nothing.
LIVE_FOR = timedelta(minutes=75)
#: The same of a rehearsal or a test that was left: it has ended by itself then.
REHEARSED_FOR = timedelta(minutes=10)

#: How a call stands: its end may still come, is overdue, has come, or is not expected.
State: TypeAlias = Literal["live", "lost", "ended", "unended"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A row of `calls`: what is known of one session."""

    id: int
    session_id: str
    received_at: datetime
    delivery_id: int | None
    ended_at: datetime | None
    call_id: str | None
    agent_id: str | None
    channel: str | None
    direction: str | None
    from_phone: str | None
    to_phone: str | None
    customer_phone: str | None
    provider: str | None
    call_status: str | None
    outcome: str | None
    error_message: str | None
    started_at: datetime | None
    duration_s: float | None
    cost_total: float | None
    chars_used: int | None
    turns: int | None
    snippet: str | None
    recording_url: str | None
    opted_out: bool | None
    prefetch_ms: float | None
    prefetch_outcome: str | None
    #: Who made it, unless Millis did and told of it: sandbox | test | as_real | millis_api.
    source: str | None = None

    def is_live(self, now: datetime) -> bool:
        """Whether the end may still come."""
        live_for = REHEARSED_FOR if self.is_made_up else LIVE_FOR
        return self.ended_at is None and self.received_at >= now - live_for

    def is_lost(self, now: datetime) -> bool:
        """Whether the end is overdue; that of a made-up call is not expected."""
        return self.ended_at is None and not self.is_made_up and not self.is_live(now)

    def state(self, now: datetime) -> State:
        """Return how it stands."""
        if self.ended_at is not None:
            return "ended"
        return "live" if self.is_live(now) else "lost" if self.is_lost(now) else "unended"

    @property
    def is_made_up(self) -> bool:
        """Whether it is a rehearsal or a test, which Millis knows nothing of."""
        return self.source in MADE_UP_SOURCES


@dataclass(frozen=True, slots=True)
class RunCounts:
    """How the handlers of a call stand: their latest runs, without those of `on_failed` handlers.

    `retrying` wait for their next attempt, `waiting` are pending or at work.
    """

    total: int = 0
    retrying: int = 0
    failed: int = 0
    waiting: int = 0

    @property
    def words(self) -> str:
        """How many are in the state that matters most; empty if there are none."""
        if self.failed:
            return f"{self.failed} of {self.total} failed"
        if self.retrying:
            return f"{self.retrying} of {self.total} retrying"
        if self.waiting:
            return f"{self.waiting} waiting"
        return f"{self.total} succeeded" if self.total else ""


@dataclass(frozen=True, slots=True)
class ListedCall:
    """A call as a list shows it, with where the first term of a search was found, and others."""

    call: Call
    runs: RunCounts
    excerpt: Excerpt | None = None
    more_excerpts: Sequence[Excerpt] = ()
    results: Sequence[Result] = ()
    #: What prefetch handlers kept, as text, by `keep.NAME`.
    kept: Mapping[str, Plain] = field(default_factory=dict)

    @property
    def all_excerpts(self) -> Sequence[Excerpt]:
        return (self.excerpt, *self.more_excerpts) if self.excerpt else ()


@dataclass(frozen=True, slots=True)
class Page:
    """One page of calls, newest first; a cursor is None where there is no further page.

    `counts` has a number for "all" and for each outcome tab, under the same other filters; None
    where counting would take too long. Of the tabs named in `at_least` there are more calls.
    `failed_handlers` is that number for the calls with a failed handler, and `hidden` for the
    rehearsals and tests that a list of real calls leaves out. `is_plain` says
    that the search index could not be used: only whole ids and numbers were looked for.
    """

    rows: tuple[ListedCall, ...]
    newer: str | None
    older: str | None
    counts: Mapping[str, int | None]
    at_least: tuple[str, ...]
    failed_handlers: int | None = 0
    hidden: int | None = 0
    is_plain: bool = False


@dataclass(frozen=True, slots=True)
class LiveCall:
    """A call whose end has not come, with the query string of its prefetch if there was one."""

    call: Call
    prefetch_query: str | None


@dataclass(frozen=True, slots=True)
class Waiting:
    """Real calls that the navigation counts: those in progress, and those of the last 7 days with
    a failed handler, up to 1,000."""

    live: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Today:
    """Totals since midnight."""

    calls: int
    errors: int
    failed_runs: int
    credits: float | None
    prefetch_p95_ms: float | None
    last_prefetch_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One request as it came and as it was answered.

    `body` is None where it was not read: in lists, and where it repeats an earlier one's bytes.
    """

    id: int
    kind: str
    session_id: str | None
    received_at: datetime
    query: str | None
    content_type: str | None
    body: bytes | None
    body_bytes: int
    status_code: int
    answer: bytes | None
    latency_ms: float | None
    outcome: str
    reason: str | None
    #: It was masked before it was stored.
    redacted: bool = False
    #: Who sent it, unless Millis did: sandbox | millis_api.
    source: str | None = None
    #: The name of the function that was called.
    function: str | None = None
    #: Of a prefetch: what its handlers keep of it, an object of JSON.
    kept: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CostItem:
    """One line of what a call cost, in credits."""

    type: str | None
    provider: str | None
    credit: float | None
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try of a handler run; `outcome` is None while it is running."""

    number: int
    started_at: datetime
    ended_at: datetime | None
    duration_ms: float | None
    outcome: str | None
    error_type: str | None
    error_message: str | None
    traceback: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A handler called for a call, with every attempt at it, first to last.

    `max_attempts` and `repeatable` are those the handler is registered with now, and None when no
    handler has this name any more.
    """

    id: int
    hook: str
    handler: str
    state: str
    created_at: datetime
    is_latest: bool
    is_replay: bool
    failed_run_id: int | None
    spent: int
    state_since: datetime
    due_at: datetime | None
    reason: str | None
    max_attempts: int | None
    repeatable: bool | None
    attempts: tuple[Attempt, ...] = ()
    results: tuple[Result, ...] = ()

    @property
    def result(self) -> dict[str, Plain]:
        """The results by their names; empty once a later run of the handler has taken its place."""
        return {each.name: each.value for each in self.results}

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come of it by itself."""
        return self.state in ("succeeded", "failed")

    @property
    def duration_ms(self) -> float:
        """The time all attempts took together."""
        return sum(attempt.duration_ms or 0 for attempt in self.attempts)


@dataclass(frozen=True, slots=True)
class CallRecord:
    """Everything kept about one call.

    `deliveries` and `runs` are oldest first and may be cut short; `delivery_count` and `run_count`
    are how many there were. Of the runs, those that another has replaced are left out first.
    """

    call: Call
    deliveries: tuple[Delivery, ...]
    delivery_count: int
    costs: tuple[CostItem, ...]
    runs: tuple[Run, ...]
    run_count: int
    results: tuple[Result, ...] = ()


T = TypeVar("T")


class Place(NamedTuple):
    """The place of a row in a list."""

    received_at: datetime
    id: int

    @property
    def cursor(self) -> str:
        """What names the place in addresses; there is no + in it."""
        at = self.received_at.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return f"{at},{self.id}"

    @classmethod
    def read(cls, cursor: str | None) -> Place | None:
        """Return the place of a cursor, or None for one that cannot be read."""
        received_at, _, id_ = (cursor or "").partition(",")
        if not (id_.isascii() and id_.removeprefix("-").isdigit() and len(id_) < 19):
            return None
        try:
            return cls(datetime.fromisoformat(received_at).astimezone(UTC), int(id_))
        except (ValueError, OverflowError):
            return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a list, and the direction it is read in.

    It was received from `since` (inclusive) to `until` (exclusive), begins next to `after`, which
    was read before, and ends with `last`.
    """

    since: datetime | None = None
    until: datetime | None = None
    after: Place | None = None
    last: Place | None = None
    newest_first: bool = True

    def holds(self, at: ColumnElement[Any], id_: ColumnElement[Any]) -> list[ColumnElement[bool]]:
        """Return the conditions for a row received `at`, of this id, to be in it."""
        inside = [at >= literal(self.since, at.type)] if self.since else []
        if self.until:
            inside.append(at < literal(self.until, at.type))
        if self.after:
            inside.append(self._is_beyond(self.after, at, id_))
        if self.last:
            inside.append(not_(self._is_beyond(self.last, at, id_)))
        return inside

    def order(self, *key: ColumnElement[Any]) -> list[ColumnElement[Any]]:
        """Return the order in which rows are read."""
        return [each.desc() if self.newest_first else each.asc() for each in key]

    def _is_beyond(self, place: Place, at: ColumnElement[Any], id_: Any) -> ColumnElement[bool]:
        here = tuple_(at, id_)
        there = tuple_(literal(place.received_at, at.type), literal(place.id, id_.type))
        return here < there if self.newest_first else here > there


@dataclass(frozen=True, slots=True)
class Paged(Generic[T]):
    """The rows of a page, newest first; a cursor is None where there is no further page."""

    rows: tuple[T, ...]
    newer: str | None
    older: str | None


def read_page(
    read: Callable[[Window, int], Sequence[T]],
    place_of: Callable[[T], Place],
    *,
    window: Window,
    before: str | None,
    after: str | None,
    size: int,
) -> Paged[T]:
    """Read the page next to a cursor; one that cannot be read is ignored.

    `read` returns the first rows of a window, up to a number.
    """
    if (place := Place.read(after)) is not None:
        newer = read(replace(window, after=place, newest_first=False), size + 1)
        if len(newer) > size:
            rows = newer[:size][::-1]
            return Paged(tuple(rows), place_of(rows[0]).cursor, place_of(rows[-1]).cursor)
        # Fewer than a page are newer: this is the first page.
    place = Place.read(before) if after is None else None
    rows = read(replace(window, after=place), size + 1)
    more, rows = len(rows) > size, rows[:size]
    newer_cursor = place_of(rows[0]).cursor if place is not None and rows else None
    return Paged(tuple(rows), newer_cursor, place_of(rows[-1]).cursor if more else None)
