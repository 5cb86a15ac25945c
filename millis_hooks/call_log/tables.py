"""The tables of the call log, as SQLAlchemy Core sees them.

Raw bytes are evidence and stay as they came; every other column is derived from them and can be
derived again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Date,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    TypeDecorator,
    and_,
    literal_column,
    true,
)

from .raw_body import RawBytes
from .sanitize import MAX_KEY_CHARS, short_key


def utc_text(moment: datetime) -> str:
    """Return a moment as SQLite has it: text that sorts."""
    return moment.astimezone(UTC).isoformat(" ", "microseconds").removesuffix("+00:00")


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC `datetime`: timestamptz on PostgreSQL, ISO text that sorts on SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def bind_processor(self, dialect: Dialect) -> Any:
        """Return what makes the text; that of SQLAlchemy takes several times as long."""
        if dialect.name == "postgresql":
            return super().bind_processor(dialect)
        return lambda moment: None if moment is None else utc_text(moment)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None or value.tzinfo is UTC:
            return value
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Key(TypeDecorator[str]):
    """Text that is looked up by. An absurdly long one is kept, and found, by its beginning and
    what tells it from others: no index of PostgreSQL takes it whole."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:
        return value if value is None or len(value) <= MAX_KEY_CHARS else short_key(value)


#: A row number: SQLite only counts up a column that is exactly INTEGER.
RowId = BigInteger().with_variant(Integer(), "sqlite")

metadata = MetaData()


def _partial_index(
    name: str, *columns: Column[Any], where: ColumnElement[bool], unique: bool = False
) -> None:
    """Have an index of some of the rows.

    `postgres.py` tells PostgreSQL: here that would import its dialect, 20 ms of every start.
    """
    Index(name, *columns, unique=unique, sqlite_where=where)


#: Every request as it came: evidence. Only `outcome` and `reason` may change, once, when nothing
#: can be derived from a delivery that was stored.
deliveries = Table(
    "deliveries",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("kind", Text, nullable=False),  # prefetch | function | end_of_call
    Column("session_id", Key),  # None when the message names none or could not be read
    Column("received_at", UtcDateTime, nullable=False),
    # prefetch: fresh | cached | default | last_good | late | failed;
    # function: answered | invalid (its arguments) | late | failed;
    # end-of-call: stored | unparsed;  either, before schema 0004: rejected
    Column("outcome", Text, nullable=False),
    Column("reason", Text),  # why it is not the best outcome, in words
    Column("status_code", Integer, nullable=False),
    Column("latency_ms", Float),  # from the request read to the answer ready
    Column("content_type", Text),
    Column("content_hash", LargeBinary),  # tells a redelivered body from a changed one
    Column("query", Text),  # the query string as received; on a prefetch it is the whole message
    Column("answer", LargeBinary),  # the bytes we answered with
    # exactly as received, after content decoding; unless `redacted`. Old ones are packed
    Column("body", RawBytes, nullable=False),
    # numbers and words were masked before storage
    Column("redacted", Boolean, nullable=False, default=False),
    # brought in by `millis-hooks import`: of the past, so no handler is called for it
    Column("imported", Boolean, nullable=False, default=False),
    # who sent it, unless Millis did: sandbox | test | as_real (a test that handlers take for a call
    # of Millis') | millis_api (fetched from its call logs)
    Column("source", Text),
    # rehearsed, and handlers are asked to skip side effects
    Column("dry_run", Boolean, nullable=False, default=False),
    Column("trace", Text),  # its context as W3C writes it (traceparent), where calls are traced
    # the agent its secret is bound to; None where that is good for every agent
    Column("secret_agent", Text),
    Column("function", Text),  # the name of the function that was called
    Column("kept", Text),  # of a prefetch: what its handlers keep of it, an object of JSON
    sqlite_autoincrement=True,
)
Index("ix_deliveries_session", deliveries.c.session_id, deliveries.c.id)
#: Spelled out, not bound: SQLite then sees that the index below answers it.
IS_UNPARSED = deliveries.c.outcome == literal_column("'unparsed'")
_partial_index("ix_deliveries_unparsed", deliveries.c.id, where=IS_UNPARSED)
Index("ix_deliveries_received", deliveries.c.received_at, deliveries.c.id)
#: Few, however long the log.
BEST_OUTCOMES = ("fresh", "cached", "answered", "stored")
IS_NOT_BEST = deliveries.c.outcome.not_in([literal_column(f"'{each}'") for each in BEST_OUTCOMES])
_partial_index(
    "ix_deliveries_outcome",
    deliveries.c.outcome,
    deliveries.c.received_at,
    deliveries.c.id,
    where=IS_NOT_BEST,
)

#: Deliveries stored but not yet processed; written in the transaction that stores them.
inbox = Table(
    "inbox",
    metadata,
    Column("delivery_id", RowId, primary_key=True, autoincrement=False),
    # how often it was taken up; only what may end a process is counted, before it is read
    Column("attempts", Integer, nullable=False, server_default="0"),
)

#: Deliveries to be read again, as after an upgrade. Meanwhile they still describe their calls.
rereads = Table(
    "rereads",
    metadata,
    Column(
        "delivery_id",
        RowId,
        ForeignKey("deliveries.id", ondelete="CASCADE"),
        primary_key=True,
        autoincrement=False,
    ),
    Column("attempts", Integer, nullable=False, server_default="0"),  # as in `inbox`
)

calls = Table(
    "calls",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("session_id", Key, nullable=False, unique=True),
    Column("received_at", UtcDateTime, nullable=False),  # the first delivery of this session
    # the end-of-call the columns below come from: the first one; None while live or lost
    Column("delivery_id", RowId, ForeignKey("deliveries.id")),
    Column("ended_at", UtcDateTime),  # when that end-of-call was received
    Column("call_id", Key),
    Column("agent_id", Key),
    Column("channel", Text),  # phone | web | chat
    Column("direction", Text),  # inbound | outbound, when own numbers tell
    Column("from_phone", Key),
    Column("to_phone", Key),
    Column("customer_phone", Text),
    Column("provider", Text),
    Column("call_status", Key),
    Column(
        "outcome", Text
    ),  # completed | chat | voicemail | timeout | failed | unreached | unknown
    Column("error_message", Text),
    Column("started_at", UtcDateTime),  # Millis' clock
    Column("duration_s", Float),
    Column("cost_total", Float),  # credits; None when Millis sent no costs
    Column("chars_used", BigInteger),
    Column("turns", Integer),
    Column("snippet", Text),  # the first thing the caller said
    Column("recording_url", Text),
    Column("opted_out", Boolean),
    Column("prefetch_ms", Float),
    Column("prefetch_outcome", Text),
    Column("repeated", Boolean, nullable=False, default=False),  # its end came more than once
    Column("unhandled", Boolean, nullable=False, default=False),  # no handler wanted its end
    Column("source", Text),  # that of its end; calls that were made up stay out of analytics
    sqlite_autoincrement=True,
)
Index("ix_calls_received", calls.c.received_at, calls.c.id)
Index("ix_calls_agent", calls.c.agent_id, calls.c.received_at)
#: With the source, so that real calls are counted without a look at each.
Index("ix_calls_outcome", calls.c.outcome, calls.c.received_at, calls.c.source)
_partial_index(
    "ix_calls_open", calls.c.received_at, calls.c.source, where=calls.c.ended_at.is_(None)
)
#: Calls whose end-of-call never arrived: few rows.
_partial_index(
    "ix_calls_source", calls.c.source, calls.c.received_at, where=calls.c.source.is_not(None)
)
#: The customer's number is one of these two.
Index("ix_calls_from", calls.c.from_phone, calls.c.received_at)
Index("ix_calls_to", calls.c.to_phone, calls.c.received_at)
Index("ix_calls_status", calls.c.call_status, calls.c.received_at)
Index("ix_calls_channel", calls.c.channel, calls.c.direction, calls.c.received_at)
Index("ix_calls_duration", calls.c.duration_s)
Index("ix_calls_cost", calls.c.cost_total)
IS_REPEATED = calls.c.repeated == true()
_partial_index("ix_calls_repeated", calls.c.received_at, where=IS_REPEATED)
#: Of these some may have got a run since, by a replay.
IS_UNHANDLED = calls.c.unhandled == true()
_partial_index("ix_calls_unhandled", calls.c.received_at, where=IS_UNHANDLED)
#: Without it SQLite reads all calls to delete one delivery, as one of them may refer to it.
Index("ix_calls_delivery", calls.c.delivery_id)

#: Before the key of a value that prefetch kept (`keep=`): it stands beside the metadata.
KEPT = "keep."

#: What a call was given and came back with, as text, to find calls by.
call_metadata = Table(
    "call_metadata",
    metadata,
    Column("call_id", RowId, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("key", Key, primary_key=True),
    Column("value", Text, nullable=False),  # its first characters
    Column("received_at", UtcDateTime, nullable=False),  # that of the call, to list by
    sqlite_with_rowid=False,
)
Index(
    "ix_call_metadata_value",
    call_metadata.c.key,
    call_metadata.c.value,
    call_metadata.c.received_at,
    call_metadata.c.call_id,
)

#: What end-of-call handlers returned for a call: of each handler the results of its latest run.
call_results = Table(
    "call_results",
    metadata,
    Column("call_id", RowId, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Key, primary_key=True),
    Column("handler", Key, primary_key=True),
    # None where it was imported
    Column("run_id", RowId),
    Column("text", Text),  # of every value: "true", "4.5"; None where the value is None
    Column("number", Float),  # of a number; 1 and 0 of true and false
    Column("received_at", UtcDateTime, nullable=False),  # that of the call, to list by
    sqlite_with_rowid=False,
)
Index(
    "ix_call_results_text",
    call_results.c.name,
    call_results.c.text,
    call_results.c.received_at,
    call_results.c.call_id,
)
Index("ix_call_results_number", call_results.c.name, call_results.c.number, call_results.c.call_id)

cost_items = Table(
    "cost_items",
    metadata,
    Column("call_id", RowId, ForeignKey("calls.id", ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("type", Text),
    Column("provider", Text),
    Column("credit", Float),
    Column("prompt_tokens", BigInteger),
    Column("completion_tokens", BigInteger),
    sqlite_with_rowid=False,
)

#: A handler called for a call. Of several for the same handler and call, one is the latest.
handler_runs = Table(
    "handler_runs",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("call_id", RowId, ForeignKey("calls.id", ondelete="CASCADE"), nullable=False),
    Column("handler", Key, nullable=False),
    Column("state", Text, nullable=False),  # pending | running | succeeded | retrying | failed
    Column("created_at", UtcDateTime, nullable=False),
    Column("hook", Key, nullable=False),  # end_of_call | failed
    Column("is_latest", Boolean, nullable=False),  # False once a replay took its place
    Column("is_replay", Boolean, nullable=False),  # a person asked for it
    # the failed run, of the same call, that a handler of the hook `failed` is called for
    Column("failed_run_id", RowId),
    Column("spent", Integer, nullable=False),  # attempts that count towards max_attempts
    Column("state_since", UtcDateTime, nullable=False),
    Column("due_at", UtcDateTime),  # when a failed run is tried again
    Column("reason", Text),  # why it has failed, or which results were left out, in words
    Column("runner", Key),  # the process it is running in, or was last; None where only one may
    # the end-of-call that changed what is known of the call; None for the first run
    Column("change", Text),
    sqlite_autoincrement=True,
)
#: The processes that do runs, where several may. The times are those of the database's clock.
runners = Table(
    "runners",
    metadata,
    Column("name", Key, primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    Column("beat_at", UtcDateTime, nullable=False),  # when it said last that it is there
)
IS_OF_CALL = and_(
    handler_runs.c.hook == literal_column("'end_of_call'"),
    handler_runs.c.is_latest == true(),
)
_partial_index(
    "ux_handler_runs_latest",
    handler_runs.c.call_id,
    handler_runs.c.handler,
    unique=True,
    where=IS_OF_CALL,
)
#: Runs that have not succeeded: few rows, however long the log.
IS_OPEN = handler_runs.c.state != literal_column("'succeeded'")
_partial_index(
    "ix_handler_runs_open",
    handler_runs.c.state,
    handler_runs.c.hook,
    handler_runs.c.handler,
    handler_runs.c.id,
    where=IS_OPEN,
)
IS_RETRYING = handler_runs.c.state == literal_column("'retrying'")
_partial_index("ix_handler_runs_due", handler_runs.c.due_at, where=IS_RETRYING)
Index("ix_handler_runs_call", handler_runs.c.call_id, handler_runs.c.id)

attempts = Table(
    "attempts",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("run_id", RowId, ForeignKey("handler_runs.id", ondelete="CASCADE"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("started_at", UtcDateTime, nullable=False),
    Column("ended_at", UtcDateTime),
    Column("duration_ms", Float),
    # succeeded | failed | timed_out | retry | gave_up | interrupted (the process died) |
    # handed_back (the service stopped); None while at work
    Column("outcome", Text),
    Column("error_type", Text),
    Column("error_message", Text),
    Column("traceback", Text),
    sqlite_autoincrement=True,
)
Index("ux_attempts_number", attempts.c.run_id, attempts.c.number, unique=True)

#: The handlers of the application that runs, for pages and commands that do not import it.
handlers = Table(
    "handlers",
    metadata,
    Column("hook", Key, primary_key=True),  # prefetch | function | end_of_call | failed
    Column("name", Key, primary_key=True),
    Column("max_attempts", Integer, nullable=False),
    Column("timeout_s", Float, nullable=False),
    Column("repeatable", Boolean, nullable=False),  # may a person replay its runs
    Column("filters", Text, nullable=False),  # JSON: {"outcome": ["voicemail"]}
    Column("seen_at", UtcDateTime, nullable=False),  # when an application last started with it
    # of a function, JSON: its entry among an agent's `tools`, without address and header
    Column("tool", Text),
)

#: Names of agents: those given in code and settings of the application that runs, and Millis' own.
agents = Table(
    "agents",
    metadata,
    Column("source", Key, primary_key=True),  # given | millis
    Column("agent_id", Key, primary_key=True),
    Column("name", Text, nullable=False),
)

#: What Millis sent that its documentation does not know, and what could not be read: a row for each
#: delivery it was seen in, so that counts stay true when deliveries are read again or go.
drift = Table(
    "drift",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("delivery_id", RowId, ForeignKey("deliveries.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),  # unknown_field | unknown_value | unreadable
    Column("path", Key, nullable=False),  # where in the payload: chat[].role
    Column("sample", Text, nullable=False),  # what was found, masked and short
    Column("seen_at", UtcDateTime, nullable=False),  # when the delivery was received
    sqlite_autoincrement=True,
)
Index("ix_drift_kind", drift.c.kind, drift.c.path, drift.c.seen_at)
Index("ix_drift_delivery", drift.c.delivery_id)

#: What of `drift` an operator has accepted.
known_drift = Table(
    "known_drift",
    metadata,
    Column("kind", Text, primary_key=True),
    Column("path", Key, primary_key=True),
    Column("since", UtcDateTime, nullable=False),
)

#: A row for each change to calls of a UTC day, until `day_totals` has it; see `changed_days.py`.
changed_days = Table(
    "changed_days",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("day", Date, nullable=False),
    sqlite_autoincrement=True,
)
Index("ix_changed_days_day", changed_days.c.day)

#: What the calls received on a past UTC day add up to, so that reports need not read every call.
day_totals = Table(
    "day_totals",
    metadata,
    Column("agent_id", Key, primary_key=True),  # "" for all calls together
    Column("day", Date, primary_key=True),
    Column("measure", Text, primary_key=True),  # those of `queries/tally.py`
    Column("name", Text, primary_key=True),
    # for each value the half hour it is of, 0 to 47, as a byte, and the value as a double
    Column("slots", LargeBinary, nullable=False),
    Column("amounts", LargeBinary, nullable=False),
)
Index("ix_day_totals_day", day_totals.c.day)

#: The same divided by agent (the key is "") and by the values of metadata keys.
day_divisions = Table(
    "day_divisions",
    metadata,
    Column("key", Key, primary_key=True),
    Column("day", Date, primary_key=True),
    # packed: value -> measure and name -> number; None where the values are too many
    Column("sums", LargeBinary),
    # packed: agent -> the same of its calls; None where the key is ""
    Column("by_agent", LargeBinary),
)
Index("ix_day_divisions_day", day_divisions.c.day)

#: Requests that were refused, the newest.
rejections = Table(
    "rejections",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("received_at", UtcDateTime, nullable=False),
    Column("webhook", Text, nullable=False),  # prefetch | function | end_of_call
    Column("method", Text, nullable=False),
    Column("status_code", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("client", Text),  # the address it came from
    Column("query", Text, nullable=False),  # masked, as are the headers
    Column("headers", Text, nullable=False),  # JSON: [[name, value], ...]
    Column("body_bytes", BigInteger),  # as its sender said
    Column("brought_secret", Boolean, nullable=False, default=False),  # an accepted one
    sqlite_autoincrement=True,
)

operator_sessions = Table(
    "operator_sessions",
    metadata,
    Column("id_hash", Text, primary_key=True),  # SHA-256 of the id in the cookie, in hex
    Column("operator", Key, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_seen_at", UtcDateTime, nullable=False),  # to the minute
    # the earlier of `ends_at` and, where there is one, `idle_s` after it was last seen
    Column("expires_at", UtcDateTime, nullable=False),
    Column("ends_at", UtcDateTime),  # however much it is used
    Column("idle_s", Integer),  # None: it may rest as long as it lasts
    Column("confirmed_at", UtcDateTime),  # when the password was last given in it
    Column("client", Text),  # the network address it was started from
    Column("browser", Text),  # what the browser called itself then
)
Index("ix_operator_sessions_operator", operator_sessions.c.operator)

#: Operators by name; the one of the setting DASHBOARD_PASSWORD, `admin`, is not among them.
operators = Table(
    "operators",
    metadata,
    Column("name", Key, primary_key=True),
    Column("role", Text, nullable=False),  # view | operate
    Column("password_hash", Text, nullable=False),  # argon2id, in the PHC format
    Column("created_at", UtcDateTime, nullable=False),
)

#: What programs read the pages' JSON with.
read_tokens = Table(
    "read_tokens",
    metadata,
    Column("name", Key, primary_key=True),
    Column("token_hash", Text, nullable=False, unique=True),  # SHA-256, in hex
    Column("created_at", UtcDateTime, nullable=False),
    Column("last_used_at", UtcDateTime),  # to the minute
)

#: The audit log: actions of operators. Refused sign-ins are counted, by client and hour.
audit_log = Table(
    "audit_log",
    metadata,
    Column("id", RowId, primary_key=True),
    Column("at", UtcDateTime, nullable=False),
    Column("operator", Key),  # None: an unknown name
    Column("action", Text, nullable=False),  # sign_in | refused | replay | reveal | ...
    Column("subject", Text),  # what it was done to, such as a session id
    Column("client", Text),  # the network address it came from
    Column("times", Integer, nullable=False, default=1),
    Column("last_at", UtcDateTime),  # of several, the last
    sqlite_autoincrement=True,
)
Index("ix_audit_log_at", audit_log.c.at)
Index("ix_audit_log_operator", audit_log.c.operator, audit_log.c.id)

#: Calls that Millis was asked to make, until Millis' call logs are read past them.
outbound_calls = Table(
    "outbound_calls",
    metadata,
    Column("session_id", Key, primary_key=True),
    Column("started_at", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)

#: Forgotten sessions, so that they are not fetched from Millis again.
forgotten = Table(
    "forgotten",
    metadata,
    Column("session_hash", LargeBinary, primary_key=True),  # as `deliveries.content_hash` makes it
    sqlite_with_rowid=False,
)

#: How far Millis' call logs have been read without a gap.
reconciled = Table(
    "reconciled",
    metadata,
    Column("api", Text, primary_key=True),  # its address, which tells the region
    Column("until", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)

#: Made once per call log, so that every worker signs cookies with the same key.
keys = Table(
    "keys",
    metadata,
    Column("name", Key, primary_key=True),
    Column("value", LargeBinary, nullable=False),
)
