"""Checks of an installation: what `doctor` prints and the Setup page shows.

A check is a function that returns or yields results and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check: what was found, what to do about it, and where to read more.

    `command` is what to type, and `page` with `params` where the dashboard shows the same.
    """

    name: str
    state: State
    found: str
    advice: str = ""
    link: str = ""
    command: str = ""
    page: str = ""
    params: Mapping[str, str] = field(default_factory=dict)


def ok(name: str, message: str, *, link: str = "") -> CheckResult:
    """Nothing has to be done; with a `link` there is something to know."""
    return CheckResult(name, "ok", message, link=link)


def warn(
    name: str,
    message: str,
    advice: str,
    *,
    command: str = "",
    page: str = "",
    params: Mapping[str, str] | None = None,
) -> CheckResult:
    """It works, but may stop working or may not be intended."""
    return CheckResult(
        name, "warn", message, advice, command=command, page=page, params=params or {}
    )


def bad(name: str, message: str, advice: str) -> CheckResult:
    """It does not work, or is open to anyone."""
    return CheckResult(name, "bad", message, advice)
