"""Requests that were refused leave a trace: who, what and why, no secret, and not much of it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Row, select

from millis_hooks import MillisHooks
from millis_hooks.call_log import rejections
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.rejections import Described, Rejection, RejectionLog
from millis_hooks.call_log.tables import rejections as stored_rejections
from millis_hooks.call_log.upkeep.retention import prune
from millis_hooks.exceptions import StorageError
from millis_hooks.masking.secret_patterns import MASK
from millis_hooks.settings import Settings
from millis_hooks.webhooks.refused import Describer
from support.app import END_OF_CALL, PREFETCH, SECRET, MakeHooks, Rows, serving
from support.storage import NOW, opened, writing
from support.waiting import eventually

WRONG = "wr0ng-and-long-enough-to-be-one"
KEPT = "SELECT * FROM rejections ORDER BY id"
DESCRIBED = Described(method="POST", client=None, query="", headers=(), body_bytes=None)


@pytest.fixture
def opened_log(tmp_path: Path) -> Iterator[Database]:
    with opened(tmp_path) as database:
        yield database


def rejection(client: str | None = "1.2.3.4", *, seconds: float = 0, **columns: Any) -> Rejection:
    known: dict[str, Any] = {
        "received_at": NOW + timedelta(seconds=seconds),
        "webhook": "end_of_call",
        "method": "POST",
        "status_code": 401,
        "reason": "wrong",
        "client": client,
        "query": b"",
        "headers": (),
    }
    return Rejection(**known | columns)


def note(database: Database, *notes: Rejection) -> None:
    """Have them written down."""
    with writing(database) as writer:
        log = RejectionLog(writer.submit, lambda _: DESCRIBED)
        for each in notes:
            log.note(each)


def test_a_refused_request_says_what_was_asked_and_why(make_hooks: MakeHooks, rows: Rows) -> None:
    with serving(make_hooks(), headers={}) as client:
        client.get(PREFETCH, headers={"user-agent": "Millis/1", "authorization": f"Basic {WRONG}"})
        [row] = eventually(lambda: rows(KEPT))
    assert (row["webhook"], row["method"], row["status_code"]) == ("prefetch", "GET", 401)
    assert row["reason"] == "No secret in the authorization header."
    assert (row["client"], row["body_bytes"]) == ("testclient", None)
    headers = dict(json.loads(row["headers"]))
    assert headers["user-agent"] == "Millis/1"
    assert headers["authorization"] == f"Basic {MASK}"


@pytest.mark.parametrize(
    ("method", "status_code"), [("POST", 401), ("PUT", 405), ("OPTIONS", 405), ("HEAD", 405)]
)
def test_every_kind_of_refusal_is_kept(
    hooks: MillisHooks, rows: Rows, method: str, status_code: int
) -> None:
    with serving(hooks, headers={}) as client:
        client.request(method, END_OF_CALL, content=b"12345")
    [row] = rows(KEPT)
    assert (row["method"], row["status_code"], row["body_bytes"]) == (method, status_code, 5)
    assert rows("SELECT * FROM deliveries") == []


def kept(database: Database) -> Sequence[Row[Any]]:
    with database.reader.connect() as connection:
        return connection.execute(select(stored_rejections)).all()


def everywhere(path: Path) -> bytes:
    """All bytes of the call log."""
    return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))


def test_the_secret_that_was_sent_is_stored_nowhere(
    make_hooks: MakeHooks, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hooks = make_hooks(secret_header="X-Millis-Key", secret_in_path=True)
    headers = {
        "authorization": f"Bearer {WRONG}",
        "x-millis-key": WRONG,
        "cookie": f"a={WRONG}",
        "user-agent": f"curl {WRONG} {SECRET}",
        WRONG: "1",
    }
    with serving(hooks, headers={}) as client:
        for place in (f"/millis/{WRONG}/prefetch", "/millis/prefetch", "/millis/end-of-call"):
            query = f"?token={WRONG}&note={WRONG}&{WRONG}=1&secret_kept={SECRET}&{SECRET}"
            assert client.get(place + query, headers=headers).status_code in (401, 405)
    stored = everywhere(tmp_path / "calls.db")
    assert b"curl" in stored
    assert WRONG.encode() not in stored
    assert SECRET.encode() not in stored
    assert WRONG not in caplog.text


def test_a_number_in_a_refused_request_is_shortened(make_hooks: MakeHooks, rows: Rows) -> None:
    with serving(make_hooks(), headers={}) as client:
        client.get("/millis/prefetch?from=%2B14155550134&name=Ada&mail=ada@example.com")
    [row] = rows(KEPT)
    assert "5550134" not in row["query"]
    assert "ada%40example" not in row["query"]
    assert "name=Ada" in row["query"]


def test_with_redaction_no_word_of_a_refused_request_is_kept(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    with serving(make_hooks(redact_before_store=True), headers={}) as client:
        client.get("/millis/prefetch?from=%2B14155550134&name=Ada")
    assert "Ada" not in rows(KEPT)[0]["query"]


def test_a_flood_of_wrong_secrets_is_counted_and_kept_small(
    make_hooks: MakeHooks, rows: Rows, tmp_path: Path
) -> None:
    with serving(make_hooks(), headers={}) as client:
        for number in range(150):
            headers = {"authorization": f"Bearer {WRONG}-{number}", "x-noise": "y" * 3000}
            assert client.post(f"{END_OF_CALL}?n={number}", headers=headers).status_code == 401
    assert len(rows(KEPT)) <= 2 * rejections.ROWS_PER_NETWORK  # a minute may have ended meanwhile
    stored = everywhere(tmp_path / "calls.db")
    assert WRONG.encode() not in stored
    assert len(stored) < 600_000


@pytest.mark.both_databases
def test_many_addresses_share_a_limit_of_rows_a_minute(opened_log: Database) -> None:
    note(opened_log, *(rejection(f"10.0.0.{number}") for number in range(200)))
    assert 0 < len(kept(opened_log)) <= rejections.ROWS_PER_MINUTE


@pytest.mark.both_databases
def test_only_the_newest_are_kept(opened_log: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejections, "KEPT_ROWS", 10)
    note(opened_log, *(rejection(f"10.0.0.{number}") for number in range(30)))
    assert len(kept(opened_log)) <= 10


def test_a_flood_of_many_kinds_pushes_no_other_kind_out(
    opened_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "KEPT_ROWS", 10)
    real = rejection("192.0.2.9", webhook="prefetch")
    flood = [
        rejection("192.0.2.66", reason=reason, seconds=60 * minute)
        for minute in range(5)
        for reason in "abcd"
    ]
    note(opened_log, real, *flood)
    assert "prefetch" in {row.webhook for row in kept(opened_log)}


def test_all_addresses_of_one_subscriber_share_its_room(opened_log: Database) -> None:
    note(opened_log, *(rejection(f"2001:db8::{number:x}") for number in range(200)))
    assert len(kept(opened_log)) == rejections.ROWS_PER_NETWORK


def test_strangers_take_no_room_from_requests_with_a_secret(
    opened_log: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rejections, "KEPT_ROWS", 10)
    strangers = [rejection(f"10.0.0.{number}") for number in range(200)]
    known = [rejection("192.0.2.9", reason=reason, brought_secret=True) for reason in "ab"]
    note(opened_log, *strangers, *known, *strangers)
    rows = kept(opened_log)
    assert {row.reason for row in rows if row.brought_secret} == {"a", "b"}
    assert len(rows) == 10 + 2


@pytest.mark.parametrize(
    ("request_", "brought"),
    [
        (("POST", PREFETCH, {"authorization": f"Bearer {SECRET}"}), True),
        (("GET", PREFETCH, {"authorization": f"Basic {SECRET}"}), True),
        (("GET", f"/millis/{SECRET}/end-of-call", {}), True),
        (("GET", "/prefetch/", {"authorization": f"Bearer {SECRET}"}), True),
        (("PUT", END_OF_CALL, {"authorization": f"Bearer {WRONG}"}), False),
    ],
)
def test_it_is_kept_whether_a_refused_request_brought_a_secret(
    make_hooks: MakeHooks, rows: Rows, request_: tuple[str, str, dict[str, str]], *, brought: bool
) -> None:
    method, path, headers = request_
    with serving(make_hooks(secret_in_path=True), headers={}) as client:
        client.request(method, path, headers=headers)
    assert [row["brought_secret"] for row in rows(KEPT)] == [brought]


def test_another_minute_has_room_again(opened_log: Database) -> None:
    full = [rejection() for _ in range(rejections.ROWS_PER_NETWORK + 1)]
    note(opened_log, *full, rejection(seconds=61))
    assert len(kept(opened_log)) == rejections.ROWS_PER_NETWORK + 1


def test_a_rejection_that_cannot_be_written_is_reported_in_the_log(
    opened_log: Database, caplog: pytest.LogCaptureFixture
) -> None:
    failing: Future[None] = Future()
    failing.set_exception(StorageError("no disk"))
    RejectionLog(lambda _: failing, lambda _: DESCRIBED).note(rejection())
    assert "a rejected request could not be written" in caplog.text


def test_a_rejection_after_the_call_log_is_closed_is_left_out(opened_log: Database) -> None:
    with writing(opened_log) as writer:
        writer.close()
        RejectionLog(writer.submit, lambda _: DESCRIBED).note(rejection())


def test_what_was_written_is_reported(opened_log: Database) -> None:
    told: list[None] = []
    with writing(opened_log) as writer:
        log = RejectionLog(writer.submit, lambda _: DESCRIBED, on_written=lambda: told.append(None))
        log.note(rejection())
    assert len(told) == 1


@pytest.mark.parametrize(
    "hostile",
    [
        {"query": b"%ff=%00&\xff=" + b"x" * 100_000},
        {"headers": ((b"\xff\x00", b"\xff\x00"),) * 500},
        {"headers": ((b"content-length", b"9" * 5_000), (b"authorization", b""))},
        {"headers": ((b"content-length", "٣".encode()), (b"host", b"{" * 50_000))},
        {"method": "X" * 5_000, "client": None},
    ],
)
def test_whatever_was_sent_can_be_described_in_few_words(hostile: dict[str, Any]) -> None:
    describe = Describer.of(Settings.load(secrets=SECRET))
    described = describe(rejection(**hostile))
    assert described.body_bytes is None
    assert len(json.dumps(described.headers)) + len(described.query) < 30_000
    assert len(described.method) <= 20


def test_refusals_are_removed_with_what_else_is_old(opened_log: Database) -> None:
    note(opened_log, rejection(), rejection(webhook="prefetch", seconds=3600))
    before = NOW + timedelta(minutes=30)
    with writing(opened_log) as writer:
        assert list(prune(opened_log.reader, writer.run, before=before, now=before)) == []
    assert [row.webhook for row in kept(opened_log)] == ["prefetch"]
