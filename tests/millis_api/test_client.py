"""The client of Millis' API: what goes out, what comes back, and what is asked again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import httpx2
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from millis_hooks import millis_api
from millis_hooks.exceptions import (
    ConfigError,
    MillisApiError,
    MillisBusyError,
    MillisKeyError,
    MillisNotFoundError,
    MillisRefusedError,
    MillisUnreachableError,
)
from millis_hooks.millis_api import LoggedCall, MillisApi, StartedCall, transport
from millis_hooks.millis_api.background import RepeatedWork
from millis_hooks.settings import Settings
from support.fake_millis import BASE, KEY, FakeMillis

T = TypeVar("T")

NOW = datetime(2026, 11, 21, 14, 20, tzinfo=UTC)
OURS, THEIRS = "+14155550199", "+14155550134"
REFUSED = httpx2.ConnectError("Connection refused")


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.0)


@pytest.fixture
def millis() -> FakeMillis:
    return FakeMillis()


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def start(millis: FakeMillis, **options: Any) -> StartedCall:
    return run(millis.client().start_outbound_call(OURS, THEIRS, **options))


async def every(millis: FakeMillis, **filters: Any) -> list[LoggedCall]:
    return [call async for call in millis.client().call_logs(**filters)]


def test_a_call_is_started_and_its_ids_come_back(millis: FakeMillis) -> None:
    started = start(millis, metadata={"tier": "gold"}, agent_id="-a1")
    assert (started.session_id, started.call_id) == ("-started-1", "call-1")
    told = {"from_phone": OURS, "to_phone": THEIRS, "metadata": {"tier": "gold"}, "agent_id": "-a1"}
    assert millis.asked == [("/start_outbound_call", told)]


def test_the_key_goes_out_bare(millis: FakeMillis) -> None:
    start(millis)
    assert millis.headers[0]["authorization"] == KEY


def test_numbers_are_sent_as_millis_takes_them(millis: FakeMillis) -> None:
    run(millis.client().start_outbound_call("+1 (415) 555-0199", "+49 30 90.18.20"))
    assert millis.asked[0][1] == {"from_phone": OURS, "to_phone": "+4930901820"}


@pytest.mark.parametrize("phone", ["4155550134", "", "+1415;rm", "+0123456789", "+1" * 30, "anna"])
def test_an_invalid_phone_number_is_not_called(millis: FakeMillis, phone: str) -> None:
    with pytest.raises(MillisRefusedError, match="to_phone is not a number"):
        run(millis.client().start_outbound_call(OURS, phone))
    assert millis.asked == []


def test_values_that_are_not_json_are_not_sent(millis: FakeMillis) -> None:
    with pytest.raises(MillisRefusedError, match="not JSON"):
        start(millis, metadata={"when": object()})


def test_started_calls_are_remembered(millis: FakeMillis) -> None:
    told: list[StartedCall] = []

    async def remember(started: StartedCall) -> None:
        told.append(started)

    started = run(millis.client(remember=remember).start_outbound_call(OURS, THEIRS))
    assert told == [started]


def test_a_call_is_registered_and_another_ended(millis: FakeMillis) -> None:
    async def both() -> StartedCall:
        async with millis.client() as api:
            await api.terminate("-s1", "Good bye.")
            return await api.register_call(agent_id="-a1", include_metadata_in_prompt=True)

    assert run(both()).call_id == "call-2"
    assert millis.asked == [
        ("/sessions/-s1/terminate", {"message": "Good bye."}),
        ("/register_call", {"agent_id": "-a1", "include_metadata_in_prompt": True}),
    ]


def test_ending_a_call_twice_does_no_harm(millis: FakeMillis) -> None:
    millis.troubles = [httpx2.ReadTimeout("late")]
    run(millis.client().terminate("-s1"))
    assert millis.paths == ["/sessions/-s1/terminate"] * 2


def test_one_call_is_found_and_typed(millis: FakeMillis) -> None:
    millis.add("-s1", at=NOW, call_status="no-answer")
    call = run(millis.client(own_numbers=frozenset({OURS})).call_log("-s1"))
    assert (call.outcome, call.started_at, call.is_over) == ("unreached", NOW, True)
    assert (call.direction, call.customer_phone) == ("inbound", THEIRS)


def test_a_call_under_way_is_not_over(millis: FakeMillis) -> None:
    millis.add("-s1", at=NOW, call_status="in_progress")
    assert not run(millis.client().call_log("-s1")).is_over


def test_an_entry_that_names_no_session_is_of_the_one_asked_about(millis: FakeMillis) -> None:
    millis.troubles = [JSONResponse({"call_id": "c1", "session_id": None, "ts": None})]
    call = run(millis.client().call_log("-s1"))
    assert (call.session_id, call.raw["session_id"]) == ("-s1", "-s1")


def test_an_entry_of_another_session_is_not_taken(millis: FakeMillis) -> None:
    millis.troubles = [JSONResponse({"session_id": "-s2"})]
    with pytest.raises(MillisUnreachableError, match="another call"):
        run(millis.client().call_log("-s1"))


@pytest.mark.parametrize("session_id", ["", ".", "..", " ", "s" * 10_000])
def test_an_invalid_id_is_refused(millis: FakeMillis, session_id: str) -> None:
    with pytest.raises(MillisNotFoundError):
        run(millis.client().call_log(session_id))
    assert millis.asked == []


def test_an_id_stays_one_part_of_the_address(millis: FakeMillis) -> None:
    with pytest.raises(MillisNotFoundError):
        run(millis.client().call_log("../agents?x=\ud800"))
    assert millis.paths == ["/call-logs/..%2Fagents%3Fx%3D%3F"]


def test_call_logs_are_read_to_the_end(millis: FakeMillis) -> None:
    for number in range(5):
        millis.add(f"-s{number}", at=NOW + timedelta(minutes=number))
    calls = run(every(millis, since=NOW + timedelta(minutes=1), agent_id="-a1"))
    assert [call.session_id for call in calls] == ["-s4", "-s3", "-s2", "-s1"]
    first = {"limit": "100", "start_time": str(int(NOW.timestamp()) + 60), "agent_id": "-a1"}
    assert millis.asked[0] == ("/call-logs", first)
    assert len(millis.asked) == 2


def test_a_cursor_that_comes_again_is_not_followed(millis: FakeMillis) -> None:
    page = JSONResponse({"histories": [{"session_id": "-s1"}], "next_cursor": 17.5})
    millis.troubles = [page, page]
    assert len(run(every(millis))) == 2


@pytest.mark.parametrize("brings_new", [False, True])
def test_pages_that_never_end_raise_an_error(
    millis: FakeMillis, monkeypatch: pytest.MonkeyPatch, brings_new: bool
) -> None:
    monkeypatch.setattr(millis_api, "MAX_PAGES", 5)
    millis.troubles = [
        JSONResponse(
            {"histories": [{"session_id": f"-s{brings_new * number}"}], "next_cursor": -number}
        )
        for number in range(9)
    ]
    with pytest.raises(MillisUnreachableError, match="Millis' call logs"):
        run(every(millis))
    assert len(millis.asked) == (5 if brings_new else 2)


def test_a_page_without_calls_is_the_last(millis: FakeMillis) -> None:
    empty = [JSONResponse({"histories": [], "next_cursor": number}) for number in range(3)]
    millis.troubles = [*empty]
    assert run(every(millis)) == []
    assert len(millis.asked) == 1


def test_entries_that_name_no_session_are_counted_and_left_out(millis: FakeMillis) -> None:
    histories = [{"session_id": "-s1"}, {"call_id": "c1"}, None, "x", {"session_id": ["-s2"]}]
    millis.troubles = [JSONResponse({"histories": histories, "next_cursor": None})]

    async def pages() -> list[tuple[int, int]]:
        found = millis.client().pages()
        return [(len(page.calls), page.unreadable) async for page in found]

    assert run(pages()) == [(1, 4)]


def test_not_found_may_mean_an_empty_list(millis: FakeMillis) -> None:
    millis.troubles = [JSONResponse({"detail": "No call history"}, 404)]
    assert run(every(millis)) == []


def test_an_unknown_api_address_is_not_an_empty_list(
    millis: FakeMillis,
) -> None:
    millis.troubles = [JSONResponse({"detail": "Not Found"}, 404)]
    with pytest.raises(MillisNotFoundError):
        run(every(millis))


@pytest.mark.parametrize(
    "answer", [b"[]", b"3", b'{"histories": 7}', b"<html>", b"\xff", b"[" * 9**5]
)
def test_invalid_answers_are_errors(millis: FakeMillis, answer: bytes) -> None:
    millis.troubles = [Response(answer)]
    with pytest.raises(MillisUnreachableError, match="Millis answered with"):
        run(every(millis))


def test_a_read_is_retried(millis: FakeMillis) -> None:
    millis.troubles = [REFUSED, httpx2.ReadTimeout("late"), PlainTextResponse("", 502)]
    assert run(every(millis)) == []
    assert len(millis.asked) == 4


def test_a_read_is_not_retried_for_ever(millis: FakeMillis) -> None:
    millis.troubles = [REFUSED] * 9
    with pytest.raises(MillisUnreachableError, match="cannot be reached: Connection refused"):
        run(every(millis))
    assert len(millis.asked) == 4


@pytest.mark.parametrize(
    "trouble",
    [
        REFUSED,
        httpx2.ConnectTimeout("late"),
        JSONResponse({}, 429),
        JSONResponse({}, 503, {"Retry-After": "0"}),
    ],
    ids=["refused", "no connection", "too many", "away"],
)
def test_a_call_that_cannot_have_begun_is_requested_again(
    millis: FakeMillis, trouble: Response | Exception
) -> None:
    millis.troubles = [trouble]
    assert start(millis).session_id == "-started-2"


@pytest.mark.parametrize(
    "trouble",
    [
        httpx2.ReadTimeout("late"),
        httpx2.ReadError("broken"),
        httpx2.RemoteProtocolError("gone"),
        JSONResponse({}, 500),
        JSONResponse({}, 502),
        JSONResponse({}, 503),
        JSONResponse({}, 504),
        PlainTextResponse("<html>"),
    ],
    ids=["late", "broken", "gone", "500", "502", "503", "504", "no JSON"],
)
def test_a_call_that_may_have_begun_is_never_requested_again(
    millis: FakeMillis, trouble: Response | Exception
) -> None:
    millis.troubles = [trouble]
    with pytest.raises(MillisUnreachableError) as caught:
        start(millis)
    assert (len(millis.asked), caught.value.may_be_done) == (1, True)


def test_a_long_retry_after_is_reported_instead_of_waited_for(millis: FakeMillis) -> None:
    millis.troubles = [JSONResponse({"detail": "Too many calls"}, 429, {"Retry-After": "120"})]
    with pytest.raises(MillisBusyError, match="Too many calls") as caught:
        start(millis)
    assert (caught.value.retry_after_s, len(millis.asked)) == (120, 1)


def test_retry_after_may_be_a_date(millis: FakeMillis) -> None:
    past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
    millis.troubles = [JSONResponse({}, 503, past), JSONResponse({}, 503, {"Retry-After": "soon"})]
    assert run(every(millis)) == []


class Silent(httpx2.AsyncBaseTransport):
    """A network that never answers."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await asyncio.Event().wait()
        raise AssertionError


def test_a_request_with_its_retries_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "DEADLINE_S", 0.01)
    silent = MillisApi(KEY, base_url=BASE, transport=Silent())
    with pytest.raises(MillisUnreachableError, match="no answer within") as caught:
        run(silent.start_outbound_call(OURS, THEIRS))
    assert caught.value.may_be_done


def test_the_last_failure_is_raised_at_the_deadline(
    millis: FakeMillis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "DEADLINE_S", 0.2)
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 5.0)
    millis.troubles = [REFUSED]
    with pytest.raises(MillisUnreachableError, match="cannot be reached") as caught:
        start(millis)
    assert not caught.value.may_be_done


def test_a_refusal_names_the_field_without_its_value(millis: FakeMillis) -> None:
    fault = {"loc": ["body", "to_phone"], "msg": "not in E.164", "input": THEIRS, "ctx": KEY}
    millis.troubles = [JSONResponse({"detail": [fault, "odd"]}, 422)]
    with pytest.raises(MillisRefusedError) as caught:
        start(millis)
    assert str(caught.value) == "Millis answered 422: body.to_phone: not in E.164."
    assert caught.value.status == 422


def test_no_error_has_the_key_or_a_number(millis: FakeMillis) -> None:
    echo = f"no key {KEY} may call {THEIRS}" + "x" * 5000
    millis.troubles = [JSONResponse({"detail": echo}, 401)]
    with pytest.raises(MillisKeyError, match="MILLIS_HOOKS_API_KEY") as caught:
        start(millis)
    assert KEY not in str(caught.value)
    assert THEIRS not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_redirect_is_not_followed(millis: FakeMillis) -> None:
    millis.troubles = [Response(status_code=307, headers={"location": "https://evil.example"})]
    with pytest.raises(MillisApiError, match="answered 307"):
        run(every(millis))
    assert len(millis.asked) == 1


def test_a_too_long_answer_of_millis_is_refused(
    millis: FakeMillis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 100)
    millis.troubles = [Response(b" " * 101)]
    with pytest.raises(MillisUnreachableError, match="too long"):
        run(every(millis))


@pytest.mark.parametrize("key", ["", " ", "Bearer abc", "with\nline", "ключ"])
def test_a_malformed_key_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be sent") as caught:
        MillisApi(key)
    assert not key.strip() or key not in str(caught.value)


@pytest.mark.parametrize("url", ["millis.ai", "ftp://millis.ai", "https://", "http://[", "/x"])
def test_an_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        MillisApi(KEY, base_url=url)


def test_the_key_is_sent_over_https_or_to_this_machine_only() -> None:
    with pytest.raises(ConfigError, match="https"):
        MillisApi(KEY, base_url="http://millis.example")
    assert MillisApi(KEY, base_url="http://127.0.0.1:8000/sandbox/api/").is_stand_in


def test_regions_have_their_addresses() -> None:
    assert MillisApi(KEY).base_url == "https://api-west.millis.ai"
    assert MillisApi(KEY, "eu").base_url == "https://api-eu-west.millis.ai"


def test_settings_make_a_client() -> None:
    with pytest.raises(ConfigError, match="MILLIS_HOOKS_API_KEY"):
        MillisApi.of(Settings.load())
    assert MillisApi.of(Settings.load(api_key=KEY, api_region="eu")).base_url.endswith("millis.ai")


def test_a_client_works_on_one_loop_after_another(millis: FakeMillis) -> None:
    api = millis.client()
    for _ in range(2):
        assert run(api.start_outbound_call(OURS, THEIRS)).session_id


def test_requests_to_millis_are_not_logged(
    millis: FakeMillis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    start(millis)
    ours = [each for each in caplog.records if each.name.startswith("millis_hooks")]
    assert ours == []


def test_names_of_agents_are_read_from_a_list_whatever_else_is_in_it(millis: FakeMillis) -> None:
    millis.agents = [{"id": "-Ox1", "name": "Front\ndesk", "config": {}}, {"id": "-Ox2"}, 7]
    assert run(millis.client().agent_names()) == {"-Ox1": "Front desk"}


def test_work_that_fails_is_logged_once_until_it_succeeds(
    millis: FakeMillis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "millis_hooks")
    taken: list[dict[str, str]] = []

    async def fetch() -> None:
        taken.append(await millis.client().agent_names())

    work = RepeatedWork(fetch, name="names", title="fetching names", first_s=0, every_s=60)
    millis.troubles = [PlainTextResponse("no", 401), JSONResponse({"nothing": 1})]
    for _ in range(2):
        run(work.do_once())
    assert taken == []
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    run(work.do_once())
    assert taken == [{}]
