"""How lines are logged: for a person at a console, or as JSON for what collects them.

Either way they are masked: by shape always, and by the policy that the settings choose. To log the
same way from an application of your own, give your handlers one of these formatters.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from .failures import hidden, hidden_traceback
from .printable import printable

LogFormat = Literal["console", "json"]

#: They write whole addresses, and so phone numbers, at INFO.
_TALKATIVE = ("httpx", "httpx2", "httpcore", "httpcore2", "urllib3", "watchfiles", "alembic")


class JsonFormatter(logging.Formatter):
    """One JSON object in one line: `time` in UTC, `level`, `logger`, `message`, and `fields`."""

    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
            **getattr(record, "fields", {}),
        }
        if traceback := _traceback(self, record):
            told["traceback"] = traceback
        return json.dumps(told, default=str)


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger and message, in nothing that a terminal obeys."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(shown)s")

    def format(self, record: logging.LogRecord) -> str:
        record.asctime = self.formatTime(record)
        record.shown = printable(_message(record))
        line = self.formatMessage(record)
        traceback = _traceback(self, record)
        return f"{line}\n{printable(traceback)}" if traceback else line


def log_config(level: str, format_: LogFormat = "console") -> dict[str, Any]:
    """Return a logging configuration that writes lines from `level` on to the standard error."""
    formatter = JsonFormatter if format_ == "json" else ConsoleFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{__name__}.{formatter.__name__}"}},
        "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "line"}},
        "root": {"handlers": ["console"], "level": level.upper()},
        "loggers": {name: {"level": "WARNING"} for name in _TALKATIVE},
    }


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # Lines with fields were made to be logged: see `lines`.
    return message if hasattr(record, "fields") else hidden(message)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if not record.exc_info:
        return None
    return hidden_traceback(formatter.formatException(record.exc_info))
