"""Functions of an agent, called as Millis calls them."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from millis_hooks.sandbox.policy import Policy
from millis_hooks.sandbox.scenario import ToolUse
from millis_hooks.sandbox.session import Session
from millis_hooks.sandbox.steps import EndDelivered, FunctionCalled
from millis_hooks.sandbox.transport import Answer, TransportError
from support.sandbox_calls import Receiver, call, json_answer

ADDRESS = "https://tools.example/slots"


def use(
    receiver: Receiver, *uses: ToolUse, tool: dict[str, Any] | None = None, **spec: Any
) -> Session:
    """Have the one function of an agent called."""
    configured = {"name": "find", "webhook": ADDRESS, **(tool or {})}
    turns = uses or (ToolUse("find", {"day": "tuesday"}),)
    return call(receiver, *turns, config={"tools": [configured]}, vintage="v2-extras", **spec)


def query_of(receiver: Receiver) -> dict[str, str]:
    request = receiver.to("slots")[0]
    asked = f"{urlsplit(request.url).query}&{request.query.decode()}"
    return dict(parse_qsl(asked, keep_blank_values=True))


def test_without_a_method_it_is_a_get_with_the_parameters_in_the_query() -> None:
    receiver = Receiver()
    result = use(receiver, tool={"webhook": f"{ADDRESS}?page=1"})
    assert receiver.to("slots")[0].method == "GET"
    assert query_of(receiver) == {
        "page": "1",
        "day": "tuesday",
        "session_id": result.session_id,
    }


def test_a_post_has_them_as_json() -> None:
    receiver = Receiver()
    result = use(receiver, ToolUse("find", {"guests": 2}), tool={"method": "post"})
    request = receiver.to("slots")[0]
    assert (request.method, request.query) == ("POST", b"")
    assert json.loads(request.body or b"") == {"guests": 2, "session_id": result.session_id}
    assert ("content-type", "application/json") in request.headers


def test_the_session_s_id_may_be_excluded() -> None:
    receiver = Receiver()
    use(receiver, tool={"exclude_session_id": True})
    assert query_of(receiver) == {"day": "tuesday"}


def test_headers_are_sent_and_shown_masked() -> None:
    receiver = Receiver()
    result = use(receiver, tool={"header": {"Authorization": "Bearer of the tools"}})
    assert receiver.to("slots")[0].headers == (("Authorization", "Bearer of the tools"),)
    sent = result.log.of(FunctionCalled)[0].sent
    assert sent is not None
    assert sent.headers == {"Authorization": "••••••••"}


@pytest.mark.parametrize(
    ("tool", "policy", "has_it"),
    [
        ({}, Policy(), True),
        ({"include_metadata": None}, Policy(), True),
        ({"include_metadata": False}, Policy(), False),
        ({}, Policy(tool_metadata="if-included"), False),
        ({"include_metadata": True}, Policy(tool_metadata="if-included"), True),
        ({}, Policy(tool_metadata="always"), True),
        ({"include_metadata": True}, Policy(tool_metadata="never"), False),
    ],
)
def test_a_function_gets_the_metadata_where_configuration_or_policy_says_so(
    tool: dict[str, Any], policy: Policy, has_it: bool
) -> None:
    receiver = Receiver()
    use(receiver, tool=tool, policy=policy, metadata={"plan": "gold"})
    assert (query_of(receiver).get("plan") == "gold") is has_it


def test_metadata_may_come_as_one_object() -> None:
    receiver = Receiver()
    policy = Policy(tool_metadata="always", tool_metadata_as="object")
    use(receiver, policy=policy, metadata={"plan": "gold"})
    assert json.loads(query_of(receiver)["metadata"]) == {"plan": "gold"}


def test_variables_are_filled_in_addresses_parameters_and_descriptions() -> None:
    receiver = Receiver()
    params = [{"name": "phone", "type": "string", "description": "{FromPhone}", "required": True}]
    result = use(
        receiver,
        ToolUse("find", {"phone": "{FromPhone}", "nested": ["{who}"]}),
        tool={"webhook": ADDRESS + "?who={who}", "params": params},
        metadata={"who": "Ada & Bob"},
        from_phone="+14155550134",
    )
    asked = query_of(receiver)
    assert (asked["who"], asked["phone"]) == ("Ada & Bob", "+14155550134")
    assert json.loads(asked["nested"]) == ["Ada & Bob"]
    assert result.texts.tools[0]["params"][0]["description"] == "+14155550134"


def test_headers_are_filled_in_unless_the_policy_says_no() -> None:
    plain, filled = Receiver(), Receiver()
    tool = {"header": {"X-Plan": "{plan}"}}
    use(plain, tool=tool, metadata={"plan": "gold"}, policy=Policy(variables_in_headers=False))
    use(filled, tool=tool, metadata={"plan": "gold"})
    assert plain.to("slots")[0].headers == (("X-Plan", "{plan}"),)
    assert filled.to("slots")[0].headers == (("X-Plan", "gold"),)


def test_the_end_of_call_has_the_result_of_a_function() -> None:
    receiver = Receiver(slots=json_answer({"slots": ["10:30"]}))
    result = use(receiver)
    called = receiver.ends[0]["function_calls"][0]
    assert called == {
        "name": "find",
        "params": {"day": "tuesday", "session_id": result.session_id},
        "result": '{"slots": ["10:30"]}',
    }


@pytest.mark.parametrize(
    ("reply", "result"),
    [
        (json_answer({}, 500), "Failed: answered with status 500"),
        (TransportError("no answer within 3 s"), "Failed: no answer within 3 s"),
    ],
)
def test_the_agent_gets_the_failure_of_a_function_and_the_call_continues(
    reply: Answer | TransportError, result: str
) -> None:
    receiver = Receiver(slots=reply)
    ended = use(receiver)
    assert ended.log.of(FunctionCalled)[0].result == result
    assert ended.ending.call_status == "user-ended"


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        (Policy(), ["slots", "end"]),
        (Policy(run_after_call="after-end-of-call"), ["end", "slots"]),
    ],
)
def test_a_function_may_run_after_the_call(policy: Policy, order: list[str]) -> None:
    receiver = Receiver()
    result = use(receiver, tool={"run_after_call": True}, policy=policy)
    assert [request.url.rpartition("/")[2] for request in receiver.sent[1:]] == order
    later, called = result.log.of(FunctionCalled)
    assert later.sent is None
    assert called.number > result.log.of(FunctionCalled)[0].number
    assert result.log.of(EndDelivered)


def test_a_function_without_configuration_or_webhook_is_noted() -> None:
    receiver = Receiver()
    unknown = use(receiver, ToolUse("fly", {}))
    without = use(receiver, tool={"webhook": None})
    assert not receiver.to("slots")
    for result in (unknown, without):
        assert "only noted" in result.log.of(FunctionCalled)[0].notes[0]
    assert "no function of this name" in unknown.log.of(FunctionCalled)[0].notes[0]
    assert [call["name"] for end in receiver.ends for call in end["function_calls"]] == [
        "fly", "find",
    ]  # fmt: skip


def test_a_scenario_s_answer_stands_in_for_the_request() -> None:
    receiver = Receiver()
    result = use(receiver, function_answers={"find": Answer(200, b"none free")})
    assert not receiver.to("slots")
    assert result.log.of(FunctionCalled)[0].result == "none free"


def test_a_function_of_millis_has_the_result_of_the_scenario() -> None:
    receiver = Receiver()
    booked = {"book_meeting_slot": Answer(200, b"Failed: taken")}
    use(receiver, ToolUse("book_meeting_slot"), function_answers=booked)
    assert receiver.ends[0]["function_calls"][0]["result"] == "Failed: taken"


def test_turns_of_functions_are_in_the_current_format_only_if_the_policy_says_so() -> None:
    first, current, asked_for = Receiver(), Receiver(), Receiver()
    turn, config = ToolUse("find"), {"tools": [{"name": "find", "webhook": ADDRESS}]}
    call(first, turn, config=config, vintage="v1b")
    call(current, turn, config=config)
    call(asked_for, turn, config=config, policy=Policy(tool_turns_in_chat=True))
    assert [message["role"] for message in first.ends[0]["chat"]] == ["assistant", "tool"]
    assert current.ends[0]["chat"] == "[]"
    assert json.loads(asked_for.ends[0]["chat"])[1]["role"] == "tool"


@pytest.mark.parametrize("tools", [None, "none", [None, {"name": 3}, {}], {"name": "find"}])
def test_functions_of_any_shape_end_no_call(tools: Any) -> None:
    result = call(Receiver(), ToolUse("find"), config={"tools": tools})
    assert result.texts.tools == ()
