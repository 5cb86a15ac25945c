from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from pydantic import BaseModel

from millis_hooks import EndOfCall, PrefetchRequest, RegistrationError, Router
from millis_hooks.routing import Handler


class Customer(BaseModel):
    visits: int = 0


def beginning(**fields: Any) -> PrefetchRequest:
    return PrefetchRequest(**({"session_id": "-Ox1"} | fields))


def ended(**fields: Any) -> EndOfCall:
    return EndOfCall(session_id="-Ox1", **fields)


def names(router: Router, call: PrefetchRequest | EndOfCall) -> list[str]:
    hook = "prefetch" if isinstance(call, PrefetchRequest) else "end_of_call"
    return [handler.name for handler in router.matching(hook, call)]  # type: ignore[arg-type]


def refusal(register: Callable[[], object]) -> str:
    with pytest.raises(RegistrationError) as error:
        register()
    return str(error.value)


def greet(call: PrefetchRequest) -> str:
    return "hello"


def note(call: EndOfCall) -> None: ...


def only(router: Router) -> Handler:
    [handler] = router
    return handler


def test_a_decorator_returns_the_function_unchanged() -> None:
    router = Router()
    assert router.on_prefetch(greet) is greet
    assert router.on_end_of_call(call_status="busy")(note) is note


def test_handlers_match_in_the_order_of_registration() -> None:
    router = Router()
    for name in ("one", "two", "three"):
        router.on_prefetch(name=name)(greet)
    assert names(router, beginning()) == ["one", "two", "three"]


def test_a_handler_is_called_for_its_own_webhook_alone() -> None:
    router = Router()
    router.on_prefetch(greet)
    router.on_end_of_call(note)
    assert (names(router, beginning()), names(router, ended())) == (["greet"], ["note"])


@pytest.mark.parametrize(
    ("filters", "wanted", "unwanted"),
    [
        ({"agent_id": "-a"}, {"agent_id": "-a"}, {"agent_id": "-b"}),
        ({"agent_id": {"-a", "-b"}}, {"agent_id": "-b"}, {"agent_id": None}),
        ({"channel": "phone"}, {"from_phone": "+15550100"}, {}),
        ({"channel": ["web"]}, {}, {"to_phone": "+15550100"}),
    ],
)
def test_a_filter_lets_some_beginning_calls_through(
    filters: dict[str, Any], wanted: dict[str, Any], unwanted: dict[str, Any]
) -> None:
    router = Router()
    router.on_prefetch(**filters)(greet)
    assert names(router, beginning(**wanted)) == ["greet"]
    assert names(router, beginning(**unwanted)) == []


@pytest.mark.parametrize(
    ("filters", "wanted", "unwanted"),
    [
        ({"call_status": "busy"}, {"call_status": "busy"}, {"call_status": "no-answer"}),
        ({"call_status": "NO_ANSWER"}, {"call_status": "no-answer"}, {"call_status": "brand-new"}),
        ({"outcome": {"voicemail", "unreached"}}, {"call_status": "busy"}, {}),
        ({"channel": "chat"}, {"call_status": "chat_completion"}, {}),
        ({"agent_id": "-a", "outcome": "failed"}, {"agent_id": "-a", "call_status": "error"},
         {"agent_id": "-a"}),
    ],
)  # fmt: skip
def test_a_filter_lets_some_ended_calls_through(
    filters: dict[str, Any], wanted: dict[str, Any], unwanted: dict[str, Any]
) -> None:
    router = Router()
    router.on_end_of_call(**filters)(note)
    assert names(router, ended(**wanted)) == ["note"]
    assert names(router, ended(**unwanted)) == []


def test_an_unknown_filter_is_refused_with_the_known_ones() -> None:
    message = refusal(lambda: Router().on_prefetch(status="busy")(greet))  # type: ignore[call-overload]
    assert "greet asks for the unknown filter 'status'" in message
    assert "agent_id, channel, when, budget_s" in message
    message = refusal(lambda: Router().on_end_of_call(budget_s=1)(note))  # type: ignore[call-overload]
    assert "call_status, outcome, timeout_s" in message


def test_a_filter_value_that_cannot_be_is_refused_with_the_nearest() -> None:
    message = refusal(lambda: Router().on_end_of_call(call_status="no-answr")(note))
    assert "Did you mean 'no-answer'?" in message
    assert "Did you mean" not in refusal(lambda: Router().on_end_of_call(outcome="zzz")(note))


@pytest.mark.parametrize("nobody", ["", [], [""]])
def test_a_filter_that_lets_nobody_through_is_refused(nobody: Any) -> None:
    assert "lets no call through" in refusal(lambda: Router().on_prefetch(agent_id=nobody)(greet))


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_a_handler_needs_time(seconds: float) -> None:
    assert "give it more" in refusal(lambda: Router().on_prefetch(budget_s=seconds)(greet))
    assert "give it more" in refusal(lambda: Router().on_end_of_call(timeout_s=seconds)(note))


async def wonders(call: PrefetchRequest) -> bool:
    return True


@pytest.mark.parametrize("when", [wonders, "phone"])
def test_a_filter_of_ones_own_is_a_plain_function(when: Any) -> None:
    message = refusal(lambda: Router().on_prefetch(when=when)(greet))
    assert "when= of greet must be a plain function" in message


def test_two_handlers_of_one_name_are_refused_with_both_places() -> None:
    router = Router()
    router.on_prefetch(greet)
    message = refusal(lambda: router.on_prefetch(name="greet")(lambda call: None))
    assert message.count("test_routing.py:") == 2


def test_one_name_may_serve_both_webhooks() -> None:
    router = Router()
    router.on_prefetch(name="crm")(greet)
    router.on_end_of_call(name="crm")(note)
    handler = router.get("end_of_call", "crm")
    assert handler is not None
    assert handler.function is note
    assert router.get("prefetch", "other") is None


def test_routers_are_put_together() -> None:
    router, others = Router(), Router()
    others.on_prefetch(greet)
    router.include(others)
    assert [handler.name for handler in router] == ["greet"]


def test_the_same_router_may_be_included_twice_and_another_handler_may_not() -> None:
    router, others = Router(), Router()
    others.on_prefetch(greet)
    router.include(others)
    router.include(others)
    again = Router()
    again.on_prefetch(greet)
    assert "Two prefetch handlers are named 'greet'" in refusal(lambda: router.include(again))


def no_parameter() -> str:
    return ""


def two_parameters(call: PrefetchRequest, customer: object) -> str:
    return ""


def keyword_only(*, call: PrefetchRequest) -> str:
    return ""


def generator(call: PrefetchRequest) -> Iterator[str]:
    yield ""


async def async_generator(call: PrefetchRequest) -> AsyncIterator[str]:
    yield ""


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (no_parameter, "cannot be called with one PrefetchRequest"),
        (two_parameters, "two_parameters(call: 'PrefetchRequest', customer: 'object')"),
        (keyword_only, "Write it as keyword_only(call: PrefetchRequest)"),
        (generator, "generator yields; a handler must return"),
        (async_generator, "async_generator yields"),
        (note, "note takes EndOfCall, but on_prefetch calls it with PrefetchRequest"),
        (str, "what str takes cannot be told; wrap it in a function"),
        ("greet", "must be a function, not 'greet'"),
    ],
)
def test_what_could_never_be_called_is_refused_at_once(function: Any, why: str) -> None:
    assert why in refusal(lambda: Router().on_prefetch(function))


def test_the_refusal_says_where_the_function_stands() -> None:
    line = no_parameter.__code__.co_firstlineno
    assert f"test_routing.py:{line}" in refusal(lambda: Router().on_prefetch(no_parameter))  # type: ignore[type-var]


class Greeter:
    def __call__(self, call: PrefetchRequest) -> str:
        return "hello"

    async def later(self, call: PrefetchRequest) -> str:
        return "hello"

    @staticmethod
    def plainly(call: PrefetchRequest) -> str:
        return "hello"


class AsyncGreeter:
    async def __call__(self, call: PrefetchRequest) -> str:
        return "hello"


async def slowly(greeting: str, call: PrefetchRequest) -> str:
    return greeting


def wrapped() -> Callable[[PrefetchRequest], str]:
    @functools.wraps(greet)
    def wrapper(call: PrefetchRequest) -> str:
        return greet(call)

    return wrapper


@pytest.mark.parametrize(
    ("function", "name", "is_async"),
    [
        (greet, "greet", False),
        (Greeter(), "Greeter", False),
        (Greeter().later, "later", True),
        (Greeter.plainly, "plainly", False),
        (AsyncGreeter(), "AsyncGreeter", True),
        (functools.partial(slowly, "hello"), "slowly", True),
        (functools.partial(AsyncGreeter()), "AsyncGreeter", True),
        (wrapped(), "greet", False),
        (lambda call: None, "<lambda>", False),
    ],
)
def test_anything_that_can_be_called_is_a_handler(function: Any, name: str, is_async: bool) -> None:
    router = Router()
    router.on_prefetch(function)
    assert (only(router).name, only(router).is_async) == (name, is_async)


def test_a_handler_may_ask_for_typed_metadata() -> None:
    def typed(call: PrefetchRequest[Customer]) -> None: ...

    router = Router()
    router.on_prefetch(name="typed")(functools.partial(typed))
    prepared = only(router).prepare(beginning(metadata={"visits": "3"}), "state")
    assert isinstance(prepared, PrefetchRequest)
    assert prepared.metadata == Customer(visits=3)
    assert prepared.state == "state"


def test_plain_metadata_stays_a_dict() -> None:
    def plain(call: PrefetchRequest[dict[str, str]]) -> None: ...

    router = Router()
    router.on_prefetch(plain)
    assert only(router).metadata_model is None


def test_an_annotation_nobody_can_read_is_no_reason_to_refuse() -> None:
    def odd(call: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821, UP037

    router = Router()
    router.on_prefetch(odd)
    assert only(router).name == "odd"
