"""Runs on a page: their order, their replay, and the words and colours of their outcomes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..call_log.queries.records import Attempt, Run
from ..runs.replay import Replayed
from .tracebacks import read_traceback

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
_STANDINGS = {"succeeded": "is done", "failed": "failed", "retrying": "waits for its next attempt"}
#: State of a run that was replayed -> what the notice says of it.
_REPLAYED = {
    "pending": "is running again",
    "running": "is running again",
    "succeeded": "has run again and is done",
    "failed": "has run again and failed",
    "retrying": "has run again and waits for its next attempt",
}

#: Runs that a notice names: it is a cookie.
_MOST_NAMED = 100
_NOTICE = re.compile(r"((?:\d{1,18}\.)*)-(\d{1,6})", re.ASCII)


@dataclass(frozen=True, slots=True)
class ReplayOffer:
    """A possible replay of a run; `refusal` is why it is not allowed."""

    label: str
    refusal: str | None = None
    #: The run has succeeded: its side effects would happen again.
    is_repeat: bool = False


@dataclass(frozen=True, slots=True)
class RunBar:
    """A handler of the call: how long its attempts took, and the state of its run."""

    handler: str
    duration_ms: float
    state: str


@dataclass(frozen=True, slots=True)
class Notice:
    """The result of a replay, said once: the sentences, and how many runs were skipped."""

    sentences: tuple[str, ...]
    skipped: int


def replay_offer(run: Run) -> ReplayOffer | None:
    """Return whether a run can be replayed; None while it is at work or if it was replaced."""
    if not run.is_latest or run.state in ("pending", "running"):
        return None
    label = {"retrying": "Try now", "failed": "Retry"}.get(run.state, "Replay")
    if run.max_attempts is None:
        return ReplayOffer(label, f"No handler is named {run.handler} any more")
    if run.state != "retrying" and not run.repeatable:
        return ReplayOffer(label, f"{run.handler} is registered as not repeatable")
    return ReplayOffer(label, is_repeat=run.state == "succeeded")


def standing(run: Run) -> str:
    """Return the words for the state of a run after the name of its handler."""
    return _STANDINGS.get(run.state, "is already waiting or running")


def failure_of(run: Run) -> str:
    """Return the words for a failed run after the name of its handler."""
    last = run.attempts[-1] if run.attempts else None
    what = "gave up" if last and last.outcome == "gave_up" else "failed"
    return f"{what} after {run.spent} attempt{'s' if run.spent != 1 else ''}" if run.spent else what


def cause_of(run: Run) -> str:
    """Return why a run failed: its last exception, else the reason in words."""
    last = run.attempts[-1] if run.attempts else None
    if last and last.error_type and last.outcome != "gave_up":
        return f"{last.error_type}: {last.error_message}" if last.error_message else last.error_type
    return run.reason or (outcome_words(last) if last and last.outcome else "")


def write_notice(replayed: Replayed) -> str:
    """Return the result of a replay as a cookie's value."""
    ids = "".join(f"{run_id}." for run_id in replayed.run_ids[:_MOST_NAMED])
    return f"{ids}-{min(sum(replayed.skipped.values()), 999_999)}"


def read_notice(cookie: str | None, runs: Sequence[Run]) -> Notice | None:
    """Read what `write_notice` wrote and say how the runs stand; None if it is of another call."""
    match = _NOTICE.fullmatch(cookie or "")
    if match is None:
        return None
    ids = {int(run_id) for run_id in match[1].split(".") if run_id}
    replayed = [run for run in runs if run.id in ids]
    if ids and not replayed:
        return None
    sentences = tuple(f"{run.handler} {_REPLAYED.get(run.state, '')}." for run in replayed)
    return Notice(sentences, int(match[2]))


def in_order(runs: Iterable[Run]) -> tuple[Run, ...]:
    """Sort runs by the first run of each handler, each latest run before those it replaced.

    Runs of `on_failed` hooks come last.
    """
    groups: dict[tuple[str, str, int | None], list[Run]] = {}
    for run in sorted(runs, key=lambda run: run.id):
        groups.setdefault((run.hook, run.handler, run.failed_run_id), []).append(run)
    ordered = sorted(groups.values(), key=lambda group: group[0].hook == "failed")
    return tuple(run for group in ordered for run in sorted(group, key=_newest_first))


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


def run_key(run: Run | RunBar) -> str:
    """Return the name of a run's colour."""
    return _RUN_KEYS.get(run.state, "done")


def _newest_first(run: Run) -> tuple[bool, int]:
    return not run.is_latest, -run.id


FILTERS = {
    each.__name__: each
    for each in (
        attempt_key,
        attempt_of,
        cause_of,
        failure_of,
        outcome_words,
        read_traceback,
        replay_offer,
        run_key,
        standing,
    )
}
