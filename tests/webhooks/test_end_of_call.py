"""End-of-call through its door: what is acknowledged is on disk, byte for byte."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import threading
import zlib
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import pytest
from starlette.testclient import TestClient

from millis_hooks import EndOfCall, MillisHooks
from millis_hooks.exceptions import TooManyBodiesError
from millis_hooks.webhooks.bodies import Budget
from support.app import END_OF_CALL, PREFETCH, SECRET, MakeHooks, Rows, our_log, serving
from support.paths import SAMPLES
from support.waiting import eventually

BODY = b'{"session_id": "-Ox1", "agent_id": "-agent"}'
OTHER_SECRET = "a-secret-for-tests-only-0002"
RECORDS = "SELECT * FROM deliveries WHERE kind = 'end_of_call' ORDER BY id"
squeeze = partial(gzip.compress, mtime=0)
NAMES = sorted(path.name for path in SAMPLES.glob("*.json"))


@pytest.fixture
def client(hooks: MillisHooks) -> Iterator[TestClient]:
    with serving(hooks) as client:
        yield client


@pytest.mark.both_databases
def test_a_delivery_is_stored_as_it_came(client: TestClient, rows: Rows) -> None:
    response = client.post(f"{END_OF_CALL}?a=1", content=BODY)
    assert (response.status_code, response.json()) == (200, {"received": True})
    [record] = rows(RECORDS)
    assert (record["body"], record["session_id"]) == (BODY, "-Ox1")
    assert (record["outcome"], record["reason"], record["query"]) == ("stored", None, "a=1")


@pytest.mark.parametrize("name", NAMES)
def test_every_documented_payload_becomes_a_call(client: TestClient, rows: Rows, name: str) -> None:
    body = (SAMPLES / name).read_bytes()
    assert client.post(END_OF_CALL, content=body).status_code == 200
    [call] = eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    assert call["session_id"] == str(json.loads(body)["session_id"])
    assert rows(RECORDS)[0]["body"] == body


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is empty"),
        (b"session_id=-Ox1", "not JSON"),
        (b"[1]", "not a JSON object but a list of 1 item"),
        (b"{}", "neither a session_id nor a call_id"),
        # As Millis' page prints its example: a Python literal and an ellipsis are not JSON.
        (
            b"""{"session_id": "-Ox1", "chat": "[]", "function_calls": "[{'name': 'book'}]",
            "agent_config": {...}, "call_status": "user-ended"}""",
            "not JSON: ",
        ),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"session_id": ' + b"1" * 5000 + b"}", "neither a session_id nor a call_id"),
        (b"\xff\xfe\x00", "not JSON"),
    ],
)
def test_what_cannot_be_read_is_kept_and_acknowledged(
    client: TestClient, rows: Rows, body: bytes, reason: str
) -> None:
    assert client.post(END_OF_CALL, content=body).status_code == 200
    [record] = rows(RECORDS)
    assert (record["body"], record["outcome"]) == (body, "unparsed")
    assert reason in record["reason"]


@pytest.mark.parametrize("content_type", [b"", b"text/plain", b"multipart/form-data", b"x" * 300])
def test_the_content_type_does_not_matter(
    client: TestClient, rows: Rows, content_type: bytes
) -> None:
    headers = {b"content-type": content_type}
    assert client.post(END_OF_CALL, content=BODY, headers=headers).status_code == 200
    assert rows(RECORDS)[0]["content_type"] == content_type.decode()[:200]


@pytest.mark.parametrize("length", [b"-1", b"many", b"", b"\xb2"])
def test_an_invalid_length_is_replaced_by_the_measured_one(
    client: TestClient, length: bytes
) -> None:
    headers = {b"content-length": length}
    assert client.post(END_OF_CALL, content=BODY, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("encoding", "body"), [("gzip", squeeze(BODY)), ("deflate", zlib.compress(BODY))]
)
def test_a_compressed_body_is_stored_decompressed(
    client: TestClient, rows: Rows, encoding: str, body: bytes
) -> None:
    client.post(END_OF_CALL, content=body, headers={"content-encoding": encoding})
    assert rows(RECORDS)[0]["body"] == BODY


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", BODY),
        ("br", BODY),
        ("gzip, gzip, zstd", BODY),
        ("", squeeze(BODY)),
        ("identity", zlib.compress(BODY)),
        ("gzip", squeeze(squeeze(BODY))),
        (", ".join(["gzip"] * 500), squeeze(BODY)),
        ("gzip", squeeze(BODY[:9]) + squeeze(BODY[9:])),
    ],
)
def test_a_coding_that_does_not_fit_costs_nothing(
    client: TestClient, rows: Rows, encoding: str, body: bytes
) -> None:
    client.post(END_OF_CALL, content=body, headers={"content-encoding": encoding})
    [record] = rows(RECORDS)
    assert (record["body"], record["outcome"], record["session_id"]) == (BODY, "stored", "-Ox1")
    eventually(lambda: rows("SELECT * FROM calls WHERE session_id = '-Ox1'"))


def test_what_follows_a_compressed_body_is_left_out_and_said(
    client: TestClient, rows: Rows
) -> None:
    client.post(END_OF_CALL, content=squeeze(BODY) + b"trailer")
    [record] = rows(RECORDS)
    assert (record["body"], record["outcome"]) == (BODY, "stored")
    assert record["reason"] == "left out: 7 bytes behind the compressed body"
    eventually(lambda: rows("SELECT * FROM calls WHERE session_id = '-Ox1'"))


def test_a_large_body_is_read_whether_it_is_compressed_or_not(
    client: TestClient, rows: Rows
) -> None:
    large = b'{"session_id": "-Ox1", "pad": [%b{}]}' % (b"{}," * 100_000)
    for body in (large, squeeze(large), b"\xff" * 300_000):
        assert client.post(END_OF_CALL, content=body).status_code == 200
    assert [record["session_id"] for record in rows(RECORDS)] == ["-Ox1", "-Ox1", None]
    assert [record["body"] == large for record in rows(RECORDS)] == [True, True, False]


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("gzip", squeeze(BODY)[:-1]),
        ("br", b"\x8b"),
        ("gzip", squeeze(squeeze(squeeze(BODY)))),
    ],
)
def test_a_body_that_cannot_be_decompressed_is_kept(
    client: TestClient, rows: Rows, encoding: str, body: bytes
) -> None:
    response = client.post(END_OF_CALL, content=body, headers={"content-encoding": encoding})
    assert response.status_code == 200
    [record] = rows(RECORDS)
    assert (record["body"], record["outcome"], record["session_id"]) == (body, "unparsed", None)


def test_a_body_at_the_limit_is_taken_and_one_byte_more_refused(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(max_body_bytes=len(BODY))) as client:
        assert client.post(END_OF_CALL, content=BODY).status_code == 200
        response = client.post(END_OF_CALL, content=BODY + b" ")
    assert (response.status_code, response.headers["connection"]) == (413, "close")


def test_a_body_without_a_length_is_bounded_too(make_hooks: MakeHooks, rows: Rows) -> None:
    with serving(make_hooks(max_body_bytes=10)) as client:
        assert client.post(END_OF_CALL, content=iter([BODY, BODY])).status_code == 413
    [rejected] = rows("SELECT * FROM rejections")
    assert (rejected["status_code"], rows(RECORDS)) == (413, [])


HEADERS = [(b"authorization", f"Bearer {SECRET}".encode())]
PART = {"type": "http.request", "body": BODY, "more_body": False}
EMPTY = PART | {"body": b""}
LESS, EXACT, MORE = (b"%d" % (len(BODY) + change) for change in (-1, 0, 1))


@pytest.mark.parametrize(
    ("headers", "message", "reason"),
    [
        ([(b"content-length", MORE)], PART, f"Content-Length says {len(BODY) + 1}"),
        ([(b"content-length", LESS)], PART, f"Content-Length says {len(BODY) - 1}"),
        ([(b"content-length", EXACT), (b"content-length", MORE)], PART, "Content-Length says"),
        ([(b"content-length", EXACT)], EMPTY, "0 bytes of the body arrived"),
        ([(b"content-length", EXACT), (b"upgrade", b"h2c")], EMPTY, "another protocol"),
        ([(b"transfer-encoding", b"chunked")], EMPTY, "the body did not arrive"),
        ([(b"upgrade", b"TLS/1.2"), (b"connection", b"Upgrade")], EMPTY, "another protocol"),
        ([(b"upgrade", b"websocket"), (b"content-length", b"0")], EMPTY, "another protocol"),
    ],
)
def test_a_body_that_is_not_what_was_announced_is_never_acknowledged(
    hooks: MillisHooks,
    rows: Rows,
    headers: list[tuple[bytes, bytes]],
    message: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert asyncio.run(_deliver(hooks, [message], headers)) == [503]
    assert rows(RECORDS) == []
    [rejected] = rows("SELECT * FROM rejections")
    assert reason in rejected["reason"]
    assert "has to send it again" in rejected["reason"]
    assert "NOT stored and not acknowledged" in caplog.text


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([(b"content-length", EXACT)], PART),
        ([(b"content-length", EXACT), (b"content-length", EXACT)], PART),
        ([(b"transfer-encoding", b"chunked"), (b"upgrade", b"h2c")], PART),
        ([(b"connection", b"upgrade")], EMPTY),
        ([(b"content-length", b"0")], EMPTY),
    ],
)
def test_what_was_announced_and_arrived_is_stored(
    hooks: MillisHooks, rows: Rows, headers: list[tuple[bytes, bytes]], message: dict[str, Any]
) -> None:
    assert asyncio.run(_deliver(hooks, [message], headers)) == [200]
    assert [record["body"] for record in rows(RECORDS)] == [message["body"]]


def test_bodies_under_way_share_a_budget(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(max_body_bytes=40 * 1024 * 1024)
    asyncio.run(_crowd(hooks, BODY + b" " * (33 * 1024 * 1024)))
    assert sorted(len(record["body"]) < 1000 for record in rows(RECORDS)) == [False, False, True]
    [rejected] = rows("SELECT * FROM rejections")
    assert "all the memory there is for them" in rejected["reason"]


async def _crowd(hooks: MillisHooks, half: bytes) -> None:
    first_has_come, may_end = asyncio.Event(), asyncio.Event()

    async def slowly() -> dict[str, Any]:
        if not first_has_come.is_set():
            first_has_come.set()
            return PART | {"body": half, "more_body": True}
        await may_end.wait()
        return EMPTY

    async with hooks.running():
        slow = asyncio.create_task(_deliver_to(hooks, slowly))
        await first_has_come.wait()
        assert await _deliver_to(hooks, _messages([PART | {"body": half}])) == [503]
        assert await _deliver_to(hooks, _messages([PART])) == [200]
        may_end.set()
        assert await slow == [200]
        assert await _deliver_to(hooks, _messages([PART | {"body": half}])) == [200]


def test_what_a_body_took_of_the_budget_is_given_back_however_it_ends() -> None:
    budget = Budget(10)
    with budget.share() as first, budget.share() as second:
        first.hold(4)
        first.hold(9)
        with pytest.raises(TooManyBodiesError):
            second.hold(2)
        first.hold(8)
        second.hold(2)
    assert budget.free_bytes == 10


@pytest.mark.parametrize("body", [BODY, b"", squeeze(bytes(900_000)), squeeze(bytes(1_000_001))])
def test_an_answered_request_holds_nothing_of_the_budget(
    make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    budget = Budget(1_000_000)
    monkeypatch.setattr("millis_hooks.webhooks.end_of_call.Budget", lambda _bytes: budget)
    with serving(make_hooks(max_body_bytes=1_000_000)) as client:
        client.post(END_OF_CALL, content=body)
    assert budget.free_bytes == 1_000_000


def test_a_bomb_is_refused(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(max_body_bytes=1000)) as client:
        bomb = squeeze(bytes(10_000_000))[:1000]
        response = client.post(END_OF_CALL, content=bomb, headers={"content-encoding": "gzip"})
    assert (response.status_code, response.json()) == (413, {"error": "too large"})


def _messages(messages: list[dict[str, Any]]) -> Callable[[], Awaitable[dict[str, Any]]]:

    async def receive() -> dict[str, Any]:
        return messages.pop(0) if messages else await asyncio.Event().wait()  # type: ignore[return-value]

    return receive


async def _deliver(
    hooks: MillisHooks, messages: list[dict[str, Any]], headers: Sequence[tuple[bytes, bytes]] = ()
) -> list[int]:
    """Send an end-of-call message by message, and no more than those; return the statuses."""
    async with hooks.running():
        return await _deliver_to(hooks, _messages(messages), headers)


async def _deliver_to(
    hooks: MillisHooks,
    receive: Callable[[], Awaitable[dict[str, Any]]],
    headers: Sequence[tuple[bytes, bytes]] = (),
) -> list[int]:
    statuses: list[int] = []

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            statuses.append(message["status"])

    scope = {
        "type": "http",
        "method": "POST",
        "path": END_OF_CALL,
        "query_string": b"",
        "headers": [*HEADERS, *headers],
    }
    await hooks(scope, receive, send)
    return statuses


def test_a_request_that_is_cut_off_stores_nothing(
    hooks: MillisHooks, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    part = {"type": "http.request", "body": BODY, "more_body": True}
    assert asyncio.run(_deliver(hooks, [part, {"type": "http.disconnect"}])) == []
    assert rows(RECORDS) == []
    assert "cut off by its sender" in caplog.text
    [rejected] = rows("SELECT * FROM rejections")
    assert rejected["reason"] == f"The sender left after {len(BODY)} bytes of the body."


@pytest.mark.parametrize("method", ["GET", "PUT", "HEAD", "DELETE", "OPTIONS"])
def test_another_method_is_refused_with_the_right_one(client: TestClient, method: str) -> None:
    response = client.request(method, END_OF_CALL)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize(
    "headers", [{"authorization": ""}, {"authorization": "Bearer wrong"}, {"authorization": SECRET}]
)
def test_without_the_secret_nothing_is_taken_and_the_reason_is_logged(
    client: TestClient, rows: Rows, headers: dict[str, str]
) -> None:
    response = client.post(END_OF_CALL, content=BODY, headers=headers)
    assert (response.status_code, response.json()) == (401, {"error": "unauthorized"})
    [record] = eventually(lambda: rows("SELECT * FROM rejections"))
    assert (record["webhook"], record["method"]) == ("end_of_call", "POST")
    assert "secret" in record["reason"].lower()
    assert rows(RECORDS) == []


@pytest.mark.parametrize(("agent_id", "status"), [("-agent", 200), ("-other", 401), (None, 401)])
def test_the_secret_of_an_agent_brings_that_agent_s_calls_alone(
    make_hooks: MakeHooks, agent_id: str | None, status: int
) -> None:
    hooks = make_hooks(agent_secrets={"-agent": [OTHER_SECRET]})
    body = json.dumps({"session_id": "-Ox1", "agent_id": agent_id}).encode()
    with serving(hooks, headers={"authorization": f"Bearer {OTHER_SECRET}"}) as client:
        assert client.post(END_OF_CALL, content=body).status_code == status
        assert client.get(f"/millis/prefetch?agent_id={agent_id or ''}").status_code == status


AGENT_SECRETS = {"-agent": [OTHER_SECRET]}
OF_AGENT = {"authorization": f"Bearer {OTHER_SECRET}"}
FOREIGN = b'{"session_id": "-Ox1", "agent_id": "-other"}'
FOREIGN_BODIES = [
    FOREIGN,
    squeeze(FOREIGN),
    zlib.compress(squeeze(FOREIGN)),
    FOREIGN.decode().encode("utf-16"),
    b"\xef\xbb\xbf" + FOREIGN,
    b'{"session_id": "-Ox1", "agent_id": "-agent", "agent_id": "-other"}',
    b'{"session_id": "-Ox1\xff", "agent_id": "-agent", "agent\\u005fid": "-other"}',
    b'{"session_id": "-Ox1", "agent_id": NaN}',
    b'{"call_id": "-Ox1", "agent_id": ["-agent"]}',
    json.dumps(FOREIGN.decode()).encode(),
]


def test_the_secret_of_an_agent_brings_no_other_s_call_however_it_is_written(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    with serving(make_hooks(agent_secrets=AGENT_SECRETS), headers=OF_AGENT) as client:
        for body in FOREIGN_BODIES:
            for encoding in ("", "gzip", "br", "deflate", "gzip, gzip, gzip"):
                headers = {"content-encoding": encoding}
                response = client.post(END_OF_CALL, content=body, headers=headers)
                assert response.status_code == 401, (body, encoding)
    assert (rows(RECORDS), rows("SELECT * FROM calls")) == ([], [])
    assert "another agent" in rows("SELECT * FROM rejections")[0]["reason"]


def test_what_an_agent_s_secret_brings_and_cannot_be_read_is_kept_and_waits_for_nothing(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    body = squeeze(FOREIGN)[:-1]
    with serving(make_hooks(agent_secrets=AGENT_SECRETS), headers=OF_AGENT) as client:
        assert client.post(END_OF_CALL, content=body).status_code == 200
        assert rows("SELECT * FROM inbox") == []
    [record] = rows(RECORDS)
    kept = (record["body"], record["outcome"], record["secret_agent"])
    assert kept == (body, "unparsed", "-agent")


@pytest.mark.both_databases
def test_the_secret_of_an_agent_ends_no_session_that_another_began(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    with serving(make_hooks(agent_secrets=AGENT_SECRETS)) as client:
        client.get("/millis/prefetch?session_id=-Ox1&agent_id=-other")
        eventually(lambda: rows("SELECT * FROM calls"))
        assert client.post(END_OF_CALL, content=BODY, headers=OF_AGENT).status_code == 401
        assert client.post(END_OF_CALL, content=FOREIGN).status_code == 200
        eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    [rejected] = rows("SELECT * FROM rejections")
    assert "another agent than the one that began" in rejected["reason"]


def test_the_secret_of_an_agent_is_enough_for_all_of_a_call(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    with serving(make_hooks(agent_secrets=AGENT_SECRETS), headers=OF_AGENT) as client:
        client.get("/millis/prefetch?session_id=-Ox1&agent_id=-agent")
        for _ in range(2):
            assert client.post(END_OF_CALL, content=BODY).status_code == 200
        ended = "SELECT * FROM calls WHERE prefetch_outcome IS NOT NULL AND ended_at IS NOT NULL"
        eventually(lambda: rows(ended))
    assert [record["secret_agent"] for record in rows("SELECT * FROM deliveries")] == ["-agent"] * 3


@pytest.mark.both_databases
def test_a_redelivery_changes_nothing(hooks: MillisHooks, rows: Rows) -> None:
    handled: list[str] = []
    hooks.on_end_of_call(name="count")(lambda call: handled.append(call.session_id))
    with serving(hooks) as client:
        for _ in range(3):
            assert client.post(END_OF_CALL, content=BODY).status_code == 200
        eventually(lambda: not rows("SELECT * FROM inbox"))
        eventually(lambda: rows("SELECT * FROM handler_runs WHERE state = 'succeeded'"))
    assert len(rows(RECORDS)) == 3
    assert len(rows("SELECT * FROM calls")) == 1
    assert handled == ["-Ox1"]


@pytest.mark.both_databases
def test_a_changed_body_is_kept_next_to_the_first_and_changes_the_call(
    client: TestClient, rows: Rows
) -> None:
    changed = b'{"session_id": "-Ox1", "agent_id": "-changed"}'
    for body in (BODY, changed):
        client.post(END_OF_CALL, content=body)
    eventually(lambda: not rows("SELECT * FROM inbox"))
    assert [record["body"] for record in rows(RECORDS)] == [BODY, changed]
    shown = [(call["agent_id"], call["repeated"]) for call in rows("SELECT * FROM calls")]
    assert shown == [("-changed", True)]


@pytest.mark.both_databases
def test_a_prefetch_and_its_end_are_one_call(client: TestClient, rows: Rows) -> None:
    client.get(PREFETCH)
    client.post(END_OF_CALL, content=b'{"session_id": "-Ox1demoSess", "duration": 41}')
    ended = "SELECT * FROM calls WHERE ended_at IS NOT NULL AND prefetch_outcome IS NOT NULL"
    [call] = eventually(lambda: rows(ended))
    assert (call["session_id"], call["duration_s"]) == ("-Ox1demoSess", 41)


@pytest.mark.both_databases
def test_handlers_are_called_after_the_acknowledgement(hooks: MillisHooks, rows: Rows) -> None:
    acknowledged = threading.Event()
    durations: list[float | None] = []

    @hooks.on_end_of_call(outcome="completed")
    def note(call: EndOfCall) -> None:
        acknowledged.wait(5)
        durations.append(call.duration_s)

    @hooks.on_end_of_call(outcome="voicemail")
    def other(call: EndOfCall) -> None:
        raise AssertionError

    with serving(hooks) as client:
        client.post(END_OF_CALL, content=(SAMPLES / "v2.json").read_bytes())
        acknowledged.set()
        eventually(lambda: durations)
        [run] = eventually(lambda: rows("SELECT * FROM handler_runs WHERE state != 'running'"))
    assert (durations, run["handler"], run["state"]) == ([41.0], "note", "succeeded")


@pytest.mark.parametrize("is_async", [True, False])
def test_a_handler_that_hangs_holds_up_no_acknowledgement(
    hooks: MillisHooks, released: threading.Event, rows: Rows, is_async: bool
) -> None:
    hanging = threading.Event()

    def hang(call: EndOfCall) -> None:
        hanging.set()
        released.wait()

    async def block(call: EndOfCall) -> None:
        hang(call)

    hooks.on_end_of_call(block if is_async else hang)
    with serving(hooks) as client:
        client.post(END_OF_CALL, content=BODY)
        assert hanging.wait(5)
        assert client.post(END_OF_CALL, content=b'{"call_id": "2"}').status_code == 200
        assert client.get(PREFETCH).status_code == 200
        released.set()
        done = "SELECT * FROM handler_runs WHERE state = 'succeeded'"
        assert eventually(lambda: len(rows(done)) == 2)


@pytest.mark.both_databases
def test_a_handler_that_fails_is_written_down_masked(
    hooks: MillisHooks, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.on_end_of_call
    async def fail(call: EndOfCall) -> None:
        raise SystemExit("token=hunter2-hunter2 for +14155550134")

    with caplog.at_level(logging.DEBUG), serving(hooks) as client:
        client.post(END_OF_CALL, content=BODY)
        [attempt] = eventually(lambda: rows("SELECT * FROM attempts WHERE ended_at IS NOT NULL"))
    assert (attempt["outcome"], attempt["error_type"]) == ("failed", "SystemExit")
    assert "in fail" in attempt["traceback"]
    said = our_log(caplog) + attempt["traceback"] + attempt["error_message"]
    assert not any(secret in said for secret in ("hunter2", "4155550134"))


@pytest.mark.both_databases
def test_what_is_not_stored_is_not_acknowledged(
    hooks: MillisHooks, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(hooks) as client:
        _break_storage(hooks)
        response = client.post(END_OF_CALL, content=BODY)
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")
    assert "NOT stored and not acknowledged" in caplog.text


def _break_storage(hooks: MillisHooks) -> None:
    assert hooks._service is not None
    hooks._service.call_log.close()


def test_no_answer_repeats_what_came(client: TestClient) -> None:
    mark = "echo-of-what-came"
    answers = [
        client.post(f"{END_OF_CALL}?{mark}", content=body, headers={"x-mark": mark, **headers})
        for body in (mark.encode(), json.dumps({"session_id": mark, "chat": mark}).encode())
        for headers in ({}, {"authorization": f"Bearer {mark}"}, {"content-encoding": mark})
    ]
    assert not any(mark in answer.text or mark in str(answer.headers) for answer in answers)


def test_nothing_that_came_is_logged(hooks: MillisHooks, caplog: pytest.LogCaptureFixture) -> None:
    hostile = b'{"session_id": "-Ox1", "voip": {"from": "+14155550134"}, "ts": "+14155550134"}'
    with caplog.at_level(logging.DEBUG), serving(hooks) as client:
        client.post(f"{END_OF_CALL}?from=%2B14155550134", content=hostile)
        client.post(END_OF_CALL, content=b"+14155550134")
        client.post(END_OF_CALL, headers={"authorization": "Bearer +14155550134"})
    assert not any(told in our_log(caplog) for told in ("4155550134", SECRET))
