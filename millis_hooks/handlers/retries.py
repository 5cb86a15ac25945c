"""Retries: how long a run waits after a failed attempt, what a handler may raise to retry or to
give up, and the failed run that an `on_failed` handler is called with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from ..exceptions import MillisHooksError, RegistrationError
from ..protocol.events import EndOfCall

#: The longest a run may wait for its next attempt: 30 days.
LONGEST_WAIT_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a run waits after a failed attempt, longer each time.

    After the first attempt it is `first_s` seconds, after each further one `factor` times as long,
    and never over `longest_s`. At random it is longer or shorter by up to the share `jitter`, so
    that runs that failed together do not come back together. Raises `RegistrationError` for values
    out of range.
    """

    first_s: float = 10.0
    factor: float = 5.0
    longest_s: float = 3600.0
    jitter: float = 0.2

    def __post_init__(self) -> None:
        self._require("first_s", 0, LONGEST_WAIT_S)
        self._require("factor", 1, 1000)
        self._require("longest_s", 0, LONGEST_WAIT_S)
        self._require("jitter", 0, 1)
        if self.longest_s < self.first_s:
            raise RegistrationError(
                f"Backoff(first_s={self.first_s!r}, longest_s={self.longest_s!r}): the first delay "
                "is over the longest. Raise longest_s, or lower first_s."
            )

    def delay_s(self, attempt: int, random: Callable[[], float]) -> float:
        """Return the seconds from the failure of attempt number `attempt`, from 1, to the next.

        `random` returns a number from 0 to 1. Never negative, and never over `longest_s`.
        """
        delay_s = self._delay_without_jitter_s(attempt)
        shortest_s = delay_s * (1 - self.jitter)
        # Cut off after drawing, half of the longest delays would end at the same moment.
        longest_s = min(delay_s * (1 + self.jitter), self.longest_s)
        return shortest_s + (longest_s - shortest_s) * random()

    def _delay_without_jitter_s(self, attempt: int) -> float:
        try:
            return min(self.first_s * float(self.factor) ** (attempt - 1), self.longest_s)
        except OverflowError:
            return self.longest_s if self.first_s else 0.0

    def _require(self, name: str, least: float, most: float) -> None:
        value = getattr(self, name)
        if not _is_number(value) or not least <= value <= most:
            raise RegistrationError(
                f"Backoff({name}={value!r}): it must be a number from {least} to {most}."
            )


class Retry(MillisHooksError):  # noqa: N818 - a request, not an error
    """Raise it in a handler to be called again after `after_s` seconds.

    It counts as an attempt: after the last of `max_attempts` the run has failed. Raises
    `ValueError` if `after_s` is not a number from 0 to 30 days.
    """

    def __init__(self, after_s: float, reason: str | None = None) -> None:
        if not _is_number(after_s) or not 0 <= after_s <= LONGEST_WAIT_S:
            raise ValueError(
                f"Retry(after_s={after_s!r}): it must be a number of seconds, "
                f"from 0 to {LONGEST_WAIT_S} (30 days)."
            )
        super().__init__(f"again in {after_s:.12g} s" + (f": {reason}" if reason else ""))
        self.after_s = after_s
        self.reason = reason

    def __reduce__(self) -> tuple[type[Retry], tuple[float, str | None]]:
        # The message is not an argument: without this, unpickling from a process pool would fail.
        return type(self), (self.after_s, self.reason)


class GiveUp(MillisHooksError):  # noqa: N818 - a request, not an error
    """Raise it in a handler that would fail each time: its run fails now, for `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason) or "given up")
        self.reason = str(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRun:
    """A run without further attempts: an operator has to look at it, or replay it."""

    run_id: int
    #: The call of the run; its `idempotency_key` is the one that the failed handler had.
    call: EndOfCall = field(repr=False)
    #: The name of the handler that did not succeed.
    handler: str
    #: Why there are no further attempts, in words.
    reason: str
    #: How many attempts were made.
    attempts: int
    #: What the last attempt raised, without secrets and phone numbers; None if it raised nothing.
    error_type: str | None = None
    error_message: str | None = None
    #: Aware, in UTC.
    failed_at: datetime

    @property
    def state(self) -> Any:
        """Return what the application's `lifespan` yielded."""
        return self.call.state

    @property
    def idempotency_key(self) -> str:
        """Return a key that is the same in every attempt, and another after a failed replay."""
        return f"{self.call.session_id}:{self.handler}:failed:{self.run_id}"


#: The name of `FailedRun` until 0.1.
ParkedRun = FailedRun


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
