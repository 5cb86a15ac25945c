"""Handler runs on the page of a call, and their replay."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2 as httpx
import pytest
from sqlalchemy import select

from millis_hooks.call_log.tables import handler_runs
from millis_hooks.dashboard.formats import until
from support.dashboard_site import HOSTILE, Page, Site
from support.stored_calls import NOW

Row = tuple[int, str, bool]


@pytest.fixture
def call_id(site: Site) -> int:
    """An ended call, and a handler `sync_crm` that has five attempts."""
    site.stored.add_handler("sync_crm")
    return site.add_ended_call()


def replay(site: Site, run_id: object = None, **fields: str) -> httpx.Response:
    form = {"session_id": "-call"} | ({} if run_id is None else {"run_id": str(run_id)}) | fields
    page = {"referer": f"http://testserver{site.prefix}/calls/-call?in="}
    return site.browser.post(f"{site.prefix}/replay", data=form, headers=page)


def runs_of(site: Site) -> list[Row]:
    """Every run there is: which replaced it or not, and how it stands."""
    chosen = select(handler_runs.c.id, handler_runs.c.state, handler_runs.c.is_latest)
    rows = site.stored.write(lambda connection: connection.execute(chosen).all())
    return [(row.id, row.state, row.is_latest) for row in rows]


def add_failure(site: Site, run_id: int, number: int = 1, **columns: Any) -> None:
    defaults = {
        "outcome": "failed",
        "duration_ms": 31.0,
        "ended_at": NOW + timedelta(seconds=2),
        "error_type": "TimeoutError",
        "error_message": "read <timed> out",
        "traceback": f"Traceback (attempt {number}): <module>",
    }
    site.stored.add_attempt(run_id, number, **defaults | columns)


@pytest.mark.parametrize(
    ("states", "words"),
    [
        (["succeeded", "succeeded", "succeeded"], "3 succeeded"),
        (["succeeded", "pending", "running"], "2 waiting"),
        (["succeeded", "retrying", "pending", "succeeded"], "1 of 4 retrying"),
        (["failed", "retrying", "pending"], "1 of 3 failed"),
        ([], "none"),
    ],
)
def test_the_list_shows_the_worst_state_of_the_runs(
    site: Site, states: list[str], words: str
) -> None:
    call_id = site.stored.add_call("-a", prefetch_ms=1.0)
    for number, state in enumerate(states):
        site.stored.add_run(call_id, f"handler_{number}", state)
    assert f"1 ms {words}" in site.page("/calls").text


@pytest.mark.parametrize(
    ("state", "columns", "words"),
    [
        ("succeeded", {"spent": 1}, "sync_crm Succeeded 1 of 5"),
        ("failed", {"spent": 5}, "sync_crm Failed 5 of 5"),
        ("running", {"spent": 2}, "sync_crm Running 2 of 5"),
        ("pending", {}, "sync_crm Waiting"),
        ("pending", {"is_replay": True}, "sync_crm Replay Waiting"),
        (
            "retrying",
            {"spent": 1, "due_at": NOW + timedelta(seconds=40)},
            "sync_crm Retrying in 40 s Nov 21, 14:20:40 1 of 5",
        ),
    ],
)
def test_a_run_shows_its_state(
    site: Site, call_id: int, state: str, columns: dict[str, Any], words: str
) -> None:
    site.stored.add_run(call_id, "sync_crm", state, **columns)
    assert words in site.page("/calls/-call").text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "now"), (40, "in 40 s"), (600, "in 10 min"), (9000, "in 2 h"), (200_000, "in 2 d")],
)
def test_the_time_until_a_moment_is_rounded(seconds: float, words: str) -> None:
    assert until(NOW + timedelta(seconds=seconds), NOW) == words


def test_attempts_are_counted_alone_where_the_limit_is_unknown_or_lower_now(
    site: Site, call_id: int
) -> None:
    site.stored.add_handler("charge", max_attempts=2)
    site.stored.add_run(call_id, "charge", "failed", spent=3)
    site.stored.add_run(call_id, "gone", "failed", spent=4)
    text = site.page("/calls/-call").text
    assert "charge Failed 3 Retry" in text
    assert "gone Failed 4 Retry" in text


def test_a_failed_run_is_announced_with_its_exception(site: Site, call_id: int) -> None:
    site.stored.add_run(call_id, "save", "succeeded")
    run_id = site.stored.add_run(
        call_id, "sync_crm", "failed", spent=2, reason="2 of 2 attempts failed"
    )
    for number in (1, 2):
        add_failure(site, run_id, number)
    page = site.page("/calls/-call")
    assert "sync_crm failed after 2 attempts. TimeoutError: read <timed> out" in page.text
    assert "2 of 2 attempts failed TimeoutError: read <timed> out" in page.text
    assert f"#run-{run_id}" in page.links()


def test_a_run_that_was_given_up_is_announced_with_its_reason(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "failed", reason="no such customer")
    add_failure(site, run_id, outcome="gave_up", error_type="GiveUp", traceback=None)
    text = site.page("/calls/-call").text
    assert "sync_crm gave up. no such customer" in text


def test_a_retrying_run_is_announced_with_the_time(site: Site, call_id: int) -> None:
    for handler, seconds in (("later", 90), ("sync_crm", 40)):
        due_at = NOW + timedelta(seconds=seconds)
        site.stored.add_run(call_id, handler, "retrying", due_at=due_at)
    text = site.page("/calls/-call").text
    assert "2 of 2 handlers are retrying. sync_crm makes its next attempt in 40 s" in text
    assert "Handlers are retrying" in text


def test_each_attempt_has_its_outcome_and_traceback(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "running", spent=6)
    add_failure(site, run_id, 1)
    outcomes = ("interrupted", "handed_back", "timed_out", "retry", "new_here", None)
    for number, outcome in enumerate(outcomes, 2):
        site.stored.add_attempt(run_id, number, outcome=outcome)
    text = site.page("/calls/-call").text
    for words in (
        "raised: TimeoutError: read <timed> out Traceback Traceback (attempt 1): <module>",
        "interrupted by the end of the process",
        "handed back when the service stopped; not counted",
        "timed out",
        "asked for a retry",
        "new_here",
        "at work",
    ):
        assert words in text


def test_bars_are_relative_to_the_slowest_attempt(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "succeeded")
    for number, duration_ms in ((1, 50.0), (2, 200.0)):
        site.stored.add_attempt(run_id, number, outcome="succeeded", duration_ms=duration_ms)
    widths = [bar["width"] for bar in site.page("/calls/-call").all("rect")]
    assert widths[1:3] == ["25.00%", "100.00%"]


def test_a_replaced_run_stays_below_the_one_that_replaced_it(site: Site, call_id: int) -> None:
    first = site.stored.add_run(call_id, "sync_crm", "failed", is_latest=False)
    other = site.stored.add_run(call_id, "save", "succeeded")
    second = site.stored.add_run(call_id, "sync_crm", "failed", is_latest=False, is_replay=True)
    third = site.stored.add_run(call_id, "sync_crm", "succeeded", is_replay=True)
    runs = site.get("/calls/-call.json").json()["runs"]
    assert [run["id"] for run in runs] == [third, second, first, other]
    page = site.page("/calls/-call")
    assert "sync_crm Replay Superseded by replay Failed" in page.text
    assert "failed after" not in page.text
    assert "Handlers ran" in page.text


def test_a_run_that_tells_of_a_failed_one_names_it(site: Site, call_id: int) -> None:
    failed = site.stored.add_run(call_id, "sync_crm", "failed")
    site.stored.add_run(call_id, "to_slack", "succeeded", hook="failed", failed_run_id=failed)
    page = site.page("/calls/-call")
    assert f"to_slack Alert about sync_crm , run {failed} Succeeded" in page.text
    assert "sync_crm failed." in page.text


def test_left_out_runs_are_counted(site: Site, call_id: int) -> None:
    for _ in range(120):
        site.stored.add_run(call_id, "sync_crm", "failed", is_latest=False)
    assert "the newest 100 of 120" in site.page("/calls/-call").text


def test_handlers_that_ended_long_after_the_call_have_a_date(site: Site, call_id: int) -> None:
    late = NOW + timedelta(days=1)
    site.stored.add_run(call_id, "sync_crm", "succeeded", is_replay=True, state_since=late)
    assert "Handlers ran Nov 22, 14:20" in site.page("/calls/-call").text


def test_hostile_names_reasons_and_errors_are_shown_as_text(site: Site, call_id: int) -> None:
    site.stored.add_handler(HOSTILE)
    failed = site.stored.add_run(call_id, HOSTILE, "failed", reason=HOSTILE, spent=1)
    add_failure(site, failed, error_type=HOSTILE, error_message=HOSTILE, traceback=HOSTILE)
    site.stored.add_run(call_id, "gone" + HOSTILE, "succeeded")
    site.stored.add_run(call_id, HOSTILE, "retrying", hook="failed", failed_run_id=failed)
    page = site.page("/calls/-call")
    assert all(script.get("src") for script in page.all("script"))
    assert page.all("img") == []
    for _, attributes in page.elements:
        assert not any(name == "style" or name.startswith("on") for name in attributes)


def test_every_icon_of_runs_is_in_the_sprite(site: Site, call_id: int) -> None:
    for state in ("failed", "retrying", "succeeded", "running", "pending"):
        due_at = NOW if state == "retrying" else None
        site.stored.add_run(call_id, state, state, due_at=due_at)
    page = site.page("/calls/-call")
    sprite = site.get("/static/icons.svg").text
    icons = {(use["href"] or "").split("#")[1] for use in page.all("use")}
    assert [icon for icon in icons if f'id="{icon}"' not in sprite] == []


def test_what_waits_for_its_next_attempt_is_tried_now_at_a_click(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "retrying")
    page = site.page("/calls/-call")
    (button,) = page.all("button", **{"aria-label": "Try now: sync_crm"})
    assert "popovertarget" not in button
    assert page.all("input", name="run_id", value=str(run_id))


def test_what_failed_is_retried_at_a_click_from_the_alert(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "failed")
    page = site.page("/calls/-call")
    assert "Retry sync_crm" in page.text
    assert len(page.all("input", name="run_id", value=str(run_id))) == 2  # and in its row
    assert page.all("div", id=f"replay-{run_id}") == []


def test_replaying_a_success_says_what_it_does_and_has_to_be_confirmed(
    site: Site, call_id: int
) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "succeeded")
    page = site.page("/calls/-call")
    asking, doing = page.all("button", **{"aria-label": "Replay: sync_crm"})
    assert (asking["type"], asking["popovertarget"]) == ("button", f"replay-{run_id}")
    assert "popover" in page.all("div", id=f"replay-{run_id}")[0]
    assert "popovertarget" not in doing
    assert all("autofocus" in each for each in page.all("button", popovertargetaction="hide"))
    assert "Side effects (e-mails, CRM writes) happen again." in page.text


def test_runs_stand_above_the_transcript_only_where_one_failed(site: Site, call_id: int) -> None:
    for state, order in (("succeeded", ["tr-h", "ru-h"]), ("failed", ["ru-h", "tr-h"])):
        site.stored.add_run(call_id, f"sync_{state}", state)
        page = site.page("/calls/-call")
        ids = [attributes.get("id") for _, attributes in page.elements]
        assert [each for each in ids if each in order] == order


@pytest.mark.parametrize(
    ("handler", "state", "why"),
    [
        ("charge", "failed", "charge is registered as not repeatable"),
        ("charge", "succeeded", "charge is registered as not repeatable"),
        ("gone", "failed", "No handler is named gone any more"),
    ],
)
def test_what_cannot_be_replayed_says_why(
    site: Site, call_id: int, handler: str, state: str, why: str
) -> None:
    site.stored.add_handler("charge", repeatable=False)
    site.stored.add_run(call_id, handler, state)
    page = site.page("/calls/-call")
    (button,) = page.all("button", title=why)
    assert (button["type"], button["aria-disabled"]) == ("button", "true")
    assert page.all("input", name="run_id") == []


def test_a_run_at_work_or_replaced_offers_nothing(site: Site, call_id: int) -> None:
    site.stored.add_run(call_id, "sync_crm", "failed", is_latest=False)
    site.stored.add_run(call_id, "sync_crm", "pending", is_replay=True)
    site.stored.add_run(call_id, "save", "running")
    assert site.page("/calls/-call").all("input", name="run_id") == []


def test_replaying_a_call_offers_its_handlers_and_leaves_done_ones_unticked(
    site: Site, call_id: int
) -> None:
    site.stored.add_handler("charge", repeatable=False)
    site.stored.add_handler("save")
    for handler, state in (
        ("sync_crm", "failed"),
        ("save", "succeeded"),
        ("charge", "succeeded"),
        ("gone", "failed"),
        ("busy", "running"),
    ):
        site.stored.add_run(call_id, handler, state)
    page = site.page("/calls/-call")
    ticks = [
        each for each in page.all("input", type="checkbox") if "run-" in (each.get("name") or "")
    ]
    assert ["checked" in each for each in ticks] == [True, False, False, False, False]
    assert ["disabled" in each for each in ticks] == [False, False, True, True, True]
    assert "charge is done, not repeatable" in page.text
    assert "gone failed, no longer registered" in page.text
    assert "busy is already waiting or running" in page.text


def test_chosen_handlers_of_a_call_are_replayed(site: Site, call_id: int) -> None:
    runs = [site.stored.add_run(call_id, name, "failed") for name in ("sync_crm", "gone")]
    site.stored.add_handler("save")
    site.stored.add_run(call_id, "save", "succeeded")
    location = replay(site, chosen="1", **{f"run-{run_id}": "1" for run_id in runs}).headers[
        "location"
    ]
    assert len(runs_of(site)) == 4
    text = site.page(location).text
    assert "sync_crm is running again. 1 skipped" in text


def test_a_replay_of_nothing_replays_nothing(site: Site, call_id: int) -> None:
    site.stored.add_run(call_id, "sync_crm", "failed")
    location = replay(site, chosen="1").headers["location"]
    assert location == "/calls/-call#runs"
    assert "Nothing was replayed." in site.page(location).text
    assert len(runs_of(site)) == 1


def test_a_call_without_runs_has_nothing_to_replay(site: Site, call_id: int) -> None:
    assert "Replay" not in site.page("/calls/-call").text


def test_a_run_is_queued_again_and_the_page_says_so_once(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "failed")
    response = replay(site, run_id)
    assert response.status_code == 303
    assert response.headers["location"] == f"/calls/-call#run-{run_id + 1}"
    assert runs_of(site) == [(run_id, "failed", False), (run_id + 1, "pending", True)]
    for is_first in (True, False):
        page = site.page(response.headers["location"])
        assert "sync_crm is running again." in page.text
        assert bool(page.all("div", role="status", **{"class": "alert info"})) is is_first


def test_a_replay_leads_back_to_the_call_in_its_list(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "failed")
    page = site.page("/calls/-call?in=outcome%3Dfailed")
    assert page.all("input", name="in", value="outcome=failed")
    location = replay(site, run_id, **{"in": "outcome=failed"}).headers["location"]
    assert location == f"/calls/-call?in=outcome%3Dfailed#run-{run_id + 1}"


def test_two_clicks_queue_one_run(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "failed")
    replay(site, run_id)
    response = replay(site, run_id)
    assert response.headers["location"] == f"/calls/-call#run-{run_id}"
    assert len(runs_of(site)) == 2
    assert "Nothing was replayed. 1 skipped" in site.page(response.headers["location"]).text


def test_a_run_that_waits_for_its_next_attempt_is_tried_now(site: Site, call_id: int) -> None:
    run_id = site.stored.add_run(call_id, "sync_crm", "retrying", due_at=NOW + timedelta(hours=1))
    response = replay(site, run_id)
    assert runs_of(site) == [(run_id, "pending", True)]
    assert "sync_crm is running again." in site.page(response.headers["location"]).text


def test_every_handler_of_a_call_is_replayed_at_once(site: Site, call_id: int) -> None:
    site.stored.add_handler("charge", repeatable=False)
    for handler in ("sync_crm", "charge"):
        site.stored.add_run(call_id, handler, "succeeded")
    assert (
        "sync_crm is running again. 1 skipped" in site.page(replay(site).headers["location"]).text
    )
    assert len(runs_of(site)) == 3


@pytest.mark.parametrize("session_id", [HOSTILE, "line\nbreak", "a/b?c#d", "x.json"])
def test_a_call_of_any_name_is_replayed_as_browsers_send_it(site: Site, session_id: str) -> None:
    site.stored.add_handler("sync_crm")
    site.stored.add_run(site.add_ended_call(session_id), "sync_crm", "succeeded")
    page = site.page(f"/calls/{quote(session_id, safe='')}")
    value = page.all("input", name="session_id")[0]["value"] or ""
    response = replay(site, session_id=value.replace("\n", "\r\n"))
    assert "is running again." in site.page(response.headers["location"]).text


@pytest.mark.parametrize(
    "fields",
    [
        {"session_id": "-none"},
        {"session_id": ""},
        {"run_id": "99"},
        {"run_id": ""},
        {"run_id": "x"},
        {"run_id": "9" * 30},
        {"run_id": "-1"},
        {"run_id": "\u0663"},
        {"run-x": "1"},
        {"session_id": "-none", "run_id": "1"},
    ],
)
def test_what_is_not_there_is_not_replayed(
    site: Site, call_id: int, fields: dict[str, str]
) -> None:
    site.stored.add_run(call_id, "sync_crm", "failed")
    assert replay(site, **fields).status_code == 404
    assert len(runs_of(site)) == 1


@pytest.mark.parametrize("headers", [{"sec-fetch-site": "cross-site"}, {"origin": "https://a.b"}])
def test_a_replay_from_another_site_is_refused(
    site: Site, call_id: int, headers: dict[str, str]
) -> None:
    site.stored.add_run(call_id, "sync_crm", "failed")
    response = site.browser.post("/replay", data={"session_id": "-call"}, headers=headers)
    assert response.status_code == 403
    assert len(runs_of(site)) == 1


def test_a_replay_without_sign_in_runs_nothing_and_leads_back_to_the_call(
    site: Site, call_id: int
) -> None:
    site.stored.add_run(call_id, "sync_crm", "failed")
    site.browser.cookies.clear()
    response = replay(site)
    assert response.status_code == 303
    assert response.headers["location"] == "/login?next=%2Fcalls%2F-call"
    assert len(runs_of(site)) == 1


def test_a_replay_is_never_a_link(site: Site) -> None:
    assert site.get("/replay?session_id=-call").headers["location"] == "/calls"


def test_a_replay_form_larger_than_any_of_ours_is_refused(site: Site, call_id: int) -> None:
    assert replay(site, session_id="x" * 100_000).status_code == 413


def test_a_replay_that_cannot_be_written_is_a_page_too(site: Site, call_id: int) -> None:
    site.stored.write(lambda connection: connection.exec_driver_sql("DROP TABLE handlers"))
    site.stored.add_run(call_id, "sync_crm", "failed")
    response = replay(site)
    assert response.status_code == 503
    assert "The call log cannot be used" in Page(response).text


@pytest.mark.parametrize("cookie", ["1.-0", "-", "x", "1", "<b>-1", "9.-0", "1." * 999])
def test_a_notice_that_no_replay_wrote_says_nothing(site: Site, call_id: int, cookie: str) -> None:
    site.browser.cookies["mh_notice"] = cookie
    page = site.page("/calls/-call")
    assert page.all("div", role="status", **{"class": "alert info"}) == []


def test_links_and_forms_of_runs_stay_below_the_path_of_the_dashboard(tmp_path: Path) -> None:
    site = Site(tmp_path, prefix="/ops/voice")
    site.sign_in()
    site.stored.add_handler("sync_crm")
    site.stored.add_run(site.add_ended_call(), "sync_crm", "succeeded")
    page = site.page("/calls/-call")
    assert page.all("form", action="/ops/voice/replay")
    assert page.all("form", action="/replay") == []
    assert replay(site).headers["location"].startswith("/ops/voice/calls/-call#run-")
    site.stored.database.close()
