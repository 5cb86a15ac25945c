"""What becomes of a run after an attempt."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from millis_hooks import Backoff, GiveUp, Retry, Router
from millis_hooks.exceptions import HandlerTimeoutError
from millis_hooks.handlers.handler_call import Handler, HandlerResult
from millis_hooks.runs.outcome import HandedBackError, end_of_attempt
from millis_hooks.runs.store import AttemptEnd, ClaimedRun

NOW = datetime(2026, 11, 21, 14, 20, tzinfo=UTC)


def handler(**options: Any) -> Handler:
    router = Router()
    router.on_end_of_call(name="work", **options)(lambda call: None)
    return next(iter(router))


def after(error: BaseException | None, *, spent: int = 1, **options: Any) -> AttemptEnd:
    run = ClaimedRun(7, 1, "end_of_call", "work", spent, None, attempt=spent)
    return end_of_attempt(run, handler(**options), HandlerResult(error=error), NOW, lambda: 0.5)


def delay_s(end: AttemptEnd) -> float:
    assert end.due_at is not None
    return (end.due_at - NOW).total_seconds()


def test_a_handler_that_returns_has_succeeded() -> None:
    end = after(None)
    assert (end.outcome, end.state, end.failure) == ("succeeded", "succeeded", None)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(1), asyncio.CancelledError()])
def test_a_failure_is_tried_again_later(error: BaseException) -> None:
    end = after(error, retry_backoff=Backoff(first_s=10, factor=3, jitter=0))
    assert (end.outcome, end.state, delay_s(end)) == ("failed", "retrying", 10)
    assert end.failure is not None
    assert end.failure.error_type == type(error).__name__


def test_each_time_later() -> None:
    backoff = Backoff(first_s=10, factor=3, jitter=0)
    delays = [delay_s(after(ValueError(), spent=spent, retry_backoff=backoff)) for spent in (2, 3)]
    assert delays == [30, 90]


def test_after_the_last_attempt_it_is_failed() -> None:
    end = after(ValueError(), spent=3, max_attempts=3)
    assert (end.state, end.reason, end.due_at) == ("failed", "3 of 3 attempts failed", None)


def test_one_that_took_too_long_is_tried_again() -> None:
    end = after(HandlerTimeoutError("took over 60 s"))
    assert (end.outcome, end.state) == ("timed_out", "retrying")


def test_a_handler_may_say_when_it_wants_to_be_called_again() -> None:
    end = after(Retry(90))
    assert (end.outcome, end.state, delay_s(end)) == ("retry", "retrying", 90)


def test_asking_to_be_called_again_is_an_attempt_too() -> None:
    assert after(Retry(90), spent=5).state == "failed"


def test_a_handler_may_give_up_and_say_why() -> None:
    end = after(GiveUp("no such customer, +14155550134"))
    assert (end.outcome, end.state) == ("gave_up", "failed")
    assert end.reason is not None
    assert end.reason.startswith("no such customer")
    assert "4155550134" not in end.reason


@pytest.mark.parametrize(
    ("errors", "outcome"),
    [
        ([Retry(5), Retry(70)], "retry"),
        ([Retry(5), GiveUp("enough")], "gave_up"),
        ([Retry(5), ValueError()], "failed"),
        ([ExceptionGroup("inner", [Retry(70)])], "retry"),
    ],
)
def test_what_is_raised_in_a_task_group_counts_too(errors: list[Exception], outcome: str) -> None:
    end = after(ExceptionGroup("tasks", errors))
    assert end.outcome == outcome
    assert outcome != "retry" or end.due_at == NOW + timedelta(seconds=70)


def test_a_run_that_is_handed_back_is_as_if_it_had_not_begun() -> None:
    end = after(HandedBackError(), spent=5)
    assert (end.outcome, end.state, end.failure) == ("handed_back", "pending", None)
