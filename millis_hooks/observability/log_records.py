"""Log records for each delivery and each attempt at a run, and the formatters for all records.

A record of this package carries its values as `fields`, for `JsonFormatter`, beside the message.
Ids come from outside, and may be any text.

Both formatters mask: secrets and numbers by their shape, and the rest by the policy of the
settings. Give them to handlers of your own to log in the same way.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from starlette.types import Scope

from ..call_log.deliveries import Delivery, Kind
from ..exceptions import DeliveryError
from ..masking.error_report import Block, Failure, hidden, hidden_traceback, indented, printable

LogFormat = Literal["console", "json"]

#: The least level of libraries. At INFO they log whole addresses, and so phone numbers; a retry of
#: stamina's is logged by its error, if all retries fail.
_LIBRARIES = {
    **dict.fromkeys(
        ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "watchfiles", "alembic"), "WARNING"
    ),
    "stamina": "ERROR",
}


class JsonFormatter(logging.Formatter):
    """One JSON object in one line: `time` in UTC, `level`, `logger`, `message`, and `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **getattr(record, "fields", {}),
        }
        if traceback := _traceback(self, record):
            line["traceback"] = traceback
        return json.dumps(line, default=str)


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger and message in one line, and below it a traceback if there is one.

    Nothing in it is obeyed by a terminal, and no received text begins a line.
    """

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(shown)s")

    def format(self, record: logging.LogRecord) -> str:
        record.asctime = self.formatTime(record)
        record.shown, block = _parted(record)
        lines = [printable(self.formatMessage(record), one_line=True)]
        if block is not None:
            lines.append(block)
        if traceback := _traceback(self, record):
            lines.append(indented(traceback))
        return "\n".join(lines)


def log_config(level: str, format_: LogFormat = "console") -> dict[str, Any]:
    """Return a logging configuration that writes lines from `level` on to the standard error."""
    formatter = JsonFormatter if format_ == "json" else ConsoleFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["console"], "level": level.upper()},
        "loggers": {name: {"level": least} for name, least in _LIBRARIES.items()},
    }


def _parted(record: logging.LogRecord) -> tuple[str, Block | None]:
    """Part a message from the traceback below it; any other line break is part of received text."""
    args, form = record.args, str(record.msg)
    if isinstance(args, tuple) and args and isinstance(args[-1], Block) and form.endswith("\n%s"):
        head = logging.makeLogRecord(vars(record) | {"msg": form[:-3], "args": args[:-1]})
        return _message(head), args[-1]
    return _message(record), None


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # Records with fields are masked where they are made.
    return message if hasattr(record, "fields") else hidden(message)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if not record.exc_info:
        return None
    return hidden_traceback(formatter.formatException(record.exc_info))


deliveries_log = logging.getLogger("millis_hooks.deliveries")
runs_log = logging.getLogger("millis_hooks.runs")

#: The most of an id that a line shows, in characters.
_ID_CHARS = 100
#: Ids as Millis makes them: nothing in them can be a phone number, and no terminal obeys them.
_PLAIN = re.compile(r"(?!.*\d{7})[\w-]{1,64}", re.ASCII)
_MAYBE_NUMBER = re.compile(r"\d{5,}(?=\d\d)")


class Attempt(NamedTuple):
    """An attempt at a run that has ended."""

    run_id: int
    handler: str
    attempt: int
    session_id: str | None
    outcome: str
    duration_ms: float
    trace_id: str | None


def shown_id(text: str | None) -> str | None:
    """Return an id as it may be logged: short, masked, and on one line."""
    if text is None or _PLAIN.fullmatch(text):
        return text
    return printable(_MAYBE_NUMBER.sub("•", hidden(text[:_ID_CHARS])), one_line=True)


def trace_id(traceparent: str | None) -> str | None:
    """Return the id of the trace that a context is of: `00-<trace>-<span>-<flags>`."""
    return None if traceparent is None else traceparent.split("-")[1]


def log_delivery(
    scope: Scope, delivery: Delivery, *, outcome: str | None = None, status_code: int = 200
) -> None:
    """Log what became of a delivery, in place of the server's line about the request."""
    shown = shown_id(delivery.session_id)
    outcome = outcome or delivery.outcome
    taken_ms = delivery.latency_ms
    fields = {
        "session_id": shown,
        "duration_ms": _rounded(taken_ms),
        "source": delivery.source,
        "function": delivery.function,
        "trace_id": trace_id(delivery.trace),
    }
    kind = " ".join(filter(None, (delivery.kind, delivery.function)))
    words = (kind, shown or "-", outcome, status_code, taken_ms or 0.0)
    _log(scope, delivery.kind, outcome, status_code, fields, "%s %s %s %d %.1f ms", *words)


def log_refusal(scope: Scope, kind: Kind, error: DeliveryError) -> None:
    """Log that a request was refused, in place of the server's line about it."""
    status_code, reason = error.status_code, error.detail
    words = (kind, status_code, reason)
    _log(scope, kind, "rejected", status_code, {"reason": reason}, "%s - rejected %d: %s", *words)


def _log(
    scope: Scope,
    kind: Kind,
    outcome: str,
    status_code: int,
    fields: Mapping[str, Any],
    *message: Any,
) -> None:
    if not deliveries_log.isEnabledFor(logging.INFO):
        return
    scope["logged"] = True
    common = {"event": "delivery", "kind": kind, "outcome": outcome, "status_code": status_code}
    deliveries_log.info(*message, extra=_extra({**common, **fields}))


def log_attempt(
    attempt: Attempt, *, state: str, due_at: datetime | None, failure: Failure | None
) -> None:
    """Log how an attempt ended and what state its run is in; it is a warning if it failed."""
    level = logging.INFO if failure is None else logging.WARNING
    if not runs_log.isEnabledFor(level):
        return
    fields = attempt._asdict() | {
        "event": "attempt",
        "state": state,
        "session_id": shown_id(attempt.session_id),
        "duration_ms": _rounded(attempt.duration_ms),
        "due_at": None if due_at is None else due_at.isoformat(),
        "error_type": None if failure is None else failure.error_type,
    }
    words = (
        attempt.run_id,
        attempt.handler,
        attempt.attempt,
        failure or attempt.outcome,
        state,
    )
    message, blocks = "run %d of %s, attempt %d: %s; run state: %s", []
    if failure is not None and failure.place is not None:
        message, blocks = f"{message}\n%s", [failure.block]
    runs_log.log(level, message, *words, *blocks, extra=_extra(fields))


def _rounded(duration_ms: float | None) -> float | None:
    return None if duration_ms is None else round(duration_ms, 2)


def _extra(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"fields": {name: value for name, value in fields.items() if value is not None}}
