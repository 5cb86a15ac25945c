"""Checks of an installation: what `doctor` prints and the Setup page shows.

A check is a function that returns or yields results and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

State = Literal["ok", "warn", "bad"]


@dataclass(frozen=True, slots=True)
class CheckResult:
    """The result of one check: what was found, what to do about it, and where to read more.

    `command` is what to type, and `page` with `params` where the dashboard shows the same.
    """

    name: str
    state: State = field(kw_only=True)
    found: str
    advice: str = ""
    link: str = ""
    command: str = ""
    page: str = ""
    params: Mapping[str, str] = field(default_factory=dict)


#: Nothing has to be done; with a `link` there is something to know.
ok = partial(CheckResult, state="ok")
#: It works, but may stop working or may not be intended.
warn = partial(CheckResult, state="warn")
#: It does not work, or is open to anyone.
bad = partial(CheckResult, state="bad")
