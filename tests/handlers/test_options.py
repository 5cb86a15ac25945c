"""What the decorators take, and what they say to what cannot be."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from millis_hooks import Backoff, CallStatus, EndOfCall, PrefetchRequest, RegistrationError, Router
from millis_hooks.handlers.handler_call import Handler


def greet(call: PrefetchRequest) -> None: ...


def note(call: EndOfCall) -> None: ...


def registered(hook: str, **options: Any) -> Handler:
    router = Router()
    function = {"prefetch": greet, "end_of_call": note}.get(hook, lambda failed: None)
    getattr(router, f"on_{hook}")(**options)(function)
    [handler] = router
    return handler


def refusal(hook: str, **options: Any) -> str:
    with pytest.raises(RegistrationError) as error:
        registered(hook, **options)
    return str(error.value)


def test_what_is_not_said_is_as_documented() -> None:
    handler = registered("end_of_call")
    assert (handler.max_attempts, handler.retry_backoff) == (5, Backoff())
    assert (handler.concurrency, handler.repeatable) == (None, True)


def test_what_is_said_holds() -> None:
    backoff = Backoff(first_s=1)
    options = {"max_attempts": 100, "concurrency": 1, "repeatable": False, "timeout_s": 0.5}
    handler = registered("end_of_call", retry_backoff=backoff, **options)
    assert {name: getattr(handler, name) for name in options} == options
    assert handler.retry_backoff is backoff


def test_a_budget_is_the_time_a_prefetch_has() -> None:
    assert registered("prefetch", budget_s=1).timeout_s == 1


def test_none_is_as_if_nothing_was_said() -> None:
    unsaid = {"name": None, "agent_id": None, "when": None, "concurrency": None}
    assert registered("end_of_call", **unsaid) == registered("end_of_call")


@pytest.mark.parametrize("option", ["max_attempts", "timeout_s", "retry_backoff", "repeatable"])
def test_none_is_not_taken_for_without_end(option: str) -> None:
    assert f"note asks for {option}=None" in refusal("end_of_call", **{option: None})


def test_a_refusal_says_where_what_and_what_to_do() -> None:
    line = note.__code__.co_firstlineno
    assert refusal("end_of_call", max_attempts=0) == (
        f"{__file__}:{line}: note asks for max_attempts=0. Give it a whole number from 1 to 100."
    )


@pytest.mark.parametrize("attempts", [-1, 101, 2.0, True, "3"])
def test_attempts_are_counted_from_one_to_a_hundred(attempts: Any) -> None:
    for hook in ("end_of_call", "failed"):
        assert "a whole number from 1 to 100" in refusal(hook, max_attempts=attempts)


@pytest.mark.parametrize("places", [0, -1, 1.5, True])
def test_at_least_one_run_may_be_at_work(places: Any) -> None:
    assert f"concurrency={places!r}. Give it a whole number from 1" in refusal(
        "end_of_call", concurrency=places
    )


@pytest.mark.parametrize(
    "seconds", [0, -1, float("nan"), float("inf"), 10**400, True, "60", Fraction(1, 2)]
)
def test_a_handler_has_a_time_that_ends(seconds: Any) -> None:
    assert "a number of seconds over 0" in refusal("prefetch", budget_s=seconds)
    assert "a number of seconds over 0" in refusal("end_of_call", timeout_s=seconds)
    assert "a number of seconds over 0" in refusal("failed", timeout_s=seconds)


@pytest.mark.parametrize(
    ("option", "value", "why"),
    [
        ("retry_backoff", 10, "Give it a Backoff, such as Backoff(first_s=10, factor=5)"),
        ("retry_backoff", Backoff, "Give it a Backoff"),
        ("repeatable", 1, "It is True or False"),
        ("name", "", "Give it a name that can be printed"),
        ("name", "two\nlines", "Give it a name that can be printed"),
        ("name", "\ud800", "Give it a name that can be printed"),
        ("name", 7, "Give it a name that can be printed"),
    ],
)
def test_a_value_of_another_kind_is_refused(option: str, value: Any, why: str) -> None:
    assert why in refusal("end_of_call", **{option: value})


@pytest.mark.parametrize("nobody", ["", [], [""], [None], b"-a"])
def test_a_filter_that_matches_no_call_is_refused(nobody: Any) -> None:
    assert "lets no call through" in refusal("prefetch", agent_id=nobody)
    assert "lets no call through" in refusal("failed", handler=nobody)


def test_a_filter_compares_with_texts() -> None:
    assert "agent_id=7. Give it one text, or several." in refusal("prefetch", agent_id=7)


def test_a_filter_value_that_cannot_be_is_refused_with_the_nearest() -> None:
    message = refusal("end_of_call", call_status=["busy", "no-answr"])
    assert "'no-answr' is unknown. Did you mean 'no-answer'? Known: " in message
    assert "Did you mean" not in refusal("end_of_call", outcome="zzz")


def test_a_status_may_be_given_as_a_member() -> None:
    handler = registered("end_of_call", call_status=CallStatus.NO_ANSWER)
    assert handler.filters() == {"call_status": ["no-answer"]}


async def wonders(call: PrefetchRequest) -> bool:
    return True


@pytest.mark.parametrize("when", [wonders, "phone"])
def test_a_filter_of_ones_own_is_a_plain_function(when: Any) -> None:
    message = refusal("prefetch", when=when)
    assert "greet asks for when=" in message
    assert "It must be a plain function of the call." in message


@pytest.mark.parametrize(
    ("hook", "taken"),
    [
        (
            "prefetch",
            "name, agent_id, channel, direction, to_phone, when, budget_s, cache_s, stale_s, key.",
        ),
        (
            "end_of_call",
            "concurrency, repeatable, on_change. Filter by anything else about a call",
        ),
        ("failed", "on_failed takes name, max_attempts, timeout_s, retry_backoff, handler."),
    ],
)
def test_an_unknown_option_is_refused_with_the_known_ones(hook: str, taken: str) -> None:
    message = refusal(hook, zzz=1)
    assert "asks for the unknown option 'zzz'. on_" in message
    assert taken in message


def test_an_unknown_option_is_refused_with_the_nearest() -> None:
    assert "Did you mean 'call_status'?" in refusal("end_of_call", status="busy")


def test_a_type_checker_sees_what_is_wrong_too() -> None:
    router = Router()
    wrong: list[Callable[[], object]] = [
        lambda: router.on_prefetch(status="busy")(greet),  # type: ignore[call-overload]
        lambda: router.on_end_of_call(budget_s=1)(note),  # type: ignore[call-overload]
        lambda: router.on_end_of_call(timeout_s=None)(note),  # type: ignore[call-overload]
        lambda: router.on_failed(agent_id="-a")(lambda failed: None),  # type: ignore[call-overload]
    ]
    for register in wrong:
        with pytest.raises(RegistrationError):
            register()
