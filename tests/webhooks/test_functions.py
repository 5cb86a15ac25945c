"""Functions through their door: what an agent gets to speak from, and what is logged of it."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Mapping
from datetime import date
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from millis_hooks import FunctionRequest, MillisHooks, Router
from millis_hooks.call_log.queries.requests import stored_tools
from millis_hooks.testing import HooksClient
from millis_hooks.webhooks.agent_config import agent_config
from millis_hooks.webhooks.functions import FALLBACK, MOST_BODY_BYTES
from support.app import END_OF_CALL, MakeHooks, Rows, our_log, serving
from support.waiting import eventually

FREE_TABLES = "/millis/functions/free_tables"
RECORD = "SELECT * FROM deliveries WHERE kind = 'function' ORDER BY id"


class Seat(Enum):
    INSIDE = "inside"
    GARDEN = "in the garden"


@pytest.fixture
def tables(hooks: MillisHooks) -> MillisHooks:
    @hooks.function(timeout_s=4, say=["One moment."])
    async def free_tables(
        call: FunctionRequest,
        day: date,
        people: Annotated[int, "How many guests", Field(ge=1, le=20)] = 2,
        seat: Seat | None = None,
        meal: Literal["lunch", "dinner"] = "dinner",
        outside: bool = False,
    ) -> dict[str, object]:
        """Find free tables on a day."""
        return {
            "day": day,
            "people": people,
            "seat": seat,
            "meal": meal,
            "outside": outside,
            "session": call.session_id,
            "metadata": call.metadata,
        }

    return hooks


def ask(hooks: MillisHooks, method: str = "POST", url: str = FREE_TABLES, **request: Any) -> Any:
    """Ask once; the application is stopped afterwards, and the record written."""
    with serving(hooks) as client:
        response = client.request(method, url, **request)
    assert response.status_code == 200
    return response.json()


@pytest.mark.both_databases
def test_an_answer_is_sent_and_recorded(tables: MillisHooks, rows: Rows) -> None:
    body = {"day": "2026-12-01", "people": "3", "session_id": "-Ox1demoSess", "plan": "gold"}
    answer = ask(tables, json=body)
    assert answer == {
        "day": "2026-12-01",
        "people": 3,
        "seat": None,
        "meal": "dinner",
        "outside": False,
        "session": "-Ox1demoSess",
        "metadata": {"plan": "gold"},
    }
    [record] = rows(RECORD)
    assert (record["function"], record["session_id"]) == ("free_tables", "-Ox1demoSess")
    assert (record["outcome"], record["reason"], record["status_code"]) == ("answered", None, 200)
    assert json.loads(bytes(record["body"])) == body
    assert json.loads(bytes(record["answer"])) == answer
    assert record["latency_ms"] > 0


@pytest.mark.both_databases
def test_a_function_begins_a_call_that_was_not_known_and_joins_one_that_is(
    tables: MillisHooks, rows: Rows
) -> None:
    known = "SELECT session_id, delivery_id FROM calls"
    with serving(tables) as client:
        client.post(FREE_TABLES, json={"day": "2026-12-01", "session_id": "s"})
        [begun] = eventually(lambda: rows(known))
        assert begun == {"session_id": "s", "delivery_id": None}
        client.post(END_OF_CALL, json={"session_id": "s", "call_status": "user-ended"})
        client.post(FREE_TABLES, json={"day": "2026-12-02", "session_id": "s"})
        [ended] = eventually(lambda: [row for row in rows(known) if row["delivery_id"]])
        eventually(lambda: not rows("SELECT * FROM inbox"))
    assert ended == rows(known)[0]
    assert [row["session_id"] for row in rows(RECORD)] == ["s", "s"]


@pytest.mark.parametrize(
    ("method", "request_"),
    [
        ("GET", {"params": {"day": "2026-12-01", "people": "4", "outside": "true"}}),
        ("POST", {"data": {"day": "2026-12-01", "people": "4", "outside": "true"}}),
        ("POST", {"json": {"people": 4, "outside": "yes"}, "params": {"day": "2026-12-01"}}),
        ("POST", {"content": b'{"day":"2026-12-01","people":4,"outside":1}'}),
        ("POST", {"content": b"day=2026-12-01&people=4&outside=on"}),
        ("POST", {"content": json.dumps('{"day":"2026-12-01","people":"4","outside":"t"}')}),
        (
            "POST",
            {
                "content": gzip.compress(b'{"day":"2026-12-01","people":4,"outside":true}'),
                "headers": {"content-encoding": "gzip"},
            },
        ),
    ],
)
def test_arguments_come_in_the_query_as_json_and_as_a_form(
    tables: MillisHooks, method: str, request_: dict[str, Any]
) -> None:
    answer = ask(tables, method, **request_)
    assert (answer["day"], answer["people"], answer["outside"]) == ("2026-12-01", 4, True)


def test_the_body_counts_before_the_query_and_a_parameter_before_metadata(
    tables: MillisHooks,
) -> None:
    body = {"day": "2026-12-02", "session_id": "s2", "metadata": {"people": 9, "plan": "gold"}}
    answer = ask(tables, json=body, params={"day": "2026-12-01", "session_id": "s1", "lang": "de"})
    assert (answer["day"], answer["session"], answer["people"]) == ("2026-12-02", "s2", 2)
    assert answer["metadata"] == {"plan": "gold", "lang": "de"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"day": "tomorrow"}, 'day should be a date as YYYY-MM-DD, such as 2026-12-31, not "tom'),
        ({"day": 20261201}, "day should be a date as YYYY-MM-DD, such as 2026-12-31, not 20261201"),
        ({}, "day is missing"),
        ({"day": None}, "day is missing"),
        ({"day": "2026-12-01", "people": "many"}, 'people should be a whole number, not "many"'),
        ({"day": "2026-12-01", "people": 0}, "people should be greater than or equal to 1, not 0"),
        ({"day": "2026-12-01", "people": True}, "people should be a whole number, not true"),
        ({"day": "2026-12-01", "seat": "roof"}, "seat should be one of inside, in the garden, not"),
        ({"day": "2026-12-01", "meal": ["lunch"]}, 'meal should be one of lunch, dinner, not ["l'),
        ({"day": "2026-12-01", "outside": "maybe"}, "outside should be true or false, not"),
        ({"day": "x", "people": "y"}, "; people should be"),
    ],
)
def test_arguments_that_do_not_fit_are_answered_in_words(
    tables: MillisHooks, rows: Rows, arguments: dict[str, Any], words: str
) -> None:
    [said] = ask(tables, json={"session_id": "s", **arguments}).values()
    assert words in said
    assert said.endswith("Correct this and call free_tables again.")
    assert rows(RECORD)[0]["outcome"] == "invalid"
    assert rows(RECORD)[0]["reason"] == said


@pytest.mark.parametrize("seat", ["inside", "Inside", "INSIDE", " inside "])
def test_a_choice_is_known_however_it_is_spelled(tables: MillisHooks, seat: str) -> None:
    assert ask(tables, json={"day": "2026-12-01", "seat": seat})["seat"] == "inside"


@pytest.mark.parametrize("nothing", [None, "", "null", "None"])
def test_nothing_is_none_or_the_default(tables: MillisHooks, nothing: str | None) -> None:
    answer = ask(tables, json={"day": "2026-12-01", "seat": nothing, "people": nothing})
    assert (answer["seat"], answer["people"]) == (None, 2)


@pytest.mark.parametrize(
    "body",
    [b"", b"\xff\xfe\x00[[[", b"[1, 2]", b"null", b"{" * 5_000, b"\x1f\x8bnot gzip", b"=&=&%ff"],
)
@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "\xff"])
def test_any_bytes_get_an_honest_answer(
    tables: MillisHooks, body: bytes, content_type: str
) -> None:
    headers = {"content-type": content_type.encode("latin-1")}
    assert "day is missing" in ask(tables, content=body, headers=headers)["error"]


def test_a_body_that_is_no_object_is_noted(tables: MillisHooks, rows: Rows) -> None:
    ask(tables, content=b"[1, 2]")
    assert rows(RECORD)[0]["reason"].startswith("body: a list of 2 items; an object of names")


def test_a_large_body_is_refused(tables: MillisHooks) -> None:
    with serving(tables) as client:
        response = client.post(FREE_TABLES, content=b"x" * (MOST_BODY_BYTES + 1))
    assert response.status_code == 413


class Booking(BaseModel):
    table: int
    on: date


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("Two tables.", {"result": "Two tables."}),
        (None, {"result": "Done."}),
        ({"tables": [1, 2]}, {"tables": [1, 2]}),
        ([1, 2], {"result": [1, 2]}),
        (False, {"result": False}),
        (Booking(table=3, on=date(2026, 12, 1)), {"table": 3, "on": "2026-12-01"}),
        ({"a": 1, "b": object()}, {"a": 1}),
    ],
)
def test_what_a_function_returns_is_sent_as_json(
    hooks: MillisHooks, given: Any, sent: object
) -> None:
    @hooks.function
    def free_tables() -> Any:
        return given

    assert ask(hooks) == sent


def test_a_text_is_sent_as_text_where_the_team_chooses_so(hooks: MillisHooks) -> None:
    @hooks.function(answer="text")
    def free_tables() -> str:
        return "Zwei Tische, schön."

    with serving(hooks) as client:
        response = client.get(FREE_TABLES)
    assert response.text == "Zwei Tische, schön."
    assert response.headers["content-type"] == "text/plain; charset=utf-8"


def test_a_function_that_raises_is_answered_with_its_fallback(
    hooks: MillisHooks, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.function(fallback="Say that a colleague calls back.")
    def free_tables() -> str:
        raise RuntimeError("the book of +14155550134 is closed")

    assert ask(hooks) == {"result": "Say that a colleague calls back."}
    [record] = rows(RECORD)
    assert record["outcome"] == "failed"
    assert record["reason"].startswith("free_tables: RuntimeError: the book of")
    assert "function handler free_tables failed" in our_log(caplog)
    assert "5550134" not in our_log(caplog)


@pytest.mark.parametrize("is_lazy", [False, True], ids=["itself", "in what it returned"])
def test_a_function_that_blocks_is_answered_before_it_returns(
    hooks: MillisHooks, released: threading.Event, rows: Rows, is_lazy: bool
) -> None:
    @hooks.function(timeout_s=0.05)
    def free_tables() -> dict[str, object]:
        return {"tables": (released.wait() for _ in "ab") if is_lazy else released.wait()}

    with serving(hooks) as client:
        assert client.get(FREE_TABLES).json() == {"result": FALLBACK}
        released.set()
    assert rows(RECORD)[0]["outcome"] == "late"


def test_functions_of_a_router_are_served(make_hooks: MakeHooks) -> None:
    router = Router()

    @router.function(name="free_tables")
    def find(call: FunctionRequest) -> str:
        return f"{call.name} {call.session_id}"

    assert ask(make_hooks(router), "GET", params={"session_id": "s"}) == {"result": "free_tables s"}


def test_a_secret_is_asked_for(tables: MillisHooks, rows: Rows) -> None:
    with serving(tables, headers={}) as client:
        response = client.post("/millis/functions/unknown")
    assert (response.status_code, response.json()) == (401, {"error": "unauthorized"})
    assert rows("SELECT webhook FROM rejections") == [{"webhook": "function"}]


@pytest.mark.parametrize("name", ["free_table", "prefetch", "", "<b>", "%00", "free_tables/x"])
def test_an_unknown_function_is_reported_which_there_are(tables: MillisHooks, name: str) -> None:
    with serving(tables) as client:
        response = client.post(f"/millis/functions/{name}")
    assert response.status_code == 404
    if "/" not in name:
        assert response.json() == {"error": "no such function; there are: free_tables"}


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "PATCH", "OPTIONS"])
def test_other_methods_are_refused(tables: MillisHooks, method: str) -> None:
    with serving(tables) as client:
        response = client.request(method, FREE_TABLES)
    assert (response.status_code, response.headers["allow"]) == (405, "GET, POST")


def test_a_secret_may_be_part_of_the_path(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(secret_in_path=True)

    @hooks.function
    def free_tables() -> str:
        return "Two."

    secret = hooks.settings.secrets[0].get_secret_value()
    with serving(hooks, headers={}) as client:
        response = client.get(f"/millis/{secret}/functions/free_tables")
    assert response.json() == {"result": "Two."}


def test_a_secret_that_is_bound_to_an_agent_calls_its_functions(make_hooks: MakeHooks) -> None:
    ours, theirs = "secret-of-our-agent-0123456789", "secret-of-another-agent-987654321"
    hooks = make_hooks(agent_secrets={"ours": [ours], "theirs": [theirs]})

    @hooks.function(agent_id="ours")
    def free_tables(call: FunctionRequest) -> str | None:
        return call.agent_id

    def answer(secret: str) -> tuple[int, Mapping[str, object]]:
        response = client.get(FREE_TABLES, headers={"Authorization": f"Bearer {secret}"})
        return response.status_code, response.json()

    with serving(hooks) as client:
        assert answer(ours) == (200, {"result": "ours"})
        assert answer(theirs) == (404, {"error": "no such function; there are: none"})


def test_functions_are_counted_and_measured(tables: MillisHooks) -> None:
    with serving(tables) as client:
        client.post(FREE_TABLES, json={"day": "2026-12-01"})
        client.post(FREE_TABLES, json={"day": "soon"})
        registry = tables.service.metrics.registry
    counted = {
        outcome: registry.get_sample_value(
            "millis_hooks_deliveries_total", {"kind": "function", "outcome": outcome}
        )
        for outcome in ("answered", "invalid", "late")
    }
    assert counted == {"answered": 1, "invalid": 1, "late": 0}
    timed = registry.get_sample_value(
        "millis_hooks_function_duration_seconds_count", {"function": "free_tables"}
    )
    assert timed == 2


def test_the_configuration_of_an_agent_has_its_functions(tables: MillisHooks) -> None:
    @tables.function(agent_id="another", name="other", method="GET")
    def find() -> None: ...

    settings, base = tables.settings, "https://hooks.example.com"
    config = agent_config(settings, base, tools=tables.router.tools("ours"))
    [tool] = config["tools"]
    assert tool["webhook"] == f"{base}{FREE_TABLES}"
    assert tool["header"] == config["extra_prompt_webhook"]["headers"]
    assert (tool["method"], tool["timeout"], tool["messages"]) == ("POST", 5, ["One moment."])
    assert [each["name"] for each in tables.router.tools("another")] == ["free_tables", "other"]
    assert [each["name"] for each in tables.router.tools(None)] == ["free_tables"]
    assert "tools" not in agent_config(settings, base)


def test_stored_functions_are_those_of_the_application(tables: MillisHooks) -> None:
    with serving(tables), tables.service.call_log.database.reader.connect() as connection:
        assert stored_tools(connection, agent_id=None) == tables.router.tools(None)


def test_a_test_calls_a_function_as_an_agent_does(tables: MillisHooks) -> None:
    with HooksClient(tables) as client:
        reply = client.function("free_tables", day=date(2026, 12, 1), seat=Seat.GARDEN)
        assert isinstance(reply.body, dict)
        assert reply.body["seat"] == "in the garden"
        assert (reply.status_code, reply.outcome) == (200, "answered")
        assert client.function("free_tables").outcome == "invalid"
        assert client.function("unknown").status_code == 404
