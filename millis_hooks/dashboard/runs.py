"""Runs on a page: their order, their replay, and the words and colours of their outcomes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..call_log.queries.records import Attempt, Run
from .formats import read_number

#: Outcome of an attempt -> its words, before the exception if there is one.
_OUTCOMES = {
    "succeeded": "done",
    "failed": "raised",
    "timed_out": "timed out",
    "retry": "asked for a retry",
    "gave_up": "gave up",
    "interrupted": "interrupted by the end of the process",
    "handed_back": "handed back when the service stopped; not counted",
}
_ATTEMPT_KEYS = {"": "done", "succeeded": "done", "handed_back": "done", "retry": "retry"}
_RUN_KEYS = {"failed": "error", "retrying": "retry"}

_NOTICE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class ReplayOffer:
    """A possible replay of a run; `refusal` is why it is not allowed."""

    label: str
    refusal: str | None = None
    #: The run has succeeded: its effects outside would happen again.
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class Notice:
    """The result of a replay: numbers of runs."""

    queued: int
    brought_forward: int
    skipped: int


def replay_offer(run: Run) -> ReplayOffer | None:
    """Return whether a run can be replayed; None while it is at work or if it was replaced."""
    if not run.is_latest or run.state in ("pending", "running"):
        return None
    label = "Try now" if run.state == "retrying" else "Replay"
    if run.max_attempts is None:
        return ReplayOffer(label, f"No handler is named {run.handler} any more")
    if run.state != "retrying" and not run.repeatable:
        return ReplayOffer(label, f"{run.handler} is registered as not repeatable")
    return ReplayOffer(label, is_repeat=run.state == "succeeded")


def in_order(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Sort runs by the first run of each handler, each latest run before those it replaced.

    Runs of `on_failed` hooks come last.
    """
    groups: dict[tuple[str, str, int | None], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        groups.setdefault((run.hook, run.handler, run.failed_run_id), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: group[0].hook == "failed")
    return tuple(run for group in ordered for run in sorted(group, key=_newest_first))


def read_notice(query: Mapping[str, str]) -> Notice | None:
    """Read the result of a replay from an address; None if it has none."""
    names = ("queued", "forward", "skipped")
    read = [read_number(query.get(name, ""), digits=_NOTICE_DIGITS) for name in names]
    counts = [count for count in read if count is not None]
    return Notice(*counts) if len(counts) == len(names) else None


def attempt_of(run: Run) -> str:
    """Return the number of the last attempt, and of how many."""
    if not run.spent:
        return ""
    if run.max_attempts is None or run.spent > run.max_attempts:  # now registered with fewer
        return f"{run.spent}"
    return f"{run.spent} of {run.max_attempts}"


def outcome_words(attempt: Attempt) -> str:
    """Return the words for the outcome of an attempt."""
    return _OUTCOMES.get(attempt.outcome, attempt.outcome) if attempt.outcome else "at work"


def attempt_key(attempt: Attempt) -> str:
    """Return the name of an attempt's colour."""
    return _ATTEMPT_KEYS.get(attempt.outcome or "", "error")


def run_key(run: Run) -> str:
    """Return the name of a run's colour."""
    return _RUN_KEYS.get(run.state, "done")


def _newest_first(run: Run) -> tuple[bool, int]:
    return not run.is_latest, -run.id


FILTERS = {
    each.__name__: each for each in (attempt_key, attempt_of, outcome_words, replay_offer, run_key)
}
