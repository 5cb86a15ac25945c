"""INSECURE and SANDBOX are for one machine, unless a second word says that others are meant."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from millis_hooks.environment.addresses import is_elsewhere, is_loopback
from millis_hooks.exceptions import ConfigError
from millis_hooks.settings import Settings
from support.app import END_OF_CALL, MakeHooks, serving

ELSEWHERE = ["192.0.2.7", "fd00::7", "::ffff:192.0.2.7"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "hooks.internal", ""])
@pytest.mark.parametrize("setting", ["insecure", "sandbox"])
def test_where_others_can_reach_it_a_second_word_is_needed(host: str, setting: str) -> None:
    with pytest.raises(ConfigError, match="MILLIS_HOOKS_EXPOSED=1"):
        Settings.load(**{setting: True}).require_unreachable(host)
    Settings.load(**{setting: True, "exposed": True}).require_unreachable(host)
    Settings.load().require_unreachable(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.3.2.1", "::1", "localhost", "::ffff:127.0.0.1"])
def test_on_this_machine_one_is_enough(host: str) -> None:
    Settings.load(insecure=True, sandbox=True).require_unreachable(host)
    assert is_loopback(host)


def test_each_start_warns(make_hooks: MakeHooks, caplog: pytest.LogCaptureFixture) -> None:
    with serving(make_hooks(insecure=True, sandbox=True, exposed=True)):
        pass
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warnings[:2] == [
        "insecure is set: anyone on any machine that reaches it may deliver calls",
        "sandbox is set: calls can be simulated on any machine that reaches it",
    ]


@pytest.mark.parametrize(
    ("settings", "path", "status"),
    [
        ({"insecure": True}, END_OF_CALL, 403),
        ({"insecure": True, "exposed": True}, END_OF_CALL, 200),
        ({"insecure": True}, "/healthz", 405),
        ({"sandbox": True}, "/sandbox/api/start_outbound_call", 403),
        ({"sandbox": True}, END_OF_CALL, 200),
        ({}, END_OF_CALL, 200),
    ],
)
@pytest.mark.parametrize("host", ELSEWHERE)
def test_under_any_server_what_came_in_from_elsewhere_is_refused(
    make_hooks: MakeHooks, settings: dict[str, Any], path: str, status: int, host: str
) -> None:
    address = f"http://[{host}]" if ":" in host else f"http://{host}"
    with serving(make_hooks(**settings), base_url=address) as client:
        answer = client.post(path, json={"session_id": "a"})
    assert is_elsewhere(host)
    assert (answer.status_code == 403) == (status == 403)
    assert status == 405 or answer.status_code == status


def test_so_is_a_websocket(make_hooks: MakeHooks) -> None:
    client: TestClient = serving(make_hooks(sandbox=True), base_url="http://192.0.2.7")
    with client, pytest.raises(WebSocketDisconnect), client.websocket_connect("/sandbox/api/x"):
        pass
