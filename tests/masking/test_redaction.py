"""Redaction before storage: what is hidden is in no row, and everything else works as before."""

from __future__ import annotations

import gzip
import json
import logging
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient
from test_mask_policy import JSON_VALUES, NUMBER, SENT, SESSION, SHORTENED, WORDS

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse
from millis_hooks.call_log.deliveries import Delivery
from millis_hooks.call_log.redaction import redact
from millis_hooks.masking.policy import HIDDEN, MaskPolicy
from support.app import AUTHORIZED, END_OF_CALL, PREFETCH, MakeHooks, Rows, our_log, serving
from support.waiting import eventually

pytestmark = pytest.mark.both_databases

BODY = json.dumps(SENT).encode()
ASKED = f"/millis/prefetch?session_id={SESSION}&agent_id=-agent&from=%2B{NUMBER[1:]}&name=zebra"
SECRET_ANSWER = {"metadata": {"name": "giraffe"}, "extra_prompt": f"Say ocelot to {NUMBER}."}
DELIVERIES = "SELECT * FROM deliveries ORDER BY id"
FULL = MaskPolicy("full", "full")


@pytest.fixture
def hooks(make_hooks: MakeHooks) -> MillisHooks:
    return make_hooks(redact_before_store=True)


@pytest.fixture
def client(hooks: MillisHooks) -> Iterator[TestClient]:
    hooks.on_prefetch(lambda call: PrefetchResponse(**SECRET_ANSWER))  # type: ignore[arg-type]
    with serving(hooks) as client:
        yield client


def everything_in(database: Path) -> str:
    """Every value of every table, and whatever else is in the files."""
    with sqlite3.connect(database) as connection:
        script = "\n".join(connection.iterdump())
    connection.close()
    files = b"".join(path.read_bytes() for path in database.parent.glob(f"{database.name}*"))
    blobs = "".join(bytes.fromhex(part).decode("utf-8", "replace") for part in hex_blobs(script))
    return script + blobs + files.decode("utf-8", "replace")


def hex_blobs(script: str) -> list[str]:
    return [part.partition("'")[0] for part in script.split("X'")[1:]]


@pytest.mark.sqlite_only
def test_what_is_hidden_is_nowhere_in_the_database(client: TestClient, database: Path) -> None:
    assert client.get(ASKED).json() == SECRET_ANSWER
    assert client.post(f"{END_OF_CALL}?name=zebra", content=BODY).status_code == 200
    client.__exit__()
    stored = everything_in(database)
    assert SESSION in stored
    assert [word for word in (*WORDS, NUMBER[1:]) if word in stored] == []


def test_the_call_is_what_it_was_besides(client: TestClient, rows: Rows) -> None:
    client.post(END_OF_CALL, content=BODY)
    [call] = eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    assert (call["session_id"], call["agent_id"], call["channel"]) == (SESSION, "-agent", "phone")
    assert (call["call_status"], call["outcome"]) == ("user-ended", "completed")
    assert (call["duration_s"], call["cost_total"], call["turns"]) == (41.0, 0.0043, 2)
    assert (call["from_phone"], call["snippet"]) == (HIDDEN, HIDDEN)
    assert call["opted_out"] == 0


def test_a_redacted_delivery_says_so_and_another_does_not(
    client: TestClient, make_hooks: MakeHooks, rows: Rows
) -> None:
    client.post(END_OF_CALL, content=BODY)
    client.__exit__()
    with serving(make_hooks()) as plain:
        plain.post(END_OF_CALL, content=BODY)
    told = [(row["outcome"], row["redacted"]) for row in rows(DELIVERIES)]
    assert sorted(told) == [("stored", 0), ("stored", 1)]


def test_the_levels_of_the_pages_are_those_of_the_database(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    own = {"mask_numbers": "partial", "own_numbers": "+14155550199"}
    with serving(make_hooks(redact_before_store=True, **own)) as client:
        client.post(END_OF_CALL, content=BODY)
        [call] = eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    assert (call["from_phone"], call["to_phone"]) == (SHORTENED, "+14155550199")
    assert (call["customer_phone"], call["direction"]) == (SHORTENED, "inbound")
    assert call["snippet"] == f"I am zebra, my number is {SHORTENED}"


@pytest.mark.sqlite_only
def test_a_prefetch_without_its_plus_is_shortened_like_any_other(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    settings = {"redact_before_store": True, "mask_numbers": "partial"}
    with serving(make_hooks(**settings)) as client:
        client.get(ASKED.replace("%2B", "+"))
    [prefetch] = rows(DELIVERIES)
    assert dict(parse_qsl(prefetch["query"]))["from"] == SHORTENED


@pytest.mark.sqlite_only
def test_a_prefetch_handler_sees_all_and_an_end_of_call_handler_what_is_stored(
    hooks: MillisHooks,
) -> None:
    seen: list[Any] = []

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> None:
        seen.append((call.from_phone, call.metadata["name"]))

    @hooks.on_end_of_call
    def notify(call: EndOfCall) -> None:
        seen.append((call.voip and call.voip.from_phone, call.metadata["name"], call.chat[0].role))

    with serving(hooks) as client:
        client.get(ASKED)
        client.post(END_OF_CALL, content=BODY)
        eventually(lambda: len(seen) == 2)
    assert seen == [(NUMBER, "zebra"), (HIDDEN, HIDDEN, "user")]


@pytest.mark.sqlite_only
def test_the_last_good_answer_goes_out_as_it_was(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(redact_before_store=True, prefetch_fallback="last_good")
    answers = iter([PrefetchResponse(**SECRET_ANSWER)])  # type: ignore[arg-type]
    hooks.on_prefetch(lambda call: next(answers))
    with serving(hooks) as client:
        assert [client.get(ASKED).json() for _ in range(2)] == [SECRET_ANSWER] * 2


def test_what_a_handler_raises_is_reported_without_its_words(
    hooks: MillisHooks, rows: Rows, caplog: pytest.LogCaptureFixture
) -> None:
    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> None:
        raise ValueError(f"{call.metadata['name']} has no tier")

    @hooks.on_end_of_call(max_attempts=1)
    def notify(call: EndOfCall) -> None:
        raise ValueError(f"{call.session_id} on tuesday")

    caplog.set_level(logging.DEBUG, logger="millis_hooks")
    with serving(hooks) as client:
        client.get(ASKED)
        client.post(END_OF_CALL, content=BODY)
        [attempt] = eventually(lambda: rows("SELECT * FROM attempts WHERE ended_at IS NOT NULL"))
    assert (attempt["error_type"], attempt["error_message"]) == ("ValueError", HIDDEN)
    assert attempt["traceback"].endswith(f"ValueError: {HIDDEN}")
    [record] = rows("SELECT reason FROM deliveries WHERE kind = 'prefetch'")
    place = f"{HIDDEN} (test_redaction.py:"
    assert record["reason"].startswith(f"greet: ValueError: {place}")
    assert "zebra" not in our_log(caplog)


@pytest.mark.sqlite_only
def test_after_the_stop_failures_are_reported_as_before(hooks: MillisHooks) -> None:
    from millis_hooks.masking.error_report import describe_failure

    with serving(hooks) as client:
        client.get("/healthz")
        assert describe_failure(ValueError("zebra")).message == HIDDEN
    assert describe_failure(ValueError("zebra")).message == "zebra"


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (f"junk from {NUMBER}".encode(), f"junk from {HIDDEN}"),
        (BODY[:90], '{"session_id": "•••", "agent_id": "•••", "chat": "•••"'),
        (b'{"a": "zebra\\"zebra", "b', '{"a": "•••", "•••"'),
        (f'[{{"x": "{NUMBER}"}}]'.encode(), '[{"x":"•••"}]'),
        (gzip.compress(BODY, mtime=0)[:-1], HIDDEN),
        (b"", ""),
    ],
)
def test_what_cannot_be_read_is_masked_by_its_shape_and_acknowledged(
    client: TestClient, rows: Rows, body: bytes, kept: str
) -> None:
    assert client.post(END_OF_CALL, content=body).status_code == 200
    [record] = rows(DELIVERIES)
    assert record["body"].decode() == kept
    assert (record["outcome"], record["redacted"]) == ("unparsed", 1)


def test_a_name_that_repeats_hides_nothing(client: TestClient, rows: Rows) -> None:
    body = f'{{"session_id": "-a", "voip": {{"from": "{NUMBER}"}}, "voip": null}}'.encode()
    client.post(END_OF_CALL, content=body)
    assert json.loads(rows(DELIVERIES)[0]["body"]) == {"session_id": "-a", "voip": None}


def test_a_redelivery_is_known_as_one(client: TestClient, rows: Rows) -> None:
    for _ in range(2):
        client.post(END_OF_CALL, content=BODY)
    assert len({row["content_hash"] for row in rows(DELIVERIES)}) == 1


def test_a_delivery_that_cannot_be_stored_is_not_acknowledged(
    client: TestClient, hooks: MillisHooks
) -> None:
    client.get("/healthz", headers=AUTHORIZED)
    assert hooks._service is not None
    hooks._service.call_log.writer.close()
    assert client.post(END_OF_CALL, content=BODY).status_code == 503


def delivery(**columns: Any) -> Delivery:
    return Delivery("end_of_call", datetime(2026, 1, 1, tzinfo=UTC), "stored", 200, **columns)


@pytest.mark.sqlite_only
@given(st.binary() | JSON_VALUES.map(lambda value: json.dumps(value).encode()) | st.just(BODY[:50]))
def test_no_body_makes_redaction_fail_and_twice_is_once(body: bytes) -> None:
    once = redact(delivery(body=body), FULL)
    assert redact(once, FULL).body == once.body


@pytest.mark.sqlite_only
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_query_and_no_answer_makes_redaction_fail(text: str) -> None:
    prefetch = delivery(query=text, answer=json.dumps({text: text}).encode())
    assert redact(prefetch._replace(kind="prefetch"), FULL).redacted


def test_without_the_setting_the_body_is_stored_byte_for_byte(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    with serving(make_hooks(mask_numbers="full", mask_text="full")) as client:
        client.post(END_OF_CALL, content=BODY)
        client.get(PREFETCH)
    assert rows(DELIVERIES)[0]["body"] == BODY
