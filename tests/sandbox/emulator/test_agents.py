"""A team's own model as the agent, over Millis' `custom_llm_websocket` protocol."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from millis_hooks import EndOfCall
from millis_hooks.sandbox.agents import CustomLlm, SpokenAnswer
from support.app import MakeHooks
from support.emulator import API, OUTBOUND, call, client_of, entry, initiate, rehearsing, until
from support.waiting import eventually

Says = Callable[["Model", dict[str, Any]], None]


class Model:
    """A model of a team: `says` answers each message; what it was sent is in `heard`."""

    def __init__(self, says: Says) -> None:
        self.heard: list[dict[str, Any]] = []
        self.closed: tuple[int | None, str] | None = None
        self._says = says
        self._socket: ServerConnection

    def hold(self, socket: ServerConnection) -> None:
        self._socket = socket
        try:
            for text in socket:
                self.heard.append(json.loads(text))
                self._says(self, self.heard[-1])
        except ConnectionClosed:
            pass
        self.closed = (socket.close_code, socket.close_reason or "")

    def send(self, kind: str, stream_id: int, **data: Any) -> None:
        self._socket.send(json.dumps({"type": kind, "data": {"stream_id": stream_id, **data}}))

    def answer(self, stream_id: int, *parts: str) -> None:
        for part in parts:
            self.send("stream_response", stream_id, content=part, end_of_stream=False)
        self.send("stream_response", stream_id, content="", end_of_stream=True)

    def send_text(self, text: str) -> None:
        self._socket.send(text)

    def types(self) -> list[str]:
        return [message["type"] for message in self.heard]


def polite(model: Model, message: dict[str, Any]) -> None:
    """Greets, and repeats what was said last."""
    if message["type"] == "start_call":
        model.answer(message["data"]["stream_id"], "Good ", "morning.")
    elif message["type"] == "stream_request":
        said = message["data"]["transcript"][-1]["content"]
        model.answer(message["data"]["stream_id"], f"You mean: {said}")


@pytest.fixture
def model_at() -> Iterator[Callable[[Says], tuple[Model, dict[str, Any]]]]:
    """Starts a model, and returns it with the agent that has it."""
    with ExitStack() as stack:

        def start(says: Says) -> tuple[Model, dict[str, Any]]:
            model = Model(says)
            server = stack.enter_context(serve(model.hold, "127.0.0.1", 0))
            stack.callback(server.shutdown)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            port = server.socket.getsockname()[1]
            url = f"ws://127.0.0.1:{port}/"
            return model, {"agent_id": "-Ox1m", "agent_config": {"custom_llm_websocket": url}}

        yield start


MakeModel = Callable[[Says], tuple[Model, dict[str, Any]]]


def test_a_model_talks_with_a_scripted_caller(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    model, agent = model_at(polite)
    body = OUTBOUND | agent | {"metadata": {"plan": "gold"}}
    ids = client.post(f"{API}/start_outbound_call", json=body).json()
    (one,) = eventually(lambda: ended)
    assert [(turn.role, turn.content) for turn in one.chat] == [
        ("assistant", "Good morning."),
        ("user", "Oh yes. I will be there."),
        ("assistant", "You mean: Oh yes. I will be there."),
    ]
    assert model.heard[0]["data"] == {
        "stream_id": 0, "agent_id": "-Ox1m", "session_id": ids["session_id"],
        "call_sid": ids["call_id"], "metadata": {"plan": "gold", "caller": "Grace"},
        "voip": {"from": OUTBOUND["from_phone"], "to": OUTBOUND["to_phone"]},
    }  # fmt: skip
    assert model.types() == [
        "start_call", "playback_finished", "partial_transcript", "stream_request",
        "playback_finished",
    ]  # fmt: skip


def test_parts_after_the_end_of_an_answer_are_not_said(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    def talkative(model: Model, message: dict[str, Any]) -> None:
        polite(model, message)
        if message["type"] == "start_call":
            model.answer(message["data"]["stream_id"], "And again.")

    model, agent = model_at(talkative)
    client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent)
    (one,) = eventually(lambda: ended)
    assert "And again." not in [turn.content for turn in one.chat]
    assert model.types().count("playback_finished") == 2


def test_a_call_continues_an_earlier_one(client: TestClient, model_at: MakeModel) -> None:
    first = client.post(f"{API}/start_outbound_call", json=OUTBOUND).json()["session_id"]
    said = json.loads(entry(client, first)["chat"])
    more = {"role": "user", "content": "More"}
    model, agent = model_at(polite)
    earlier = {"session_continuation": {"session_id": first, "messages": [more]}}
    second = client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent | earlier).json()
    entry(client, second["session_id"])
    asked = next(one for one in model.heard if one["type"] == "stream_request")
    assert asked["data"]["transcript"][: len(said) + 1] == [*said, more]

    third, agent = model_at(polite)
    earlier = {"session_continuation": {"session_id": second["session_id"]}}
    client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent | earlier)
    asked = eventually(lambda: [one for one in third.heard if one["type"] == "stream_request"])[0]
    assert asked["data"]["transcript"][: len(said) + 1] == [*said, more]


def test_a_caller_interrupts_the_model(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    def slow(model: Model, message: dict[str, Any]) -> None:
        if message["type"] == "start_call":
            model.send("stream_response", 0, content="Well, ", end_of_stream=False, flush=True)
        elif message["type"] == "stream_request":
            model.answer(0, "too late")
            model.answer(message["data"]["stream_id"], "Yes?")

    model, agent = model_at(slow)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        until(socket, "onresponsetext", "Well, ")
        socket.send_json({"method": "say", "data": "Stop"})
        until(socket, "onresponsetext", "Yes?")
    assert model.heard[1] == {"type": "interrupt", "stream_id": 0}
    (one,) = eventually(lambda: ended)
    assert [turn.content for turn in one.chat] == ["Well, ", "Stop", "Yes?"]


def test_an_answer_that_is_flushed_token_by_token_is_one_turn(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    tokens = ["Gu", "ten", " Tag", ",", " Frau  Dr", ".", " Noether", "!\n", "Zu", " Diensten", "."]

    def eager(model: Model, message: dict[str, Any]) -> None:
        if message["type"] in {"start_call", "stream_request"}:
            for token in tokens:
                model.send(
                    "stream_response", message["data"]["stream_id"], content=token, flush=True
                )
            model.send("stream_response", message["data"]["stream_id"], end_of_stream=True)

    model, agent = model_at(eager)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        seen = until(socket, "onresponsetext", "".join(tokens))
        assert sum(message["method"] == "start_answering" for message in seen) == 1
        assert until(socket, "onresponsetext")[-1]["payload"] == {"is_final": True}
        socket.send_json({"method": "say", "data": "Danke"})
        until(socket, "onresponsetext", "".join(tokens))
    (one,) = eventually(lambda: ended)
    assert [turn.content for turn in one.chat] == ["".join(tokens), "Danke", "".join(tokens)]
    asked = next(one for one in model.heard if one["type"] == "stream_request")
    assert [turn["content"] for turn in asked["data"]["transcript"]] == ["".join(tokens), "Danke"]


def test_a_sentence_is_spoken_while_the_next_one_is_not_there_yet(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    def slow(model: Model, message: dict[str, Any]) -> None:
        if message["type"] == "start_call":
            model.send("stream_response", 0, content="It costs 3.50. And")

    model, agent = model_at(slow)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        heard = until(socket, "onresponsetext", "It costs 3.50.")
        assert heard[-1]["payload"] == {"is_final": False}
        model.send("stream_response", 0, content=" tea?", end_of_stream=True)
        until(socket, "onresponsetext", "It costs 3.50. And tea?")
    assert [turn.content for turn in eventually(lambda: ended)[0].chat] == [
        "It costs 3.50. And tea?"
    ]


def test_a_scripted_caller_waits_for_a_long_answer_but_not_for_a_missing_one(
    make_hooks: MakeHooks,
    model_at: MakeModel,
    ended: list[EndOfCall],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    impatient = partial(CustomLlm, answer_timeout_s=2)
    monkeypatch.setattr("millis_hooks.sandbox.emulator.sessions.CustomLlm", impatient)
    greeting = "First. " * 10

    def greets(model: Model, message: dict[str, Any]) -> None:
        if message["type"] == "start_call":
            model.answer(0, greeting)

    model, agent = model_at(greets)
    with client_of(rehearsing(make_hooks, ended, sandbox_pace=6)) as client:
        client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent)
        (one,) = eventually(lambda: ended)
    assert [turn.content for turn in one.chat] == [greeting, "Oh yes. I will be there."]
    assert "interrupt" not in model.types()


def test_a_function_is_called_between_two_turns_of_a_model(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    model, agent = model_at(polite)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        until(socket, "onresponsetext", "Good morning.")
        socket.send_json({"method": "call", "data": {"name": "find"}})
        until(socket, "onfunction")
        socket.send_json({"method": "say", "data": "Well?"})
        until(socket, "onresponsetext", "You mean: Well?")
    asked = next(one for one in model.heard if one["type"] == "stream_request")
    roles = [turn["role"] for turn in asked["data"]["transcript"]]
    assert roles == ["assistant", "assistant", "tool", "user"]
    assert eventually(lambda: ended)[0].function_calls[0].name == "find"


def test_a_greeting_may_have_an_id_of_its_own(client: TestClient, model_at: MakeModel) -> None:
    def early(model: Model, message: dict[str, Any]) -> None:
        if message["type"] == "start_call":
            model.answer(1, "Welcome.")
        elif message["type"] == "stream_request":
            model.answer(message["data"]["stream_id"], "Of course.")

    model, agent = model_at(early)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        until(socket, "onresponsetext", "Welcome.")
        eventually(lambda: "playback_finished" in model.types())
        socket.send_json({"method": "say", "data": "A table"})
        until(socket, "onresponsetext", "Of course.")
    asked = next(one for one in model.heard if one["type"] == "stream_request")
    assert asked["data"]["stream_id"] == 2


def test_parts_of_answers_to_older_requests_are_ignored(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    def mixed(model: Model, message: dict[str, Any]) -> None:
        if message["type"] != "stream_request" or message["data"]["stream_id"] < 2:
            return
        for old, new in (("No", "Yes"), (", never", ", always"), (".", ".")):
            model.send("stream_response", 1, content=old, flush=True)
            model.send("stream_response", 2, content=new)
        model.send("stream_response", 1, end_of_stream=True)
        model.send("stream_response", 2, end_of_stream=True)

    _, agent = model_at(mixed)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        socket.send_json({"method": "say", "data": "May I"})
        socket.send_json({"method": "say", "data": "smoke?"})
        until(socket, "onresponsetext", "Yes, always.")
    (one,) = eventually(lambda: ended)
    assert [turn.content for turn in one.chat] == ["May I", "smoke?", "Yes, always."]


def test_an_empty_answer_is_no_turn(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    def silent(model: Model, message: dict[str, Any]) -> None:
        if message["type"] == "start_call":
            model.answer(0, " ", "\n")
        elif message["type"] == "stream_request":
            model.answer(message["data"]["stream_id"], "", "I am here.")

    model, agent = model_at(silent)
    with call(client, data=initiate() | {"agent": agent}) as socket:
        eventually(lambda: "playback_finished" in model.types())
        socket.send_json({"method": "say", "data": "Hello?"})
        until(socket, "onresponsetext", "I am here.")
    assert "interrupt" not in model.types()
    assert [turn.content for turn in eventually(lambda: ended)[0].chat] == ["Hello?", "I am here."]


def test_sentences_not_begun_at_an_interruption_are_dropped(
    make_hooks: MakeHooks, model_at: MakeModel, ended: list[EndOfCall]
) -> None:
    def long_winded(model: Model, message: dict[str, Any]) -> None:
        if message["type"] == "start_call":
            model.answer(0, "First of all. ", "Secondly. ", "And so on.")

    model, agent = model_at(long_winded)
    with client_of(rehearsing(make_hooks, ended, sandbox_pace=0.001)) as client:
        with call(client, data=initiate() | {"agent": agent}) as socket:
            until(socket, "onresponsetext", "First of all.")
            socket.send_json({"method": "say", "data": "Stop"})
            until(socket, "ontranscript", "Stop")
        (one,) = eventually(lambda: ended)
    assert [turn.content for turn in one.chat] == ["First of all.", "Stop"]
    assert model.heard[1] == {"type": "interrupt", "stream_id": 0}


@pytest.mark.parametrize(
    ("parts", "spoken"),
    [
        (["One", ". Two", "."], ["One.", " Two."]),
        (["At 10.30 sharp"], []),
        (["«Ja!» sagt sie"], ["«Ja!»"]),
        (["好。是", "吗"], ["好。"]),
        (["Wait... what?! No"], ["Wait... what?!"]),
        ([" ", "\n", "Hm."], [" \nHm."]),
        (["." * 50_000 + "a"] * 4, []),
    ],
)
def test_a_sentence_is_complete_where_its_mark_ends_it(parts: list[str], spoken: list[str]) -> None:
    said: list[str] = []
    answer = SpokenAnswer(0, speak=said.append, chars_per_s=1e9)
    for part in parts:
        answer.take(part, is_flushed=False, pause_s=0, is_last=False)
    answer.take("", is_flushed=False, pause_s=0, is_last=True)
    asyncio.run(answer.play())
    rest = "".join(parts).removeprefix("".join(spoken))
    assert said == [*spoken, *([rest] if rest else [])]


@pytest.mark.parametrize(
    ("kind", "data", "functions"),
    [
        ("end_call", {}, []),
        ("transfer_call", {"destination": "+14155550177"}, ["call_transfer"]),
    ],
)
def test_a_model_ends_or_transfers_the_call(
    client: TestClient,
    model_at: MakeModel,
    ended: list[EndOfCall],
    kind: str,
    data: dict[str, str],
    functions: list[str],
) -> None:
    _, agent = model_at(lambda model, message: model.send(kind, 0, **data))
    client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent)
    (one,) = eventually(lambda: ended)
    assert one.call_status == "agent-ended"
    assert [function.name for function in one.function_calls] == functions


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("hello", "The model sent no JSON"),
        ("[1]", "The model sent a list of 1 item, not an object."),
        (
            '{"type": "sing"}',
            "The model's type is none of end_call, stream_response, transfer_call",
        ),
        ('{"type": "end_call"}', "A end_call of the model has no data with a stream_id."),
    ],
)
def test_a_model_that_breaks_the_protocol_gets_the_reason(
    client: TestClient, model_at: MakeModel, ended: list[EndOfCall], text: str, reason: str
) -> None:
    model, agent = model_at(lambda model, message: model.send_text(text))
    client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent)
    (one,) = eventually(lambda: ended)
    assert one.call_status == "error"
    assert reason in (one.error_message or "")
    code, given = eventually(lambda: model.closed)  # type: ignore[misc]
    assert code == 1008
    assert given.startswith(reason)


def test_an_unreachable_model_ends_the_call_with_an_error(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    agent = {"agent_config": {"custom_llm_websocket": "ws://127.0.0.1:9/"}, "agent_id": "a"}
    client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent)
    (one,) = eventually(lambda: ended)
    assert (one.call_status, one.chat) == ("error", [])


def test_a_model_elsewhere_is_not_called(client: TestClient, ended: list[EndOfCall]) -> None:
    agent = {"agent_config": {"custom_llm_websocket": "wss://llm.example/"}, "agent_id": "a"}
    client.post(f"{API}/start_outbound_call", json=OUTBOUND | agent)
    (one,) = eventually(lambda: ended)
    assert "not on this machine" in (one.error_message or "")
