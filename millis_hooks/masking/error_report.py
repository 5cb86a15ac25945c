"""What logs and reports may say: exceptions, described masked and bounded, text without characters
that terminals obey, and no secret of an application in this process, however it is spelled.

What is set is known to the letter, and so can be found where no pattern would find it: in the path
of a request that misses a webhook by a little.
"""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from ..exceptions import ConfigError, HandlerError, MillisHooksError

if TYPE_CHECKING:
    from .policy import MaskPolicy

#: Control characters, marks of the direction of writing, and halves of surrogate pairs.
_OBEYED = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def printable(text: str, *, one_line: bool = False) -> str:
    """Return text with the characters escaped that a terminal would obey."""
    if text.isprintable():  # as nearly all is, and quicker to check
        return text
    escaped = _OBEYED.sub(lambda match: match[0].encode("unicode_escape").decode(), text)
    return escaped.replace("\n", "\\n") if one_line else escaped


_PACKAGE = Path(__file__).parents[1]
#: Python's own library.
_LIBRARY = Path(traceback.__file__).parent
_MESSAGE_CHARS = 500
_TRACEBACK_CHARS = 20_000
_LINE_CHARS = 2_000
_MOST_LINES = 500


class Block(str):
    """Indented lines that a log shows below a message, which itself is one line.

    Pass it as the last argument of a message that ends in `\\n%s`.
    """

    __slots__ = ()


def indented(text: str) -> str:
    """Indent a traceback, so that no line of it can pass for a line of the log."""
    return "\n".join(f"    {line}" for line in printable(text).split("\n"))


@dataclass(frozen=True, slots=True)
class Failure:
    """The description of an exception, fit to be stored, shown and logged."""

    error_type: str
    message: str
    traceback: str
    #: The file and line of the team's own code where it was raised, as `app.py:14`; None if ours.
    place: str | None = None

    def __str__(self) -> str:
        """Return type and message in one line, which cannot pass for several lines of a log."""
        line = f"{self.error_type}: {self.message}" if self.message else self.error_type
        return printable(line, one_line=True)

    @property
    def block(self) -> Block:
        """The traceback as a log has it."""
        return Block(indented(self.traceback))


#: The policies of all applications in this process: they write to the same logs.
_policies: list[MaskPolicy] = []


def hide_by(policy: MaskPolicy) -> None:
    """Hide from every failure that is described from now on what the policy hides."""
    _policies.append(policy)


def hide_no_more_by(policy: MaskPolicy) -> None:
    """Take back one `hide_by`."""
    _policies.remove(policy)


def describe_failure(error: BaseException) -> Failure:
    """Describe `error` without its secrets and phone numbers, and without what policies hide."""
    # Compiles its patterns when it is imported; a service starts more often than it fails.
    from .policy import mask_text

    message = _message_of(error)[: 10 * _MESSAGE_CHARS]
    lines = _bounded("".join(traceback.format_exception(error, limit=-30)))
    for policy in [*_policies]:
        # What we say of a handler quotes nothing but what was described here before.
        hide = policy.line if isinstance(error, HandlerError) else policy.text
        message, lines = hide(message), policy.traceback(lines)
    return Failure(
        error_type=type(error).__name__,
        message=without_known_secrets(mask_text(message))[:_MESSAGE_CHARS],
        traceback=without_known_secrets(mask_text(lines))[-_TRACEBACK_CHARS:],
        place=_place_of(error),
    )


def _place_of(error: BaseException) -> str | None:
    """Return the last frame outside of this package and of installed ones."""
    for frame in reversed(traceback.extract_tb(error.__traceback__, limit=-30)):
        file = Path(frame.filename)
        if _PACKAGE not in file.parents and "site-packages" not in file.parts and file.is_file():
            return f"{file.name}:{frame.lineno}"
    return None


def start_error(error: BaseException) -> MillisHooksError:
    """Return what to say of an error that an application raised when it started."""
    if isinstance(error, MillisHooksError):
        return error
    refusal = ConfigError(explained("The application could not be started:", error, Path.cwd()))
    refusal.__cause__ = error
    return refusal


def explained(what: str, error: BaseException, directory: Path) -> str:
    """Return an error with its place in the team's code, which is in `directory` or imported."""
    error_lines = hidden("".join(traceback.format_exception_only(error)).rstrip())
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).is_relative_to(root) for root in (directory, Path(sys.path[0])))
        and not any(Path(frame.filename).is_relative_to(root) for root in (_PACKAGE, _LIBRARY))
        and "site-packages" not in frame.filename
    ]
    where = f'\n  File "{frames[-1].filename}", line {frames[-1].lineno}' if frames else ""
    line = f"\n    {frames[-1].line}" if frames and frames[-1].line else ""
    return f"{what}{where}{line}\n{error_lines}"


def hidden(text: str) -> str:
    """Return a program's words without what a log must not give away."""
    from .policy import mask_text

    for policy in [*_policies]:
        text = policy.line(text)
    return without_known_secrets(mask_text(text))


def hidden_traceback(text: str) -> str:
    """Return a traceback without what a log must not give away."""
    from .policy import mask_text

    for policy in [*_policies]:
        text = policy.traceback(text)
    return without_known_secrets(mask_text(text))


def _bounded(text: str) -> str:
    """Cut a traceback, which may quote a whole payload, before it is searched for secrets."""
    return "\n".join(line[:_LINE_CHARS] for line in text.split("\n")[-_MOST_LINES:])


def _message_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # an exception whose own __str__ fails
        return ""


#: Stands where a secret was.
HIDDEN = "•"
#: So long may a secret be at least: what is as long, in a path that leads nowhere, may be one.
_SEGMENT_CHARS = 16
#: What is shorter is found in ordinary words.
_LEAST_CHARS = 8
#: How often a path may have been escaped, by proxies and by people.
_MOST_ESCAPES = 4

_known: list[frozenset[str]] = []


def know(secrets: Iterable[str]) -> frozenset[str]:
    """Keep these out of log lines from now on; return what `forget` takes."""
    known = frozenset(secret for secret in secrets if len(secret) >= _LEAST_CHARS)
    _known.append(known)
    return known


def forget(known: frozenset[str]) -> None:
    """Take back one `know`."""
    _known.remove(known)


def without_known_secrets(text: str) -> str:
    """Return a text without the known secrets, be they spelled as they are or as in an address."""
    for secret in _longest_first():
        for spelling in {secret, quote(secret), quote(secret, safe="")}:
            text = text.replace(spelling, HIDDEN)
    return text


def safe_path(path: str) -> str:
    """Return a path without the known secrets, however often they are escaped in it."""
    plain = path
    for _ in range(_MOST_ESCAPES):
        if any(secret in plain for known in _known for secret in known):
            return without_known_secrets(plain)
        plain = unquote(plain)
    return path


def shown_path(path: str, *, was_found: bool) -> str:
    """Return a path as an access line shows it: in one that leads nowhere no long segment stays."""
    path = safe_path(path)
    if was_found:
        return path
    segments = path.split("/")
    return "/".join(HIDDEN if len(each) >= _SEGMENT_CHARS else each for each in segments)


def _longest_first() -> list[str]:
    return sorted({secret for known in _known for secret in known}, key=len, reverse=True)
