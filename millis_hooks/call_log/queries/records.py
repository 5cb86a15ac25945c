"""The results of queries: frozen rows without a database behind them.

`tables.py` documents each column, its unit and its source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from ...protocol.results import Plain, Result
from ...protocol.test_marks import MADE_UP_SOURCES
from ..search import Excerpt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

#: A call whose end has not come counts as in progress this long after its first webhook, and as
#: lost from then on. Calls are shorter; of one that never connects Millis sends nothing.
LIVE_FOR = timedelta(minutes=75)
#: The same of a rehearsal or a test that was left: it has ended by itself then.
REHEARSED_FOR = timedelta(minutes=10)

#: How a call stands: its end may still come, is overdue, has come, or is not expected.
State: TypeAlias = Literal["live", "lost", "ended", "unended"]


def read_as(shape: type[T], row: Mapping[Any, Any]) -> T:
    """Return a row as a record, by the names of its fields."""
    return shape(**{field.name: row[field.name] for field in fields(shape)})


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
