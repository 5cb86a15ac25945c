from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, assert_type

import pytest
from pydantic import BaseModel

from millis_hooks import EndOfCall, FailedRun, ParkedRun, PrefetchRequest, RegistrationError, Router
from millis_hooks.handlers.handler_call import Handler
from millis_hooks.handlers.routing import forgotten_routers


class Customer(BaseModel):
    visits: int = 0


def beginning(**fields: Any) -> PrefetchRequest:
    return PrefetchRequest(**({"session_id": "-Ox1"} | fields))


def ended(**fields: Any) -> EndOfCall:
    return EndOfCall(session_id="-Ox1", **fields)


def failed(handler: str = "note") -> FailedRun:
    now = datetime.now(UTC)
    return FailedRun(
        run_id=7, call=ended(), handler=handler, reason="no", attempts=1, failed_at=now
    )


def names(router: Router, call: PrefetchRequest | EndOfCall) -> list[str]:
    if isinstance(call, PrefetchRequest):
        return [handler.name for handler in router.matching("prefetch", call)]
    return [handler.name for handler in router.matching("end_of_call", call)]


def refusal(register: Callable[[], object]) -> str:
    with pytest.raises(RegistrationError) as error:
        register()
    return str(error.value)


def greet(call: PrefetchRequest) -> str:
    return "hello"


def note(call: EndOfCall) -> None: ...


def alert(failed: FailedRun) -> None: ...


def only(router: Router) -> Handler:
    [handler] = router
    return handler


def test_a_decorator_returns_the_function_unchanged() -> None:
    router = Router()
    assert router.on_prefetch(greet) is greet
    assert router.on_end_of_call(call_status="busy")(note) is note
    assert router.on_failed(handler="note")(alert) is alert


def test_a_decorated_function_keeps_its_type() -> None:
    router = Router()

    @router.on_end_of_call(max_attempts=3, repeatable=False)
    async def sync(call: EndOfCall) -> dict[str, int]:
        return {"tables": 1}

    @router.on_failed
    def tell(run: FailedRun) -> str:
        return run.reason

    assert_type(asyncio.run(sync(ended())), dict[str, int])
    assert_type(tell(failed()), str)


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


def test_two_handlers_of_one_name_are_refused_with_both_places() -> None:
    router = Router()
    router.on_prefetch(greet)
    message = refusal(lambda: router.on_prefetch(name="greet")(lambda call: None))
    assert message.count("test_routing.py:") == 2


def test_one_name_may_serve_every_hook() -> None:
    router = Router()
    router.on_prefetch(name="crm")(greet)
    router.on_end_of_call(name="crm")(note)
    router.on_failed(name="crm")(alert)
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
        (alert, "alert takes FailedRun, but on_prefetch calls it with PrefetchRequest"),
        (str, "str does not tell what it takes; wrap it in a function"),
        ("greet", "on_prefetch takes a function, not 'greet'"),
    ],
)
def test_what_could_never_be_called_is_refused_at_once(function: Any, why: str) -> None:
    assert why in refusal(lambda: Router().on_prefetch(function))


def test_the_refusal_says_where_the_function_stands() -> None:
    line = no_parameter.__code__.co_firstlineno
    assert f"test_routing.py:{line}" in refusal(lambda: Router().on_prefetch(no_parameter))  # type: ignore[type-var]


def test_who_tells_of_failed_runs_is_called_with_one() -> None:
    message = refusal(lambda: Router().on_failed(note))  # type: ignore[type-var]
    assert "note takes EndOfCall, but on_failed calls it with FailedRun" in message


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


def test_filters_are_reported_by_name_and_sorted() -> None:
    router = Router()
    router.on_end_of_call(agent_id={"-b", "-a"}, call_status="NO_ANSWER", concurrency=2)(note)
    assert only(router).filters() == {"agent_id": ["-a", "-b"], "call_status": ["no-answer"]}


def test_a_handler_without_options_has_no_filters() -> None:
    router = Router()
    router.on_failed(alert)
    assert only(router).filters() == {}


def test_failed_runs_are_told_to_all_who_want_to_hear_of_that_handler() -> None:
    router = Router()
    router.on_end_of_call(note)
    router.on_failed(name="of all")(alert)
    router.on_failed(name="of two", handler=["note", "other"])(alert)
    router.on_failed(name="of another", handler="other")(alert)
    assert [handler.name for handler in router.failure_handlers("note")] == ["of all", "of two"]
    assert router.matching("failed", failed("note")) == router.failure_handlers("note")


def test_whom_a_handler_wants_to_hear_of_may_be_registered_later() -> None:
    router = Router()
    router.on_failed(handler="note")(alert)
    router.on_end_of_call(note)
    router.check()


@pytest.mark.parametrize(
    ("wanted", "hint"),
    [("notes", "Did you mean 'note'? Known: note."), ("xyz", "has that name. Known: note.")],
)
def test_on_parked_of_an_unknown_handler_is_refused(wanted: str, hint: str) -> None:
    router = Router()
    router.on_prefetch(name="xyz")(greet)
    router.on_end_of_call(note)
    router.on_failed(handler={"note", wanted})(alert)
    message = refusal(router.check)
    assert f"test_routing.py:{alert.__code__.co_firstlineno}: alert asks for" in message
    assert hint in message


def test_a_handler_s_call_carries_its_key() -> None:
    router = Router()
    router.on_end_of_call(name="sync_crm")(note)
    prepared = only(router).prepare(ended(), "state")
    assert isinstance(prepared, EndOfCall)
    assert (prepared.idempotency_key, prepared.state) == ("-Ox1:sync_crm", "state")


def test_a_failed_run_in_a_log_gives_no_conversation_away() -> None:
    assert "EndOfCall" not in repr(failed())


def test_a_failed_run_carries_the_state_and_both_keys() -> None:
    router = Router()
    router.on_failed(alert)
    prepared = only(router).prepare(failed("sync_crm"), "state")
    assert isinstance(prepared, FailedRun)
    assert prepared.state == "state"
    assert prepared.idempotency_key == "-Ox1:sync_crm:failed:7"
    assert prepared.call.idempotency_key == "-Ox1:sync_crm"


def test_the_earlier_names_of_failed_runs_continue_working() -> None:
    router = Router()
    router.on_parked(handler="note")(alert)
    assert only(router).hook == "failed"
    assert ParkedRun is FailedRun
    run = failed()
    assert run.failed_at == run.failed_at


def test_a_router_names_agents_and_its_names_are_included() -> None:
    bookings, hooks = Router(), Router()
    assert bookings.agent(" -Ox1 ", name="Bookings") == "-Ox1"
    hooks.include(bookings)
    hooks.include(bookings)
    assert hooks.agent_names() == {"-Ox1": "Bookings"}


def test_an_agent_named_twice_a_name_of_two_agents_and_no_name_are_refused_with_their_places() -> (
    None
):
    router = Router()
    router.agent("-Ox1", name="Bookings")
    twice = refusal(lambda: router.agent("-Ox1", name="Desk"))
    assert twice.count("test_routing.py:") == 2
    assert "Agent -Ox1 is named twice: 'Bookings' at" in twice
    both = refusal(lambda: router.agent("-Ox2", name="bookings"))
    assert "test_routing.py:" in both
    assert "agents -Ox1 and -Ox2 are both named 'bookings'" in both
    assert "agent -Ox3 needs a name" in refusal(lambda: router.agent("-Ox3", name=""))


def test_only_routers_made_by_the_code_of_the_application_are_missed() -> None:
    def made_at(file: str, package: str) -> Router:
        names: dict[str, Any] = {"__name__": f"{package}.calls", "__package__": package}
        exec(compile("from millis_hooks import Router\nrouter = Router()", file, "exec"), names)
        router: Router = names["router"]
        router.on_prefetch(name=file)(lambda call: None)
        return router

    hooks = made_at("/srv/shop/web/app.py", "shop.web")
    others = [
        made_at("/srv/shop/calls.py", "shop"),
        made_at("/srv/shop/deep/calls.py", "shop.deep"),
        made_at("/srv/bank/calls.py", "bank"),
        made_at("/srv/calls.py", ""),
    ]
    assert len(list(forgotten_routers(hooks))) == 2
    hooks.include(others[0])
    assert len(list(forgotten_routers(hooks))) == 1
