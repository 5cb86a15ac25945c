"""What is logged: a line for each delivery and for each attempt, and nobody's number in it."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from millis_hooks.masking.error_report import (
    describe_failure,
    forget,
    hide_by,
    hide_no_more_by,
    know,
)
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.observability.log_records import (
    ConsoleFormatter,
    JsonFormatter,
    log_config,
    shown_id,
)
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import end_of_call_body
from millis_hooks.server import AccessLog
from support.app import END_OF_CALL, PREFETCH, MakeHooks, serving
from support.waiting import eventually

NUMBER = "+14155550134"


def record(message: str, **more: Any) -> logging.LogRecord:
    made = logging.LogRecord("shop", logging.INFO, __file__, 1, message, (), None)
    made.__dict__.update(more)
    return made


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[dict[str, Any]]:
    """The lines about an event, as JSON has them."""
    formatter = JsonFormatter()
    told = [json.loads(formatter.format(each)) for each in caplog.records]
    return [line for line in told if line.get("event") == event]


def test_a_line_is_one_json_object() -> None:
    line = JsonFormatter().format(record("two\nlines", fields={"run_id": 7}))
    assert "\n" not in line
    told = json.loads(line)
    assert told["time"].endswith("+00:00")
    assert (told["level"], told["logger"]) == ("info", "shop")
    assert (told["message"], told["run_id"]) == ("two\nlines", 7)


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_numbers_and_secrets_of_anybodys_lines_are_masked(formatter: logging.Formatter) -> None:
    line = formatter.format(record(f"calling {NUMBER} with password=hunter2hunter2"))
    assert "4155550134" not in line
    assert "hunter2" not in line


@pytest.mark.parametrize("formatter", [JsonFormatter(), ConsoleFormatter()])
def test_a_traceback_is_masked_too(formatter: logging.Formatter) -> None:
    try:
        raise RuntimeError(NUMBER)
    except RuntimeError:
        line = formatter.format(record("it failed", exc_info=sys.exc_info()))
    assert "RuntimeError" in line
    assert NUMBER not in line


def test_lines_are_masked_by_the_policy_of_the_settings() -> None:
    policy = MaskPolicy("full", "partial")
    hide_by(policy)
    try:
        line = ConsoleFormatter().format(record("mail ada@example.com"))
    finally:
        hide_no_more_by(policy)
    assert "ada@example.com" not in line


def test_addresses_and_times_stay_as_they_are() -> None:
    said = "serving app:hooks on http://127.0.0.1:8000, since 2026-11-21 17:00 UTC"
    assert json.loads(JsonFormatter().format(record(said)))["message"] == said


def test_a_console_is_not_obeyed() -> None:
    line = ConsoleFormatter().format(record("\x1b[2Jgone \ud800"))
    assert "\x1b" not in line
    line.encode()


FORGED = "2026-11-30 06:00:00,000 ERROR   millis_hooks: forged"


@pytest.mark.parametrize(
    "between", ["\n", "\r", "\r\n", "\v", "\x85", "\u2028", "\u2029", "\x1b[2K\x1b[1G", "\u202e"]
)
def test_no_text_from_outside_begins_a_line_or_moves_the_cursor(between: str) -> None:
    for name in ("shop", "uvicorn.error", "root"):
        made = logging.LogRecord(
            name, logging.ERROR, __file__, 1, "said %s", (between + FORGED,), None
        )
        line = ConsoleFormatter().format(made)
        assert len(line.splitlines()) == 1
        assert line.isprintable()


@pytest.mark.parametrize("between", ["\n", "\r\n", "\x85", "\u2029"])
def test_no_line_of_a_traceback_begins_where_lines_of_the_log_do(between: str) -> None:
    try:
        raise RuntimeError(f"spilt{between}{FORGED}")
    except RuntimeError as error:
        failure, info = describe_failure(error), sys.exc_info()
    told = record("it failed", exc_info=info)
    below = logging.LogRecord("shop", 40, __file__, 1, "x\ny\n%s", (failure.block,), None)
    of_fields = logging.LogRecord("shop", 40, __file__, 1, "run: %s", (failure,), None)
    for each in (told, below, of_fields):
        first, *others = ConsoleFormatter().format(each).splitlines()
        assert "ERROR" in first or "INFO" in first
        assert all(line.startswith("    ") for line in others)
        assert "spilt" in "".join([first, *others])
    assert len(ConsoleFormatter().format(of_fields).splitlines()) == 1
    # A logging of somebody else's shows the message as it is.
    assert all(line.startswith("    ") for line in below.getMessage().split("\n")[2:])


def test_a_traceback_that_quotes_a_whole_payload_is_cut_before_it_is_searched() -> None:
    failure = describe_failure(RuntimeError("eyJ-" * 100_000 + "\nthe end"))
    assert "RuntimeError: eyJ-" in failure.traceback
    assert failure.traceback.rstrip().endswith("the end")
    assert len(failure.traceback) <= 20_000


def test_a_configuration_is_taken_by_the_standard_library() -> None:
    for format_ in ("console", "json"):
        config = log_config("info", format_)
        formatter = config["formatters"]["line"]
        made = logging.config.DictConfigurator(config).configure_formatter(formatter)
        assert made.format(record("hello"))


def test_each_delivery_is_a_line_with_its_session(
    make_hooks: MakeHooks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "millis_hooks.deliveries")
    with serving(make_hooks()) as client:
        client.get(PREFETCH)
        client.post(END_OF_CALL, content=end_of_call_body(session_id="-s1"))
        client.post(END_OF_CALL, headers={"Authorization": "Bearer wrong"})
    prefetch, end, refused = lines(caplog, "delivery")
    assert (prefetch["kind"], prefetch["outcome"]) == ("prefetch", "fresh")
    assert (end["session_id"], end["outcome"], end["status_code"]) == ("-s1", "stored", 200)
    assert end["duration_ms"] > 0
    assert (refused["outcome"], refused["status_code"]) == ("rejected", 401)
    assert "from=" not in caplog.text
    assert NUMBER[2:] not in caplog.text


def test_each_attempt_is_a_line_with_its_run_and_session(
    make_hooks: MakeHooks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "millis_hooks.runs")
    hooks = make_hooks()

    @hooks.on_end_of_call(max_attempts=1)
    def book(call: EndOfCall) -> None:
        raise RuntimeError(f"no slot for {NUMBER}")

    @hooks.on_end_of_call
    def note(call: EndOfCall) -> None: ...

    with serving(hooks) as client:
        client.post(END_OF_CALL, content=end_of_call_body(session_id="-s1"))
        eventually(lambda: len(lines(caplog, "attempt")) == 2)
    told = {line["handler"]: line for line in lines(caplog, "attempt")}
    assert told["book"]["level"] == "warning"
    assert told["book"]["error_type"] == "RuntimeError"
    assert (told["book"]["outcome"], told["book"]["state"]) == ("failed", "failed")
    assert (told["note"]["session_id"], told["note"]["attempt"]) == ("-s1", 1)
    assert NUMBER not in caplog.text


@pytest.mark.parametrize(
    "hostile", [NUMBER, "x" * 10_000, "\x1b[2J", "a\nb", "\ud800", "tel-14155550134"]
)
def test_an_id_may_be_anything(hostile: str) -> None:
    shown = shown_id(hostile)
    assert shown is not None
    assert len(shown) <= 200
    assert shown.isprintable()
    assert "4155550134" not in shown


def test_an_ordinary_id_is_shown_as_it_is() -> None:
    assert shown_id("-OA1XVnwxYz_123") == "-OA1XVnwxYz_123"


async def access_lines(caplog: pytest.LogCaptureFixture, **answers: int) -> list[str]:
    """What is logged at INFO for paths that are answered so."""
    caplog.set_level(logging.INFO, "millis_hooks.access")
    caplog.clear()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/told":
            scope["logged"] = True
        await send({"type": "http.response.start", "status": answers[scope["path"]]})

    async def send(message: Any) -> None: ...

    for path in answers:
        scope = {"type": "http", "method": "GET", "path": path}
        await AccessLog(app)(scope, None, send)  # type: ignore[arg-type]
    return [line.rsplit(" ", 2)[0] for line in caplog.messages]


@pytest.mark.anyio
async def test_the_server_writes_no_second_line(caplog: pytest.LogCaptureFixture) -> None:
    assert await access_lines(caplog, **{"/told": 200, "/other": 500}) == ["GET /other 500"]


@pytest.mark.anyio
async def test_only_probes_that_failed_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    answers = {"/healthz": 200, "/readyz": 503, "/in/metrics": 200, "/metrics": 401}
    assert await access_lines(caplog, **answers) == ["GET /readyz 503", "GET /metrics 401"]


SECRET = "Tr0ub4dor/&3+horse=battery"


@pytest.fixture
def known() -> Iterator[None]:
    known = know([SECRET, "short"])
    yield
    forget(known)


def escaped(text: str, times: int) -> str:
    for _ in range(times):
        text = quote(text, safe="")
    return text


@pytest.mark.anyio
@pytest.mark.usefixtures("known")
@pytest.mark.parametrize("times", [0, 1, 2, 3])
@pytest.mark.parametrize(
    "path", ["/millis/{}/Prefetch", "//millis/{}/prefetch", "/{}/prefetch", "/calls/{}", "/x;{}"]
)
async def test_an_accepted_secret_is_in_no_access_line(
    caplog: pytest.LogCaptureFixture, path: str, times: int
) -> None:
    path = path.format(escaped(SECRET, times))
    lines = await access_lines(caplog, **{path: 404}) + await access_lines(caplog, **{path: 200})
    assert len(lines) == 2
    for line in lines:
        assert "•" in line
        assert not [part for part in ("Tr0ub4dor", "horse", "battery") if part in line]


@pytest.mark.anyio
async def test_a_long_segment_stays_only_where_a_page_was_found(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = {
        "/millis/wrong-secret-of-somebody/end_of_call": 404,
        "/calls/-Ox1demoSess00000001": 200,
    }
    assert await access_lines(caplog, **answers) == [
        "GET /millis/•/end_of_call 404",
        "GET /calls/-Ox1demoSess00000001 200",
    ]


@pytest.mark.usefixtures("known")
def test_a_known_secret_is_in_no_log_line() -> None:
    line = ConsoleFormatter().format(record(f"{SECRET} and {escaped(SECRET, 1)}, in short"))
    assert line.endswith("• and •, in short")
