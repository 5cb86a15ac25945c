"""What is told of an exception that the team's code raised: masked, and bounded."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .exceptions import HandlerError

if TYPE_CHECKING:
    from .masking import MaskPolicy

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


#: Of the applications in this process, which write to the same logs: all of them count.
_policies: list[MaskPolicy] = []


def hide_by(policy: MaskPolicy) -> None:
    """Hide from every failure told from now on what the policy hides."""
    _policies.append(policy)


def hide_no_more_by(policy: MaskPolicy) -> None:
    """Take back one `hide_by`."""
    _policies.remove(policy)


def describe_failure(error: BaseException) -> Failure:
    """Describe `error` without its secrets and phone numbers, and without what policies hide."""
    # Compiles its patterns when it is imported; a service starts more often than it fails.
    from .masking import mask_text

    message = _message_of(error)[: 10 * _MESSAGE_CHARS]
    lines = "".join(traceback.format_exception(error, limit=-30))
    for policy in [*_policies]:
        # What we say of a handler quotes nothing but what was described here before.
        hide = policy.line if isinstance(error, HandlerError) else policy.text
        message, lines = hide(message), policy.traceback(lines)
    return Failure(
        error_type=type(error).__name__,
        message=mask_text(message)[:_MESSAGE_CHARS],
        traceback=mask_text(lines[-_TRACEBACK_CHARS:]),
    )


def hidden(text: str) -> str:
    """Return a program's words without what a log must not give away."""
    from .masking import mask_text

    for policy in [*_policies]:
        text = policy.line(text)
    return mask_text(text)


def hidden_traceback(text: str) -> str:
    """Return a traceback without what a log must not give away."""
    from .masking import mask_text

    for policy in [*_policies]:
        text = policy.traceback(text)
    return mask_text(text)


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception whose own __str__ fails
        return ""
