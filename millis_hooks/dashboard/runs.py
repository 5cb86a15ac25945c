"""How runs are shown: their order, what may be done with each, and what a replay came to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..call_log.queries.records import Attempt, Run
from .formats import read_number

#: Attempt outcome -> what a person reads before the exception, if there is one.
_OUTCOMES = {
    "succeeded": "done",
    "failed": "raised",
    "timed_out": "timed out",
    "retry": "asked to be called again",
    "gave_up": "gave up",
    "interrupted": "the process ended in it",
    "handed_back": "handed back when the service stopped, not counted",
}
_ATTEMPT_KEYS = {"": "done", "succeeded": "done", "handed_back": "done", "retry": "retry"}
_RUN_KEYS = {"parked": "error", "failed": "retry"}

_NOTICE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Offer:
    """What a person may have done with a run; `refusal` says why it is not possible."""

    label: str
    refusal: str | None = None
    #: Something was completed, and would be done again.
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """What became of the runs that were asked for just now."""

    queued: int
    brought_forward: int
    skipped: int


def offer_for(run: Run) -> Offer | None:
    """Say what may be done with a run; None where it is at work or another took its place."""
    if not run.is_latest or run.state in ("pending", "running"):
        return None
    label = "Try now" if run.state == "failed" else "Replay"
    if run.max_attempts is None:
        return Offer(label, f"No handler is named {run.handler} any more")
    if run.state != "failed" and not run.repeatable:
        return Offer(label, f"{run.handler} is registered as not repeatable")
    return Offer(label, is_repeat=run.state == "succeeded")


def in_order(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Put each latest run where its handler's first was, followed by those it replaced.

    Runs that tell of parked ones come last.
    """
    groups: dict[tuple[str, str, int | None], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        groups.setdefault((run.hook, run.handler, run.parked_run_id), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: group[0].hook == "parked")
    return tuple(run for group in ordered for run in sorted(group, key=_newest_first))


def read_notice(query: Mapping[str, str]) -> Notice | None:
    """Read what a replay has put into the address; anything else says nothing."""
    names = ("queued", "forward", "skipped")
    read = [read_number(query.get(name, ""), digits=_NOTICE_DIGITS) for name in names]
    counts = [count for count in read if count is not None]
    return Notice(*counts) if len(counts) == len(names) else None


def attempt_of(run: Run) -> str:
    """Which attempt a run is at, of how many."""
    if not run.spent:
        return ""
    if run.max_attempts is None or run.spent > run.max_attempts:  # registered anew, with fewer
        return f"{run.spent}"
    return f"{run.spent} of {run.max_attempts}"


def outcome_words(attempt: Attempt) -> str:
    """How an attempt ended."""
    return _OUTCOMES.get(attempt.outcome, attempt.outcome) if attempt.outcome else "at work"


def attempt_key(attempt: Attempt) -> str:
    """Which colour an attempt has."""
    return _ATTEMPT_KEYS.get(attempt.outcome or "", "error")


def run_key(run: Run) -> str:
    """Which colour a run has."""
    return _RUN_KEYS.get(run.state, "done")


def _newest_first(run: Run) -> tuple[bool, int]:
    return not run.is_latest, -run.id


FILTERS = {
    "attempt_key": attempt_key,
    "attempt_of": attempt_of,
    "offer": offer_for,
    "outcome_words": outcome_words,
    "run_key": run_key,
}
