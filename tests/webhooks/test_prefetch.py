"""Prefetch through its door: what the caller's agent gets, and what the log says about it."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import threading
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from millis_hooks import ConfigError, MillisHooks, PrefetchRequest, PrefetchResponse
from millis_hooks.exceptions import HandlerError
from millis_hooks.protocol.test_marks import mark_header
from support.app import END_OF_CALL, PREFETCH, SECRET, MakeHooks, Rows, our_log, serving
from support.paths import SAMPLES
from support.waiting import eventually

DEFAULT = {"extra_prompt": "Ask for the name."}
SOON_S = 0.05
RECORD = "SELECT * FROM deliveries WHERE kind = 'prefetch' ORDER BY id"


def ask(hooks: MillisHooks, url: str = PREFETCH) -> Any:
    """Ask once; the application is stopped afterwards, and the record written."""
    with serving(hooks) as client:
        response = client.get(url)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    return response.json()


@pytest.mark.both_databases
def test_an_answer_is_sent_and_logged(hooks: MillisHooks, rows: Rows) -> None:
    @hooks.on_prefetch
    async def greet(call: PrefetchRequest) -> PrefetchResponse:
        return PrefetchResponse(metadata={"plan": call.metadata["plan"]}, extra_prompt="Hi.")

    assert ask(hooks) == {"metadata": {"plan": "gold"}, "extra_prompt": "Hi."}
    [record] = rows(RECORD)
    assert (record["session_id"], record["outcome"], record["status_code"]) == (
        "-Ox1demoSess",
        "fresh",
        200,
    )
    assert (record["reason"], record["query"]) == (None, PREFETCH.partition("?")[2])
    assert json.loads(record["answer"])["extra_prompt"] == "Hi."
    assert record["latency_ms"] > 0


def test_without_handlers_the_answer_is_empty(hooks: MillisHooks, rows: Rows) -> None:
    assert ask(hooks) == {}
    assert rows(RECORD)[0]["outcome"] == "fresh"


@pytest.mark.parametrize("name", sorted(path.name for path in SAMPLES.glob("prefetch_*.txt")))
def test_every_documented_request_is_answered(hooks: MillisHooks, name: str) -> None:
    @hooks.on_prefetch
    def echo(call: PrefetchRequest) -> dict[str, Any]:
        return {"metadata": {"session": call.session_id, "from": call.from_phone}}

    query = (SAMPLES / name).read_text().strip()
    answer = ask(hooks, f"/millis/prefetch?{query}")
    phone = None if name == "prefetch_web.txt" else "+15550100"
    assert answer == {"metadata": {"session": "-Ox1demoSess", "from": phone}}


@pytest.mark.parametrize("query", ["", "?", "?&&=", "?%ff=%00&session_id=%ED%A0%80", "?a" * 2000])
def test_a_request_that_says_little_is_answered_and_its_oddities_logged(
    hooks: MillisHooks, rows: Rows, query: str
) -> None:
    assert ask(hooks, f"/millis/prefetch{query}") == {}
    assert rows(RECORD)[0]["outcome"] == "fresh"


def test_several_handlers_are_merged_in_the_order_of_registration(hooks: MillisHooks) -> None:
    second_is_done = threading.Event()

    @hooks.on_prefetch
    def first(call: PrefetchRequest) -> dict[str, Any]:
        second_is_done.wait(5)
        return {"metadata": {"a": 1, "b": 1}, "extra_prompt": "One."}

    @hooks.on_prefetch
    async def second(call: PrefetchRequest) -> dict[str, Any]:
        second_is_done.set()
        return {"metadata": {"b": 2}, "extra_prompt": "Two."}

    assert ask(hooks) == {"metadata": {"a": 1, "b": 2}, "extra_prompt": "One.\n\nTwo."}


def test_what_a_handler_does_to_its_call_the_next_one_does_not_see(hooks: MillisHooks) -> None:
    vandal_is_done = threading.Event()

    @hooks.on_prefetch
    def vandal(call: PrefetchRequest) -> None:
        call.session_id = "changed"
        call.metadata.clear()
        vandal_is_done.set()

    @hooks.on_prefetch
    def witness(call: PrefetchRequest) -> dict[str, Any]:
        vandal_is_done.wait(5)
        return {"metadata": {"seen": [call.session_id, *call.metadata]}}

    assert ask(hooks) == {"metadata": {"seen": ["-Ox1demoSess", "plan", "visits"]}}


def test_a_handler_that_fails_drops_out_alone(hooks: MillisHooks, rows: Rows) -> None:
    @hooks.on_prefetch
    def broken(call: PrefetchRequest) -> str:
        raise LookupError("no such customer")

    @hooks.on_prefetch
    def unsendable(call: PrefetchRequest) -> dict[str, Any]:
        return {"flat": object()}

    hooks.on_prefetch(name="greet")(lambda call: "Hello.")
    assert ask(hooks) == {"extra_prompt": "Hello."}
    [record] = rows(RECORD)
    assert record["outcome"] == "fresh"
    assert "broken: LookupError: no such customer" in record["reason"]
    assert "unsendable: The answer cannot be sent as JSON" in record["reason"]


def test_an_answer_spoilt_after_it_was_made_drops_out_too(hooks: MillisHooks) -> None:
    @hooks.on_prefetch
    def spoilt(call: PrefetchRequest) -> PrefetchResponse:
        response = PrefetchResponse()
        response.metadata["since"] = object()
        return response

    hooks.on_prefetch(name="greet")(lambda call: "Hello.")
    assert ask(hooks) == {"extra_prompt": "Hello."}


class Trap(dict[str, Any]):
    """A mapping that fails when it is read, as those of some ORMs do."""

    def get(self, key: str, default: Any = None) -> Any:
        raise ConnectionError("the session is closed")


def test_an_answer_that_fails_when_it_is_read_drops_out_too(hooks: MillisHooks, rows: Rows) -> None:
    hooks.on_prefetch(name="trap")(lambda call: Trap(metadata={}))
    assert ask(hooks) == {}
    assert rows(RECORD)[0]["reason"].startswith("trap: ConnectionError: the session is closed (")


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), SystemExit(1), KeyboardInterrupt(), asyncio.CancelledError(),
     ExceptionGroup("two", [ValueError("a"), KeyError("b")])],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_handler_raises_the_call_continues(
    hooks: MillisHooks, rows: Rows, error: BaseException
) -> None:
    @hooks.on_prefetch
    async def lately(call: PrefetchRequest) -> None:
        raise error

    @hooks.on_prefetch
    def plainly(call: PrefetchRequest) -> None:
        raise error

    with serving(hooks) as client:
        assert [client.get(PREFETCH).json() for _ in range(2)] == [{}, {}]
    assert [record["outcome"] for record in rows(RECORD)] == ["failed", "failed"]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError


def test_a_failure_that_cannot_even_be_told_is_named(hooks: MillisHooks, rows: Rows) -> None:
    @hooks.on_prefetch
    def broken(call: PrefetchRequest) -> None:
        raise UnspeakableError

    assert ask(hooks) == {}
    assert rows(RECORD)[0]["reason"].startswith("broken: UnspeakableError (")


def test_a_blocked_event_loop_delays_neither_a_fallback_nor_an_acknowledgement(
    make_hooks: MakeHooks, released: threading.Event, rows: Rows
) -> None:
    hooks = make_hooks(prefetch_budget_s=SOON_S)

    @hooks.on_prefetch
    async def block(call: PrefetchRequest) -> str:
        released.wait()
        return "too late"

    with serving(hooks) as client:
        assert [client.get(PREFETCH).json() for _ in range(3)] == [{}, {}, {}]
        assert client.post(END_OF_CALL, content=b'{"session_id": "-Ox1"}').status_code == 200
        assert client.get("/readyz").status_code == 200
        released.set()
    assert [record["outcome"] for record in rows(RECORD)] == ["late"] * 3
    assert rows(RECORD)[0]["reason"] == "block: took over 0.05 s"


def test_a_plain_handler_that_never_returns_is_late(
    make_hooks: MakeHooks, released: threading.Event, rows: Rows
) -> None:
    hooks = make_hooks(prefetch_budget_s=SOON_S)
    hooks.on_prefetch(name="hang")(lambda call: str(released.wait()))
    assert ask(hooks) == {}
    assert rows(RECORD)[0]["outcome"] == "late"


def test_an_answer_that_is_slow_to_read_is_late(
    make_hooks: MakeHooks, released: threading.Event, rows: Rows
) -> None:
    hooks = make_hooks(prefetch_budget_s=SOON_S)
    hooks.on_prefetch(lambda call: {"metadata": {"slow": (released.wait() for _ in "ab")}})
    assert ask(hooks) == {}
    assert rows(RECORD)[0]["outcome"] == "late"


def test_answers_in_time_go_out_without_late_ones(
    make_hooks: MakeHooks, released: threading.Event, rows: Rows
) -> None:
    hooks = make_hooks()
    hooks.on_prefetch(name="hang", budget_s=SOON_S)(lambda call: str(released.wait()))
    hooks.on_prefetch(name="greet")(lambda call: "Hello.")
    assert ask(hooks) == {"extra_prompt": "Hello."}
    assert rows(RECORD)[0]["reason"] == "hang: took over 0.05 s"


def test_a_handler_may_not_want_the_call(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(prefetch_fallback="default", prefetch_default=DEFAULT)
    hooks.on_prefetch(name="picky", when=lambda call: call.channel == "web")(lambda call: "Web.")
    assert ask(hooks) == {}
    assert rows(RECORD)[0]["outcome"] == "fresh"


def test_a_filter_decides_before_the_handler_is_asked(hooks: MillisHooks) -> None:
    hooks.on_prefetch(name="other", agent_id="-other")(lambda call: "Other.")
    hooks.on_prefetch(name="ours", agent_id="-Ox1demoAgent")(lambda call: "Ours.")
    assert ask(hooks) == {"extra_prompt": "Ours."}


class Customer(BaseModel):
    plan: str
    visits: int


def test_metadata_may_be_typed(hooks: MillisHooks) -> None:
    @hooks.on_prefetch
    def count(call: PrefetchRequest[Customer]) -> dict[str, Any]:
        return {"metadata": {"next": call.metadata.visits + 1}}

    assert ask(hooks) == {"metadata": {"next": 4}}


def test_metadata_that_does_not_fit_is_told_to_the_handler(hooks: MillisHooks) -> None:
    @hooks.on_prefetch
    def count(call: PrefetchRequest[Customer]) -> dict[str, Any]:
        return {"metadata": {"problems": [problem.field for problem in call.problems]}}

    url = PREFETCH.replace("visits=3", "visits=many")
    assert ask(hooks, url) == {"metadata": {"problems": ["visits"]}}


def test_our_own_numbers_tell_who_the_customer_is(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(own_numbers="+1 555 0100")
    hooks.on_prefetch(name="who")(lambda call: f"{call.direction} {call.customer_phone}")
    assert ask(hooks) == {"extra_prompt": "outbound +15550199"}


def test_what_is_odd_about_an_answer_is_in_the_log(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(extra_prompt_max_chars=3)

    @hooks.on_prefetch
    def odd(call: PrefetchRequest) -> dict[str, Any]:
        return {"tier": 1, "extra_prompt": "long\x00er"}

    assert ask(hooks) == {"tier": 1, "extra_prompt": "lon"}
    reason = rows(RECORD)[0]["reason"]
    assert "extra_prompt was cut from 7 to 3 characters" in reason
    assert "Millis ignores tier at the top level of an answer" in reason


def test_what_a_handler_does_to_its_call_does_not_reach_the_log(
    hooks: MillisHooks, rows: Rows
) -> None:
    @hooks.on_prefetch
    def spoil(call: PrefetchRequest) -> str:
        call.session_id = None  # type: ignore[assignment]
        return "Hello."

    assert ask(hooks) == {"extra_prompt": "Hello."}
    assert rows(RECORD)[0]["session_id"] == "-Ox1demoSess"


@pytest.mark.parametrize(
    ("settings", "expected", "outcome"),
    [
        ({}, {}, "failed"),
        ({"prefetch_default": DEFAULT}, {}, "failed"),
        ({"prefetch_fallback": "default", "prefetch_default": DEFAULT}, DEFAULT, "default"),
        ({"prefetch_fallback": "last_good", "prefetch_default": DEFAULT}, DEFAULT, "default"),
        ({"prefetch_fallback": "last_good"}, {}, "failed"),
    ],
)
def test_the_fallback_is_the_one_that_was_chosen(
    make_hooks: MakeHooks, rows: Rows, settings: dict[str, Any], expected: object, outcome: str
) -> None:
    hooks = make_hooks(**settings)
    hooks.on_prefetch(name="broken")(lambda call: call.metadata["missing"])
    assert ask(hooks) == expected
    assert rows(RECORD)[0]["outcome"] == outcome


def test_the_last_good_answer_is_given_again_to_the_same_caller_alone(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    hooks = make_hooks(prefetch_fallback="last_good", prefetch_default=DEFAULT)
    answers = iter(["Hello Ann."])
    hooks.on_prefetch(name="once")(lambda call: next(answers))
    with serving(hooks) as client:
        given = [client.get(PREFETCH).json() for _ in range(2)]
        other = client.get(PREFETCH.replace("15550100", "15550111")).json()
    assert given == [{"extra_prompt": "Hello Ann."}] * 2
    assert other == DEFAULT
    assert [each["outcome"] for each in rows(RECORD)] == ["fresh", "last_good", "default"]


@pytest.mark.both_databases
def test_the_last_good_answer_may_be_one_of_another_process(make_hooks: MakeHooks) -> None:
    working, failing = make_hooks(), make_hooks(prefetch_fallback="last_good")
    working.on_prefetch(name="greet")(lambda call: "Hello Ann.")
    failing.on_prefetch(name="broken")(lambda call: call.metadata["missing"])
    ask(working)
    with serving(failing) as client:
        eventually(lambda: client.get(PREFETCH).json() == {"extra_prompt": "Hello Ann."})
        assert client.get(PREFETCH.replace("15550100", "15550111")).json() == {}


@pytest.mark.parametrize(
    ("default", "message"),
    [
        ({}, "PREFETCH_FALLBACK=default needs MILLIS_HOOKS_PREFETCH_DEFAULT"),
        ({"prompt": "Hi"}, "PREFETCH_DEFAULT: prompt: "),
        ({"metadata": {"a": object()}}, "PREFETCH_DEFAULT: metadata.a: "),
    ],
)
def test_an_invalid_default_answer_stops_the_start(
    make_hooks: MakeHooks, tmp_path: Path, default: dict[str, Any], message: str
) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    hooks = make_hooks(prefetch_fallback="default", prefetch_default=default, database_url=url)
    with pytest.raises(ConfigError, match=message):
        asyncio.run(_start(hooks))
    assert not (tmp_path / "new.db").exists()


async def _start(hooks: MillisHooks) -> None:
    async with hooks.running():
        pass


def test_a_failure_is_logged_with_its_traceback_and_without_its_secrets(
    hooks: MillisHooks, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.on_prefetch
    def broken(call: PrefetchRequest) -> str:
        raise RuntimeError("token=hunter2-hunter2 did not find +14155550134")

    @hooks.on_prefetch
    def told(call: PrefetchRequest) -> str:
        raise HandlerError("password: hunter2-hunter2, +14155550134")

    with caplog.at_level(logging.DEBUG):
        ask(hooks)
    said = our_log(caplog) + rows(RECORD)[0]["reason"]
    assert "test_prefetch.py" in said
    assert "RuntimeError: token=" in said
    assert not any(secret in said for secret in ("hunter2", "4155550134", "15550100"))


def test_what_was_left_out_of_an_answer_is_logged_with_its_handler(
    hooks: MillisHooks, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.on_prefetch
    def look_up(call: PrefetchRequest) -> dict[str, Any]:
        return {"metadata": {"name": "Ada", "row": {"lock": object()}}}

    with serving(hooks) as client:
        assert client.get(PREFETCH).json()["metadata"]["name"] == "Ada"
    why = "metadata.row.lock: a value of the type object cannot be sent as JSON"
    assert f"prefetch handler look_up: left out {why}" in caplog.messages


def test_the_answer_to_a_test_says_what_became_of_it(hooks: MillisHooks) -> None:
    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> str:
        raise KeyError("tier")

    mark = mark_header(SECRET, "-Ox1demoSess", "test")
    with serving(hooks) as client:
        tested, real = client.get(PREFETCH, headers=mark), client.get(PREFETCH)
    assert tested.headers["x-millis-hooks-outcome"] == "failed"
    reason = tested.headers["x-millis-hooks-reason"]
    assert re.fullmatch(r"greet: KeyError: 'tier' \(test_prefetch\.py:\d+\)", reason)
    assert not [name for name in real.headers if name.startswith("x-millis-hooks")]
