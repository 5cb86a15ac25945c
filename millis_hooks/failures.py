"""What is told of an exception that the team's code raised: masked, and bounded."""

from __future__ import annotations

import traceback
from dataclasses import dataclass

_MESSAGE_CHARS = 500
_TRACEBACK_CHARS = 20_000


@dataclass(frozen=True, slots=True)
class Failure:
    """An exception in words that may be stored, shown and logged."""

    error_type: str
    message: str
    traceback: str

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}" if self.message else self.error_type


def describe_failure(error: BaseException) -> Failure:
    """Describe `error` without its secrets and phone numbers."""
    # Compiles its patterns when it is imported; a service starts more often than it fails.
    from .masking import mask_text

    lines = "".join(traceback.format_exception(error, limit=-30))
    return Failure(
        error_type=type(error).__name__,
        message=mask_text(_message_of(error)[: 10 * _MESSAGE_CHARS])[:_MESSAGE_CHARS],
        traceback=mask_text(lines[-_TRACEBACK_CHARS:]),
    )


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception whose own __str__ fails
        return ""
