"""What a check found, and what to do about it.

Looks a service over: its settings, its disk, its call log, its clock, and the way to it.

Every check is a function that yields findings; none of them changes anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `advice` says what to do; empty when that is nothing.

    `link` is where to read more of it.
    """

    name: str
    state: State
    found: str
    advice: str = ""
    link: str = ""


def ok(name: str, found: str, *, link: str = "") -> Finding:
    """Nothing has to be done; with a `link` it is good to know."""
    return Finding(name, "ok", found, link=link)


def warn(name: str, found: str, advice: str) -> Finding:
    """It works, and may not do so for ever or may not be meant."""
    return Finding(name, "warn", found, advice)


def bad(name: str, found: str, advice: str) -> Finding:
    """It does not work, or is open to everybody."""
    return Finding(name, "bad", found, advice)


__all__ = ["Finding", "State"]
