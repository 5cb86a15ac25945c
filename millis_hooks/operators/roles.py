"""Somebody who is signed in, and what that allows."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

#: `view` sees pages; `operate` also replays, reveals, exports and deletes.
Role: TypeAlias = Literal["view", "operate"]

#: What is never shown without a recent password may be seen for so long after it.
RECENT = timedelta(minutes=15)


@dataclass(frozen=True, slots=True)
class Operator:
    """Somebody who is signed in; two are equal if they may do the same under the same name."""

    name: str
    role: Role = "operate"
    #: The key of the session; not what the cookie holds.
    session: str = field(default="", compare=False)
    #: When the password was last given.
    confirmed_at: datetime | None = field(default=None, compare=False)

    @property
    def may_operate(self) -> bool:
        return self.may("operate")

    def may(self, role: Role) -> bool:
        """Tell whether this operator may do what needs the role."""
        return role == "view" or self.role == role

    def has_confirmed(self, now: datetime) -> bool:
        """Tell whether the password was given recently enough to reveal a secret."""
        return self.confirmed_at is not None and now - self.confirmed_at < RECENT
