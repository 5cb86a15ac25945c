"""How lines are logged: for a person at a console, or as JSON for what collects them.

Either way they are masked: by shape always, and by the policy that the settings choose. To log the
same way from an application of your own, give your handlers one of these formatters.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any, Literal

from .failures import Block, hidden, hidden_traceback, indented
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
    """Time, level, logger and message in one line, and below it a traceback if there is one.

    Nothing in it is obeyed by a terminal, and no text that somebody sent begins a line.
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
        "loggers": {name: {"level": "WARNING"} for name in _TALKATIVE},
    }


def _parted(record: logging.LogRecord) -> tuple[str, Block | None]:
    """Part a message from the traceback below it; any other line break is somebody's text."""
    args, form = record.args, str(record.msg)
    if isinstance(args, tuple) and args and isinstance(args[-1], Block) and form.endswith("\n%s"):
        head = logging.makeLogRecord(vars(record) | {"msg": form[:-3], "args": args[:-1]})
        return _message(head), args[-1]
    return _message(record), None


def _message(record: logging.LogRecord) -> str:
    message = record.getMessage()
    # Lines with fields were made to be logged: see `lines`.
    return message if hasattr(record, "fields") else hidden(message)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str | None:
    if not record.exc_info:
        return None
    return hidden_traceback(formatter.formatException(record.exc_info))
