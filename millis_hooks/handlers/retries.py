"""What a team may say about attempts that fail: how long to wait, to try again, to give up.

What becomes of a run is decided in `runs`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..exceptions import MillisHooksError, RegistrationError

#: The longest a run may be told to wait for its next attempt: 30 days.
LONGEST_WAIT_S = 30 * 24 * 3600


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a run waits after an attempt has failed, longer each time.

    After the first attempt it is `first_s` seconds, after each further one `factor` times as long,
    and never over `longest_s`. At random it is longer or shorter by up to the share `jitter`, so
    that runs that failed together do not come back together. Raises `RegistrationError` for values
    that cannot be.
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
        delay_s = self._steady_s(attempt)
        shortest_s = delay_s * (1 - self.jitter)
        # Cut off after drawing, half of the longest delays would end at the same moment.
        longest_s = min(delay_s * (1 + self.jitter), self.longest_s)
        return shortest_s + (longest_s - shortest_s) * random()

    def _steady_s(self, attempt: int) -> float:
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


class Retry(MillisHooksError):  # noqa: N818 - it is a wish, not an error
    """Raise it in a handler to be called again after `after_s` seconds.

    That was an attempt like any other: after the last of `max_attempts` the run is parked. Raises
    `ValueError` if `after_s` is no number from 0 to 30 days.
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
        # The message is no argument: without this it would not come back from a process pool.
        return type(self), (self.after_s, self.reason)


class GiveUp(MillisHooksError):  # noqa: N818 - it is a wish, not an error
    """Raise it in a handler that would fail each time: its run is parked now, for `reason`."""

    def __init__(self, reason: str) -> None:
        super().__init__(str(reason) or "given up")
        self.reason = str(self)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
