"""Checks of an installation: what `doctor` prints and the Setup page shows.

A check is a function that returns or yields results and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check: what was found, what to do about it, and where to read more."""

    name: str
    state: State
    found: str
    advice: str = ""
    link: str = ""


def ok(name: str, found: str, *, link: str = "") -> CheckResult:
    """Nothing has to be done; with a `link` there is something to know."""
    return CheckResult(name, "ok", found, link=link)


def warn(name: str, found: str, advice: str) -> CheckResult:
    """It works, but may stop working or may not be intended."""
    return CheckResult(name, "warn", found, advice)


def bad(name: str, found: str, advice: str) -> CheckResult:
    """It does not work, or is open to everybody."""
    return CheckResult(name, "bad", found, advice)
