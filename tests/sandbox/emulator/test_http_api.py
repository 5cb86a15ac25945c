"""Millis' HTTP API as the sandbox has it."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from millis_hooks import EndOfCall
from millis_hooks.masking.secret_patterns import MASK
from support.app import MakeHooks
from support.emulator import (
    API,
    KEY,
    OUTBOUND,
    VOICE,
    call,
    client_of,
    entry,
    rehearsing,
    until,
)
from support.waiting import eventually

CONFIG = {"prompt": "Book a table for {caller}.", "voice": VOICE}


def post(client: TestClient, path: str, body: object, **options: Any) -> Any:
    answer = client.post(API + path, json=body, **options)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_an_outbound_call_reaches_the_handlers_with_its_metadata(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    metadata = {"appointment": "Tuesday", "attempt": 1, "cart": {"items": [1]}}
    ids = post(client, "/start_outbound_call", OUTBOUND | {"metadata": metadata})
    (call,) = eventually(lambda: ended)
    assert (call.session_id, call.call_id) == (ids["session_id"], ids["call_id"])
    assert call.metadata == metadata | {"caller": "Grace"}
    assert (call.customer_phone, call.sandbox) == ("+14155550134", True)
    assert call.call_status == "agent-ended"


def test_fields_that_are_missing_or_wrong_are_named_as_fastapi_does(
    shared_client: TestClient,
) -> None:
    body = {"to_phone": "555 0134", "agent_config": {"session_data_webhook": 7}}
    answer = shared_client.post(f"{API}/start_outbound_call", json=body)
    assert answer.status_code == 422
    places = [tuple(one["loc"])[:3] for one in answer.json()["detail"]]
    hook = ("body", "agent_config", "session_data_webhook")
    assert places == [hook, hook, ("body", "from_phone"), ("body", "to_phone")]
    assert all(one.keys() == {"loc", "msg", "type"} for one in answer.json()["detail"])


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"[" * 9999])
def test_a_body_that_is_not_json_gets_422(shared_client: TestClient, body: bytes) -> None:
    answer = shared_client.post(f"{API}/start_outbound_call", content=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["type"] == "json_invalid"


def test_the_key_stands_alone_in_its_header(shared_client: TestClient) -> None:
    def status(path: str, **headers: str) -> int:
        del shared_client.headers["authorization"]
        try:
            return shared_client.get(API + path, headers=headers).status_code
        finally:
            shared_client.headers.update(KEY)

    assert status("/agents") == 401
    assert status("/call-logs") == 422
    assert status("/agents", authorization="Bearer a-key") == 401
    assert status("/agents", authorization="a-key") == 200


def test_agents_are_made_read_changed_and_removed(client: TestClient) -> None:
    hook = {"url": "http://127.0.0.1:9/end", "headers": {"X-Key": "k"}}
    config = CONFIG | {"session_data_webhook": hook, "flow": {"user_start_first": True}}
    agent = post(client, "/agents", {"name": "Bookings", "config": config})
    assert agent["config"] == config
    at = f"{API}/agents/{agent['id']}"
    change = {"session_data_webhook": "http://127.0.0.1:9/other"}
    changed = client.put(at, json={"name": "Bookings", "config": change})
    assert changed.json() == {"success": True}
    config["session_data_webhook"] = "http://127.0.0.1:9/other"
    assert client.get(at).json() == agent | {"config": config}
    assert client.get(f"{API}/agents").json() == [agent | {"config": config}]
    assert client.delete(at).json() == {"success": True}
    assert client.get(at).status_code == client.delete(at).status_code == 404
    assert client.get(at).json() == {"detail": "Agent not found"}


def test_an_agent_is_duplicated_under_an_id_of_its_own(client: TestClient) -> None:
    agent = post(client, "/agents", {"name": "Bookings", "config": CONFIG})
    copy = post(client, f"/agents/{agent['id']}/duplicate", None)
    assert copy["id"] != agent["id"]
    assert copy["config"] == agent["config"]


def test_an_agent_has_a_prompt_and_a_voice(shared_client: TestClient) -> None:
    answer = shared_client.post(f"{API}/agents", json={"name": "a", "config": {"prompt": "p"}})
    assert answer.json()["detail"][0]["loc"] == ["body", "config", "voice"]


def test_a_part_of_a_configuration_is_enough_for_a_call(client: TestClient) -> None:
    parts: list[dict[str, Any] | None] = [
        {"prompt": "p"}, {"first_message": "Hi"}, {"session_data_webhook": None}, {}, None,
    ]  # fmt: skip
    for part in parts:
        ids = post(client, "/start_outbound_call", OUTBOUND | {"agent_config": part})
        used = entry(client, ids["session_id"])["agent_config"]
        assert used.items() >= (part or {}).items()
        assert used["prompt"]
        post(client, "/register_call", {"agent_config": part})


def test_a_call_of_an_agent_that_was_not_made_here_says_so(
    client: TestClient, tmp_path: Path
) -> None:
    made = post(client, "/agents", {"name": "Made", "config": CONFIG})["id"]
    seen = {}
    for agent_id in ("-Ox1typo", made, None):
        ids = post(client, "/start_outbound_call", OUTBOUND | {"agent_id": agent_id})
        entry(client, ids["session_id"])
        with closing(sqlite3.connect(tmp_path / "calls-sandbox.db")) as file:
            sql = "SELECT steps FROM calls WHERE session_id = ?"
            steps = json.loads(file.execute(sql, (ids["session_id"],)).fetchone()[0])
        seen[agent_id] = steps[0]["notes"]
    assert seen[made] == []
    assert "There is no agent -Ox1typo" in seen["-Ox1typo"][0]
    assert "The call names no agent" in seen[None][0]


def test_a_number_calls_with_its_agent_unless_another_is_named(client: TestClient) -> None:
    own, other = (
        post(client, "/agents", {"name": name, "config": CONFIG | {"prompt": f"{name}."}})["id"]
        for name in ("Own", "Other")
    )
    number = OUTBOUND["from_phone"]
    assert post(client, "/set_phone_agent", {"phone": number, "agent_id": own}) == {"success": True}
    ids = post(client, "/start_outbound_call", OUTBOUND | {"agent_config": {"first_message": "Hm"}})
    log = entry(client, ids["session_id"])
    assert (log["agent_id"], log["agent_config"]["prompt"]) == (own, "Own.")
    assert json.loads(log["chat"])[0]["content"] == "Hm"
    ids = post(client, "/start_outbound_call", OUTBOUND | {"agent_id": other})
    assert entry(client, ids["session_id"])["agent_config"]["prompt"] == "Other."

    post(client, f"/phones/{number}/set_agent", {"agent_id": None})
    (phone,) = client.get(f"{API}/phones").json()
    assert phone.items() >= {"id": number, "agent_id": None, "status": "active"}.items()
    ids = post(client, "/start_outbound_call", OUTBOUND)
    assert entry(client, ids["session_id"])["agent_id"] is None


_TOOL = {"name": "find", "description": "Finds."}


#: A part of a configuration, where it is wrong, and the kind of error that FastAPI says.
REFUSED: list[tuple[dict[str, Any], list[str | int], str]] = [
    ({"voice": {"provider": "acme", "voice_id": "v"}}, ["voice", "provider"], "enum"),
    ({"voice": {"provider": ["openai"], "voice_id": "v"}}, ["voice", "provider"], "enum"),
    ({"voice": {"provider": "openai"}}, ["voice", "voice_id"], "missing"),
    ({"language": "en-XX"}, ["language"], "enum"),
    ({"llm": "gpt-4o"}, ["llm"], "model_attributes_type"),
    ({"llm": {"model": "gpt-9"}}, ["llm", "model"], "enum"),
    ({"flow": "x"}, ["flow"], "model_attributes_type"),
    ({"flow": {"response_delay": "long"}}, ["flow", "response_delay", "int"], "int_parsing"),
    ({"flow": {"voicemail": {"action": "sing"}}}, ["flow", "voicemail", "action"], "enum"),
    ({"flow": {"inactivity_handling": {"idle_time": 3}}},
     ["flow", "inactivity_handling", "message"], "missing"),
    ({"tools": [{"name": "find"}]}, ["tools", 0, "description"], "missing"),
    ({"tools": [_TOOL | {"response_mode": "soft"}]}, ["tools", 0, "response_mode"],
     "literal_error"),
    ({"tools": [_TOOL | {"params": [{"name": "day"}]}]},
     ["tools", 0, "params", 0, "required"], "missing"),
    ({"session_timeout": 60}, ["session_timeout"], "model_attributes_type"),
    ({"privacy_settings": {}}, ["privacy_settings", "opt_out_data_collection"], "missing"),
    ({"speech_to_text": {"provider": "ears"}}, ["speech_to_text", "provider"], "enum"),
    ({"promt": "p"}, ["promt"], "extra_forbidden"),
]  # fmt: skip


def test_a_configuration_that_millis_would_refuse_is_refused_with_its_words(
    shared_client: TestClient,
) -> None:
    for part, where, kind in REFUSED:
        for at, body in (("/start_outbound_call", OUTBOUND), ("/register_call", {"agent_id": "a"})):
            answer = shared_client.post(API + at, json=body | {"agent_config": part})
            first = answer.json()["detail"][0]
            assert (answer.status_code, first["loc"]) == (422, ["body", "agent_config", *where])
            assert first["type"] == kind


def test_the_websocket_is_closed_with_the_same_words(shared_client: TestClient) -> None:
    for part, where, _ in REFUSED[:-1]:  # other keys are in no schema
        agent = {"agent_id": "a", "agent_config": part}
        with call(shared_client, data={"agent": agent, "public_key": "k"}) as socket:
            frame = socket.receive()
        assert (frame["type"], frame["code"]) == ("websocket.close", 1008)
        places = ".".join(map(str, ["data", "agent", "agent_config", *where]))
        assert frame["reason"].startswith(f"validation error: {places}: ")


def test_parts_of_a_configuration_that_only_later_pages_have_are_kept(client: TestClient) -> None:
    tool = _TOOL | {"include_metadata": True, "later": {"a": [1]}}
    config = CONFIG | {"tools": [tool], "later": 1}
    agent = post(client, "/agents", {"name": "Later", "config": config})
    assert agent["config"] == config


def test_an_agent_is_changed_with_its_name_and_a_configuration(client: TestClient) -> None:
    agent = post(client, "/agents", {"name": "Bookings", "config": CONFIG})
    bodies: list[dict[str, Any]] = [{"config": {}}, {"name": "a"}, {"name": None, "config": {}}]
    for body in bodies:
        assert client.put(f"{API}/agents/{agent['id']}", json=body).status_code == 422
    assert client.get(f"{API}/agents/{agent['id']}").json() == agent


def test_a_chat_has_only_the_roles_that_there_are(shared_client: TestClient) -> None:
    wrong: list[object] = [
        {"role": "system", "content": "c"},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "c"},
        "hello",
    ]
    for message in wrong:
        said = [{"role": "user", "content": "Hi"}, message]
        chat = {"agent": {"agent_id": "a"}, "messages": said}
        answer = shared_client.post(f"{API}/chat/completions", json=chat)
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"][:4] == ["body", "messages", 1, "UserMessage"]


def test_the_calls_of_an_agent_are_listed_without_nulls(client: TestClient) -> None:
    assert client.get(f"{API}/agents/-Ox1none/call-histories").json() == {
        "items": [], "pagination": {"success": True},
    }  # fmt: skip
    mine = OUTBOUND | {"agent_id": "-Ox1mine"}
    busy = post(client, "/start_outbound_call", mine | {"to_phone": "+15005550003"})
    held = post(client, "/start_outbound_call", mine)
    post(client, "/start_outbound_call", OUTBOUND | {"agent_id": "-Ox1other"})
    logs = [entry(client, ids["session_id"]) for ids in (busy, held)]

    def listed(**query: float) -> list[dict[str, Any]]:
        at = f"{API}/agents/-Ox1mine/call-histories"
        items: list[dict[str, Any]] = client.get(at, params=query).json()["items"]
        return items

    assert {one["session_id"] for one in listed()} == {log["session_id"] for log in logs}
    assert len(listed(limit=1)) == len(listed(start_at=min(log["ts"] for log in logs))) == 1
    (missed,) = (one for one in listed() if one["call_status"] == "busy")
    assert (missed["chat"], missed["cost_breakdown"]) == ("", [])
    answer = client.get(f"{API}/agents/a/call-histories", params={"limit": "all"})
    assert answer.json()["detail"][0]["loc"] == ["query", "limit"]


def test_a_call_by_sip_is_registered(client: TestClient, ended: list[EndOfCall]) -> None:
    body = {"agent_id": "a1", "metadata": {"plan": "gold"}, "include_metadata_in_prompt": None}
    ids = post(client, "/register_sip_call", body)
    assert ids["sip"] == ids["sip_uri"] == f"sip:call-{ids['call_id']}@sip.invalid"
    with call(client, data={"call_id": ids["call_id"], "public_key": "k"}) as socket:
        until(socket, "onready")
    assert eventually(lambda: ended)[0].metadata["plan"] == "gold"


def test_a_function_is_called_in_a_call_that_is_under_way(
    make_hooks: MakeHooks, ended: list[EndOfCall]
) -> None:
    with client_of(rehearsing(make_hooks, ended)) as client:
        tools = {"tools": [_TOOL | {"webhook": "http://127.0.0.1:9/"}]}
        agent = {"agent_id": "a", "agent_config": tools}
        with call(client, data={"agent": agent, "public_key": "k"}) as socket:
            session_id = until(socket, "onready")[0]["payload"]["session_id"]
            at = f"/sessions/{session_id}/call"
            eventually(lambda: client.post(API + at, json={"name": "find"}).status_code == 200)
            asked = post(client, at, {"name": "find", "params": {"day": 1}})
            assert asked["result"].startswith("Failed: ")
            assert client.post(API + at, json={"params": {}}).status_code == 422
        eventually(lambda: ended)
        assert client.post(API + at, json={"name": "find"}).status_code == 404
    assert ended[0].function_calls[-1].params["day"] == 1


def test_overrides_of_a_call_are_merged_over_its_agent(client: TestClient) -> None:
    agent = post(client, "/agents", {"name": "Bookings", "config": CONFIG})
    override = {"agent_id": agent["id"], "agent_config": {"first_message": "Hi {caller}"}}
    ids = post(client, "/start_outbound_call", OUTBOUND | override)
    log = entry(client, ids["session_id"])
    assert log["agent_config"]["prompt"] == CONFIG["prompt"]
    assert json.loads(log["chat"])[0] == {"role": "assistant", "content": "Hi Grace"}


def test_a_null_webhook_of_an_agent_is_none(client: TestClient, ended: list[EndOfCall]) -> None:
    silent = CONFIG | {"extra_prompt_webhook": None, "session_data_webhook": None}
    agent = post(client, "/agents", {"name": "Silent", "config": silent})
    ids = post(client, "/start_outbound_call", OUTBOUND | {"agent_id": agent["id"]})
    assert entry(client, ids["session_id"])["metadata"] == {}
    assert ended == []


def test_numbers_for_tests_are_never_reached(client: TestClient, ended: list[EndOfCall]) -> None:
    ids = post(client, "/start_outbound_call", OUTBOUND | {"to_phone": "+15005550003"})
    log = entry(client, ids["session_id"])
    assert (log["call_status"], log["chat"], log["duration"]) == ("busy", None, 0)
    assert ended == []


def test_a_call_goes_as_the_scenario_in_the_address(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    post(client, "/as/voicemail/start_outbound_call", OUTBOUND)
    (call,) = eventually(lambda: ended)
    assert str(call.call_status).startswith("voicemail")
    assert client.post(f"{API}/as/nothing/start_outbound_call").status_code == 404
    assert client.post(f"{API}/as/..%2fpolicy/start_outbound_call").status_code == 404


def test_the_policy_in_an_address_is_that_of_the_call(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    at = "/with/end_of_call_if_unreached=true,null_removes=1/as/inbound/start_outbound_call"
    post(client, at, OUTBOUND | {"to_phone": "+15005550001"})
    assert eventually(lambda: ended)[0].call_status == "failed"


def test_an_unknown_policy_is_not_found(shared_client: TestClient) -> None:
    for policy in ("merge=sideways", "merge", "", "no_such=1", "late_by_s=nan"):
        answer = shared_client.post(f"{API}/with/{policy}/start_outbound_call", json=OUTBOUND)
        assert answer.status_code == 404
        with (
            pytest.raises(WebSocketDisconnect),
            call(shared_client, f"/with/{policy}/millis") as socket,
        ):
            socket.receive_text()


def test_a_call_is_terminated_and_a_message_said_before(
    make_hooks: MakeHooks, ended: list[EndOfCall]
) -> None:
    with client_of(rehearsing(make_hooks, ended, sandbox_pace=0.01)) as client:
        ids = post(client, "/start_outbound_call", OUTBOUND)
        at = f"{API}/call-logs/{ids['session_id']}"
        eventually(lambda: client.get(at).json().get("call_status") == "in-progress")
        end = f"/sessions/{ids['session_id']}/terminate"
        assert post(client, end, None) == {"success": True}
        (call,) = eventually(lambda: ended)
        assert call.call_status == "api-ended"
        eventually(lambda: client.post(API + end).status_code == 404)  # its session ends after it


def test_call_logs_are_paged_by_the_cursor_newest_first(client: TestClient) -> None:
    made = [post(client, "/start_outbound_call", OUTBOUND)["session_id"] for _ in range(5)]
    for session_id in made:
        entry(client, session_id)
    seen: list[str] = []
    query: dict[str, Any] = {"limit": 2}
    while True:
        page = client.get(f"{API}/call-logs", params=query).json()
        seen += [one["session_id"] for one in page["histories"]]
        if page["next_cursor"] is None:
            break
        query["start_after_ts"] = page["next_cursor"]
    assert sorted(seen) == sorted(made)


def test_call_logs_are_filtered(client: TestClient) -> None:
    busy = post(client, "/start_outbound_call", OUTBOUND | {"to_phone": "+15005550003"})
    other = post(client, "/start_outbound_call", OUTBOUND | {"agent_id": "-Ox1another"})
    logs = [entry(client, ids["session_id"]) for ids in (busy, other)]

    def found(**query: object) -> list[str]:
        page = client.get(f"{API}/call-logs", params=query).json()  # type: ignore[arg-type]
        return [one["session_id"] for one in page["histories"]]

    assert found(call_status="busy") == found(phone_number="+15005550003") == [busy["session_id"]]
    assert found(agent_id="-Ox1another") == [other["session_id"]]
    assert len(found(start_time=min(log["ts"] for log in logs))) == 2
    assert found(end_time=0) == []


def test_a_limit_over_100_is_422(shared_client: TestClient) -> None:
    answer = shared_client.get(f"{API}/call-logs", params={"limit": 101})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["query", "limit"]


def test_call_logs_show_no_secret_of_ours(client: TestClient) -> None:
    ids = post(client, "/start_outbound_call", OUTBOUND)
    webhook = entry(client, ids["session_id"])["agent_config"]["session_data_webhook"]
    assert webhook["url"] == "http://localhost:8000/millis/end-of-call"
    assert webhook["headers"] == {"Authorization": MASK}


def test_calls_and_agents_outlive_the_process(
    make_hooks: MakeHooks, ended: list[EndOfCall], tmp_path: Path
) -> None:
    with client_of(rehearsing(make_hooks, ended)) as client:
        agent = post(client, "/agents", {"name": "Bookings", "config": CONFIG})
        session_id = post(client, "/start_outbound_call", OUTBOUND)["session_id"]
        log = entry(client, session_id)
    with client_of(rehearsing(make_hooks, ended)) as client:
        assert client.get(f"{API}/agents/{agent['id']}").json() == agent
        assert entry(client, session_id) == log
    assert (tmp_path / "calls-sandbox.db").exists()


def test_a_chat_is_answered_as_events_and_has_an_end_of_call(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    chat = {
        "agent": {"agent_id": "-Ox1chat", "metadata": {"plan": "gold"}},
        "messages": [{"role": "user", "content": "A table for two"}],
        "end_of_session": True,
    }
    answer = client.post(f"{API}/chat/completions", json=chat)
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    deltas = [json.loads(event)["choices"][0]["delta"] for event in events[:-1]]
    assert "".join(delta.get("content", "") for delta in deltas) == "You said: A table for two"
    assert events[-1] == "[DONE]"
    (call,) = eventually(lambda: ended)
    assert (call.call_status, call.metadata) == (
        "chat_completion", {"plan": "gold", "caller": "Grace"},
    )  # fmt: skip


def test_calls_of_agents_that_opted_out_are_not_stored(
    client: TestClient, ended: list[EndOfCall]
) -> None:
    private = CONFIG | {"privacy_settings": {"opt_out_data_collection": True}}
    ids = post(client, "/start_outbound_call", OUTBOUND | {"agent_config": private})
    eventually(lambda: ended)
    assert client.get(f"{API}/call-logs/{ids['session_id']}").status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"host": "hooks.example.com"},
        {"host": "[bad"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"x-forwarded-for": "203.0.113.7"},
        {"CF-Connecting-IP": "203.0.113.7"},
        {"X-Forwarded-Proto": "https"},
        {"Fly-Client-IP": "203.0.113.7"},
        {"X-Amzn-Trace-Id": "Root=1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "cross-site", "referer": "https://evil.example/"},
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
    ],
)
def test_requests_from_other_machines_are_refused(
    shared_client: TestClient, headers: dict[str, str]
) -> None:
    assert shared_client.get(f"{API}/agents", headers=headers).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"sec-fetch-site": "none"},
        {"sec-fetch-site": "same-site", "origin": "http://localhost:3000"},
        {"sec-fetch-site": "cross-site", "origin": "http://127.0.0.1:3000"},
        {"sec-fetch-site": "cross-site", "referer": "http://127.0.0.1:3000/page"},
    ],
)
def test_requests_from_pages_on_this_machine_are_accepted(
    shared_client: TestClient, headers: dict[str, str]
) -> None:
    assert shared_client.get(f"{API}/agents", headers=headers).status_code == 200


def test_requests_with_the_key_are_accepted_from_anywhere(
    make_hooks: MakeHooks, ended: list[EndOfCall]
) -> None:
    key = "a key of the whole team"
    elsewhere = {"host": "hooks.example.com"}
    with client_of(rehearsing(make_hooks, ended, sandbox_key=key)) as client:
        assert client.get(f"{API}/agents", headers=elsewhere).status_code == 401
        has_key = elsewhere | {"authorization": key}
        assert client.get(f"{API}/agents", headers=has_key).status_code == 200


def test_without_a_sandbox_there_is_no_api(make_hooks: MakeHooks) -> None:
    with client_of(make_hooks()) as client:
        for path in ("/agents", "/call-logs", "/agents/embedded", "/millis"):
            assert client.get(API + path, follow_redirects=False).status_code in (303, 404)
        assert client.post(f"{API}/start_outbound_call", json=OUTBOUND).status_code in (303, 404)


def test_the_widget_is_a_page_that_frames_of_this_machine_may_show(
    shared_client: TestClient,
) -> None:
    page = shared_client.get(f"{API}/agents/embedded", params={"id": "a", "k": "b", "name": "<b>"})
    assert page.status_code == 200
    assert "<b>" not in page.text
    assert "frame-ancestors 'self' http://localhost:*" in page.headers["content-security-policy"]
    for name in ("widget.js", "widget.css"):
        assert shared_client.get(f"{API}/as/web/agents/embedded/{name}").status_code == 200


def test_calls_over_the_limit_are_refused_with_retry_after(
    shared_client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.sandbox.emulator.sessions.MAX_LIVE", 0)
    answer = shared_client.post(f"{API}/start_outbound_call", json=OUTBOUND)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    with call(shared_client) as socket:
        frame = socket.receive()
    assert (frame["type"], frame["code"]) == ("websocket.close", 1013)
