"""The secrets of the applications in this process: no log line may show one, however it is spelled.

What is set is known to the letter, and so can be found where no pattern would find it: in the path
of a request that misses a webhook by a little.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote, unquote

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
