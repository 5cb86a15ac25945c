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


def ok(name: str, message: str, *, link: str = "") -> CheckResult:
    """Nothing has to be done; with a `link` there is something to know."""
    return CheckResult(name, "ok", message, link=link)


def warn(name: str, message: str, advice: str) -> CheckResult:
    """It works, but may stop working or may not be intended."""
    return CheckResult(name, "warn", message, advice)


def bad(name: str, message: str, advice: str) -> CheckResult:
    """It does not work, or is open to anyone."""
    return CheckResult(name, "bad", message, advice)
