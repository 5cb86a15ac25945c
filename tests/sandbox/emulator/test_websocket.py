"""The websocket of the sandbox, as native clients use it; the Web SDK is in tests/browser."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import date
from pathlib import Path

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from millis_hooks import EndOfCall, FunctionRequest
from millis_hooks.sandbox.emulator.websocket import SAMPLES_PER_S, tone
from support.app import MakeHooks
from support.emulator import (
    API,
    OUTBOUND,
    VOICE,
    call,
    client_of,
    entry,
    initiate,
    until,
)
from support.waiting import eventually


def test_a_caller_says_something_and_hangs_up(client: TestClient, ended: list[EndOfCall]) -> None:
    with call(client, data=initiate(metadata={"plan": "gold", "seats": [1, 2]})) as socket:
        (ready,) = until(socket, "onready")
        socket.send_json({"method": "say", "data": "Good morning"})
        seen = until(socket, "onresponsetext", "You said: Good morning")
    (one,) = eventually(lambda: ended)
    assert one.session_id == ready["payload"]["session_id"]
    assert (one.metadata["seats"], one.metadata["caller"]) == ([1, 2], "Grace")
    assert one.call_status == "user-ended"
    assert {"method": "ontranscript", "data": "Good morning", "payload": {"is_final": True}} in seen


def test_an_answer_is_announced_and_grows(client: TestClient) -> None:
    with call(client) as socket:
        words = "Hello, this is the sandbox. How may I help?"
        begun, part, whole = until(socket, "onresponsetext", words)[-3:]
    assert begun == {"method": "start_answering"}
    assert (whole["payload"], part["payload"]) == ({"is_final": True}, {"is_final": False})
    assert words.startswith(part["data"])


def test_sound_is_16_khz_and_as_long_as_the_words(client: TestClient) -> None:
    agent = {"agent_id": "a", "agent_config": {"first_message": "x" * 30}}
    with call(client, data=initiate() | {"agent": agent}) as socket:
        until(socket, "onresponsetext")
        frames = [socket.receive_bytes() for _ in range(20)]
        assert b"".join(frames) == b"".join(tone(2.0))
        assert sum(map(len, frames)) == 2 * 16_000 * 2


def test_a_ping_gets_its_data_back(client: TestClient) -> None:
    with call(client) as socket:
        socket.send_json({"method": "ping", "data": "1763735000000"})
        assert until(socket, "pong")[-1] == {"method": "pong", "data": "1763735000000"}
        socket.send_json({"method": "ping"})
        assert until(socket, "pong")[-1] == {"method": "pong"}


def test_a_scenario_is_run_and_the_connection_closed(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    with call(client, "/as/tool-calls/millis") as socket:
        methods = {message["method"] for message in until(socket, "onsessionended")}
        assert methods == {
            "onready", "start_answering", "onresponsetext", "ontranscript", "onfunction",
            "onsessionended",
        }  # fmt: skip
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
    assert closed.value.code == 1000
    assert eventually(lambda: ended)[0].call_status == "agent-ended"


def test_a_caller_hangs_up_with_any_status(client: TestClient, ended: list[EndOfCall]) -> None:
    with call(client) as socket:
        socket.send_json({"method": "hang_up", "data": "voicemail_hangup"})
        until(socket, "onsessionended")
    assert eventually(lambda: ended)[0].call_status == "voicemail-hangup"


def silence(seconds: float) -> bytes:
    return bytes(2 * round(seconds * SAMPLES_PER_S))


def test_speaking_over_the_agent_interrupts_it(client: TestClient, ended: list[EndOfCall]) -> None:
    agent = {"agent_id": "a", "agent_config": {"first_message": "A long message. " * 40}}
    with call(client, data=initiate() | {"agent": agent}) as socket:
        until(socket, "onresponsetext", agent["agent_config"]["first_message"])  # type: ignore[index]
        socket.send_bytes(silence(0.1) + b"".join(tone(0.1)) + silence(0.7))
        noise = until(socket, "unpause")
        for frame in tone(0.5):
            socket.send_bytes(frame)
        socket.send_bytes(silence(0.7))
        speech = until(socket, "ontranscript", "[speech, 0.5 s]")
    assert [message["method"] for message in noise] == ["pause", "unpause"]
    assert [message["method"] for message in speech[:2]] == ["pause", "clear"]
    assert eventually(lambda: ended)[0].call_status == "user-ended"


def test_an_agent_made_up_for_the_call_has_no_id(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    config = {"prompt": "p", "voice": VOICE, "first_message": "Hi {caller}"}
    with call(client, data=initiate() | {"agent": {"agent_config": config}}) as socket:
        until(socket, "onresponsetext", "Hi Grace")
    assert eventually(lambda: ended)[0].agent_id is None


def test_a_registered_call_comes_in_once(client: TestClient, ended: list[EndOfCall]) -> None:
    body = {"agent_id": "-Ox1a", "metadata": {"plan": "gold"}, **OUTBOUND}
    ids = client.post(f"{API}/register_call", json=body).json()
    data = {"call_id": ids["call_id"], "public_key": "k"}
    with call(client, data=data) as socket:
        assert until(socket, "onready")[0]["payload"] == {"session_id": ids["session_id"]}
    (one,) = eventually(lambda: ended)
    assert (one.call_id, one.metadata["plan"]) == (ids["call_id"], "gold")
    assert close_of(client, json.dumps({"method": "initiate", "data": data})) == (
        1008, "No call is registered by this call_id.",
    )  # fmt: skip


def close_of(client: TestClient, *texts: str | bytes, at: str = "/millis") -> tuple[int, str]:
    """Return code and reason of the close that these messages lead to."""
    with client.websocket_connect(f"ws://localhost:8000{API}{at}") as socket:
        for text in texts:
            if isinstance(text, bytes):
                socket.send_bytes(text)
            else:
                socket.send_text(text)
        while (frame := socket.receive())["type"] != "websocket.close":
            pass
    return frame["code"], frame["reason"]


FIRST = json.dumps({"method": "initiate", "data": initiate()})


@pytest.mark.parametrize(
    ("texts", "reason"),
    [
        (['{"method": "initiate"}'], "validation error: data: Input should be"),
        (['{"method": "initiate", "data": {}}'], "There is no public_key, or it is another."),
        (
            [FIRST.replace('"-Ox1ofADoor"', '7, "agent_config": {"tools": 1}')],
            "validation error: data.agent.agent_id: Input should be a valid string; data.agent",
        ),
    ],
)
def test_an_invalid_initiate_closes_with_the_reason(
    client: TestClient, texts: list[str | bytes], reason: str
) -> None:
    code, given = close_of(client, *texts)
    assert code == 1008
    assert given.startswith(reason)


#: What public clients send beside Millis' methods, and what no client should.
ODD = [
    "hello", "", "[]", "7", "[" * 9999, "{}", '{"method": null}', '{"method": ["say"]}',
    '{"method": "app_background", "data": {"at": 1}}', '{"method": "say", "data": 1}',
    '{"method": "hang_up", "data": {}}', '{"method": "call", "data": "find"}',
    '{"method": "call", "data": {"name": "find", "params": [1]}}',
]  # fmt: skip


def test_initiate_may_come_late_and_after_unknown_messages(
    client: TestClient,
) -> None:
    with client.websocket_connect(f"ws://localhost:8000{API}/millis") as socket:
        for text in ODD:
            socket.send_text(text)
        socket.send_bytes(b"\0" * 3)
        socket.send_json({"method": "ping", "data": "1"})
        assert socket.receive_json() == {"method": "pong", "data": "1"}
        socket.send_text(FIRST)
        until(socket, "onready")


def test_unknown_messages_are_ignored_and_noted_once_each(
    client: TestClient, ended: list[EndOfCall], tmp_path: Path
) -> None:
    with call(client) as socket:
        session_id = until(socket, "onready")[0]["payload"]["session_id"]
        for text in [*ODD, FIRST] * 2:
            socket.send_text(text)
        socket.send_json({"method": "say", "data": "Still there?"})
        until(socket, "onresponsetext", "You said: Still there?")
    assert eventually(lambda: ended)[0].call_status == "user-ended"
    entry(client, session_id)
    with closing(sqlite3.connect(tmp_path / "calls-sandbox.db")) as file:
        asked = file.execute("SELECT steps FROM calls WHERE session_id = ?", (session_id,))
        noted = [step for step in json.loads(asked.fetchone()[0]) if step["kind"] == "noted"]
    assert len(noted) == len({note for step in noted for note in step["notes"]}) > 5
    assert any("'app_background'" in step["notes"][0] for step in noted)


def test_the_policy_can_end_a_call_on_an_unknown_message(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    at = "/with/odd_messages=end-call/millis"
    code, reason = close_of(client, FIRST, "hello", at=at)
    assert (code, reason[:26]) == (1008, "A text message is not JSON")
    assert eventually(lambda: ended)[0].call_status == "error"


def test_a_function_of_the_agent_is_called_by_a_message(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    tool = {"name": "find_slot", "description": "Finds.", "messages": ["One moment, {caller}."]}
    agent = {"agent_id": "a", "agent_config": {"tools": [tool], "first_message": None}}
    with call(client, data=initiate() | {"agent": agent}) as socket:
        data = {"name": "find_slot", "params": {"day": "tuesday"}}
        socket.send_json({"method": "call", "data": data})
        until(socket, "onresponsetext", "One moment, Grace.")
        called = until(socket, "onfunction")[-1]
        assert (called["data"], called["payload"]["params"]["day"]) == ("", "tuesday")
        until(socket, "onresponsetext", "find_slot answered: ")
        socket.send_json({"method": "call", "data": {"name": "fly"}})
        until(socket, "onresponsetext", "fly answered: ")
    (one,) = eventually(lambda: ended)
    assert [function.name for function in one.function_calls] == ["find_slot", "fly"]


def test_a_page_of_another_site_gets_no_connection(client: TestClient) -> None:
    with (
        pytest.raises(WebSocketDisconnect),
        call(client, headers={"origin": "https://evil.example"}),
    ):
        pass


def test_without_a_sandbox_no_connection_is_accepted(make_hooks: MakeHooks) -> None:
    with client_of(make_hooks()) as client, pytest.raises(WebSocketDisconnect), call(client):
        pass


def test_a_function_of_the_application_is_called_in_a_simulated_call(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True)
    requests: list[FunctionRequest] = []

    @hooks.function
    def free_tables(call: FunctionRequest, day: date) -> str:
        """Find free tables."""
        requests.append(call)
        return f"Two on {day:%A}."

    with client_of(hooks) as client, call(client) as socket:
        data = {"name": "free_tables", "params": {"day": "2026-12-01"}}
        socket.send_json({"method": "call", "data": data})
        until(socket, "onresponsetext", 'free_tables answered: {"result":"Two on Tuesday."}')
    assert (requests[0].sandbox, requests[0].arguments) == (True, {"day": date(2026, 12, 1)})
