"""Whatever comes, nothing breaks: every request gets one of the few answers there are, and what is
acknowledged is in the log byte for byte."""

from __future__ import annotations

import gzip
import json
import logging
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from millis_hooks import EndOfCall, MillisHooks
from support.app import SECRET
from support.paths import SAMPLES
from support.waiting import eventually

MAX_BODY_BYTES = 100_000
AUTHORIZATION = (b"authorization", f"Bearer {SECRET}".encode())
SAMPLE_BODIES = [path.read_bytes() for path in sorted(SAMPLES.glob("*.json"))]
SAMPLE_QUERIES = [path.read_bytes().strip() for path in sorted(SAMPLES.glob("prefetch_*.txt"))]
KEPT = (
    "SELECT body, outcome FROM deliveries WHERE kind = 'end_of_call' AND outcome != 'rejected' "
    "ORDER BY id DESC LIMIT 1"
)

Headers = list[tuple[bytes, bytes]]


class Receiver:
    """A running application whose handlers read everything there is to read."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "calls.db"
        self.hooks = MillisHooks(
            secrets=SECRET,
            secret_in_path=True,
            database_url=f"sqlite:///{self.path}",
            max_body_bytes=MAX_BODY_BYTES,
        )
        self.hooks.on_prefetch(read_everything)
        self.hooks.on_end_of_call(read_everything)
        self.client = TestClient(self.hooks)

    def send(
        self,
        method: str = "POST",
        path: str = "/millis/end-of-call",
        *,
        query: bytes = b"",
        headers: Headers | None = None,
        chunks: list[bytes] | None = None,
    ) -> tuple[int, bytes]:
        """Send a request as a server would hand it over; return the status and the answer."""
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "query_string": query,
            "headers": [AUTHORIZATION] if headers is None else headers,
            "root_path": "",
        }
        parts = list(chunks or [b""])
        answer: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

        async def send(message: Any) -> None:
            answer.append(message)

        assert self.client.portal is not None
        self.client.portal.call(self.hooks, scope, receive, send)
        return answer[0]["status"], answer[1]["body"]

    def kept(self) -> tuple[bytes, str]:
        """The end-of-call that was stored last, and what it was taken for."""
        [(body, outcome)] = self.read(KEPT)
        return body, outcome

    def read(self, sql: str) -> list[Any]:
        connection = sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)
        try:
            return connection.execute(sql).fetchall()
        finally:
            connection.close()


def read_everything(call: Any) -> dict[str, Any] | None:
    """Read every property; of a prefetch, send what came back as the answer."""
    for name, member in vars(type(call)).items():
        if isinstance(member, property):
            getattr(call, name)
    if isinstance(call, EndOfCall):
        return None
    return {"metadata": dict(call.metadata), "extra_prompt": call.session_id}


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    receiver = Receiver(tmp_path_factory.mktemp("fuzz"))
    with receiver.client:
        yield receiver


def is_kept(receiver: Receiver, body: bytes) -> bool:
    status, _ = receiver.send(chunks=[body])
    return status == 200 and receiver.kept()[0] == body


HEADERS = st.lists(
    st.tuples(
        st.sampled_from(
            [b"authorization", b"content-type", b"content-length", b"content-encoding", b"host"]
        )
        | st.binary(max_size=10),
        st.sampled_from([AUTHORIZATION[1], b"gzip", b"deflate", b"-1", b"1" * 5000, b"\xb2"])
        | st.binary(max_size=20),
    ),
    max_size=5,
)
METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT", "", "\x00"])
PATHS = st.sampled_from(
    ["/millis/prefetch", "/millis/end-of-call/", f"/millis/{SECRET}/prefetch",
     f"/millis/{SECRET}/end-of-call", "/millis/\x00/prefetch", "/millis/é•\U0001f600/end-of-call"]
)  # fmt: skip


@given(METHODS, PATHS, st.binary(max_size=60), HEADERS, st.lists(st.binary(), max_size=3))
def test_any_request_gets_one_of_the_few_answers(
    receiver: Receiver,
    method: str,
    path: str,
    query: bytes,
    headers: Headers,
    chunks: list[bytes],
) -> None:
    status, answer = receiver.send(method, path, query=query, headers=headers, chunks=chunks)
    assert status in {200, 401, 405, 413}
    assert isinstance(json.loads(answer), dict)


@given(st.lists(st.binary(), max_size=3))
def test_any_bytes_are_kept_as_they_came(receiver: Receiver, chunks: list[bytes]) -> None:
    assert receiver.send(chunks=chunks) == (200, b'{"received":true}')
    assert receiver.kept()[0] == b"".join(chunks)


@given(st.binary(max_size=200) | st.sampled_from(SAMPLE_QUERIES))
def test_any_query_is_answered(receiver: Receiver, query: bytes) -> None:
    status, answer = receiver.send("GET", "/millis/prefetch", query=query)
    assert status == 200
    assert json.loads(answer).keys() <= {"metadata", "extra_prompt"}


@given(st.sampled_from(SAMPLE_QUERIES), st.data())
def test_a_damaged_query_is_answered(receiver: Receiver, query: bytes, data: st.DataObject) -> None:
    assert receiver.send("GET", "/millis/prefetch", query=damaged(query, data))[0] == 200


@given(st.sampled_from(SAMPLE_BODIES), st.data())
def test_a_damaged_payload_is_kept(receiver: Receiver, body: bytes, data: st.DataObject) -> None:
    assert is_kept(receiver, damaged(body, data))


def damaged(original: bytes, data: st.DataObject) -> bytes:
    """Put something else in place of a part of `original`."""
    places = st.integers(0, len(original))
    begin, end = sorted((data.draw(places), data.draw(places)))
    return original[:begin] + data.draw(st.binary(max_size=8)) + original[end:]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)


@given(st.sampled_from(SAMPLE_BODIES), st.data())
def test_a_payload_with_another_value_somewhere_is_a_call(
    receiver: Receiver, body: bytes, data: st.DataObject
) -> None:
    payload = json.loads(body)
    holder = payload
    name: Any = data.draw(st.sampled_from(sorted(payload.keys() - {"session_id"})))
    while isinstance(holder[name], dict | list) and holder[name] and data.draw(st.booleans()):
        holder = holder[name]
        places = sorted(holder) if isinstance(holder, dict) else range(len(holder))
        name = data.draw(st.sampled_from(places))
    holder[name] = data.draw(JSON)
    assert is_kept(receiver, json.dumps(payload).encode())
    assert receiver.kept()[1] == "stored"


def with_session(number: int, member: str) -> bytes:
    return f'{{"session_id": "-bomb{number}", "duration": 1, {member}}}'.encode()


BOMBS = {
    "nested lists": '"chat": ' + "[" * 30_000 + "]" * 30_000,
    "nested objects": '"metadata": ' + '{"a":' * 10_000 + "1" + "}" * 10_000,
    "nested as deep as may be": '"metadata": ' + '{"a":' * 190 + "1" + "}" * 190,
    "a number of many digits": '"ts": ' + "9" * 50_000,
    "a number over 63 bits": '"chars_used": 9223372036854775808',
    "a number over all floats": '"duration": 1e999, "ts": -1e999',
    "no numbers": '"ts": NaN, "duration": Infinity, "cost_breakdown": [{"credit": -Infinity}]',
    "NUL": '"agent_id": "\\u0000", "chat": [{"content": "\\u0000"}], "\\u0000": 1',
    "half a surrogate pair": '"agent_id": "\\ud800", "metadata": {"\\udfff": "\\ud83d"}',
    "one name many times": ", ".join(f'"metadata": {{"a": {n}}}' for n in range(1000)),
    "many names": ", ".join(f'"name{n}": {n}' for n in range(5000)),
    "many things": '"chat": [' + "null," * 15_000 + "1]",
    "JSON in JSON": '"chat": ' + json.dumps(json.dumps(json.dumps([{"content": "x"}]))),
    "absurd times": '"ts": 253402300800000, "started_at": "9999-12-31T23:59:59-23:59"',
    "a long text": '"chat": [{"role": "user", "content": "' + "á" * 40_000 + '"}]',
}


def test_bombs_are_kept_and_what_follows_them_becomes_a_call(
    receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        for number, member in enumerate(BOMBS.values()):
            assert is_kept(receiver, with_session(number, member)), member[:60]
        receiver.send(chunks=[b'{"session_id": "-after"}'])
        eventually(lambda: receiver.read("SELECT 1 FROM calls WHERE session_id = '-after'"))
    assert caplog.records == []
    digested = receiver.read("SELECT count(*) FROM calls WHERE session_id LIKE '-bomb%'")
    assert digested == [(len(BOMBS) - len(NOT_JSON),)]


#: What no reader of JSON takes: it is kept, and shown as unparsed.
NOT_JSON = {"nested lists", "nested objects"}


@pytest.mark.parametrize("encoding", [b"gzip", b"deflate", b"gzip, gzip"])
def test_compressed_bombs_are_too_large(receiver: Receiver, encoding: bytes) -> None:
    bomb = zlib.compress(bytes(MAX_BODY_BYTES * 100), 9)
    if encoding != b"deflate":
        bomb = gzip.compress(bytes(MAX_BODY_BYTES * 100))
    if b"," in encoding:
        bomb = gzip.compress(bomb)
    headers = [AUTHORIZATION, (b"content-encoding", encoding)]
    assert len(bomb) < MAX_BODY_BYTES
    assert receiver.send(headers=headers, chunks=[bomb])[0] == 413


@given(st.binary(max_size=50), st.sampled_from([b"gzip", b"deflate"]), st.data())
def test_a_damaged_compressed_body_is_kept_one_way_or_the_other(
    receiver: Receiver, body: bytes, encoding: bytes, data: st.DataObject
) -> None:
    compressed = gzip.compress(body, mtime=0) if encoding == b"gzip" else zlib.compress(body)
    sent = damaged(compressed, data)
    headers = [AUTHORIZATION, (b"content-encoding", encoding)]
    assert receiver.send(headers=headers, chunks=[sent])[0] == 200
    assert receiver.kept()[0] in {sent, *inflated(sent)}


def inflated(body: bytes) -> Iterator[bytes]:
    for wbits in (zlib.MAX_WBITS + 32, -zlib.MAX_WBITS):
        with suppress(zlib.error):
            yield zlib.decompress(body, wbits)


@given(st.binary(min_size=1, max_size=40))
def test_without_the_secret_nothing_is_taken(receiver: Receiver, value: bytes) -> None:
    for kind in ("end-of-call", "prefetch"):
        method = "POST" if kind == "end-of-call" else "GET"
        status, answer = receiver.send(
            method, f"/millis/{kind}", headers=[(b"authorization", value)], chunks=[value]
        )
        assert (status, answer) == (401, b'{"error":"unauthorized"}')


def test_after_all_that_everything_is_processed(receiver: Receiver) -> None:
    """Last in this file: nothing of the above has stopped what works behind the webhooks."""
    receiver.send(chunks=[b'{"session_id": "-last"}'])
    assert eventually(lambda: receiver.read("SELECT 1 FROM calls WHERE session_id = '-last'"))
    eventually(lambda: not receiver.read("SELECT * FROM inbox"))
    pending = "SELECT state FROM handler_runs WHERE state IN ('pending', 'running')"
    eventually(lambda: not receiver.read(pending))
    assert receiver.read("SELECT handler FROM handler_runs WHERE state = 'failed'") == []
