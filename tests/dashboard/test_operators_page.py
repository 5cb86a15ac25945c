"""Roles, confirmations, the audit log and the page of operators."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path

import httpx2 as httpx
import pytest
from sqlalchemy import update
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from millis_hooks.call_log.tables import calls
from millis_hooks.dashboard.endpoints import Endpoints, OperatorRequest
from millis_hooks.dashboard.setup import Setup
from millis_hooks.exceptions import StorageError
from millis_hooks.operators import Operator, Role, accounts
from millis_hooks.operators.accounts import hash_password
from support.app import SECRET
from support.dashboard_site import HOSTILE, PASSWORD, Page, Site
from support.stored_calls import NOW

ANNAS = "the password of anna"


class Team(Site):
    """A site with named operators."""

    def add(self, name: str, role: Role) -> None:
        hashed = hash_password(ANNAS)
        self.stored.write(
            lambda connection: accounts.add(
                connection, name, role=role, password_hash=hashed, now=NOW
            )
        )

    def enter_as(self, role: Role) -> None:
        self.add(role, role)
        self.browser.cookies.clear()
        assert self.sign_in(ANNAS, username=role).status_code == 303

    def hold(self, cookie: str) -> None:
        """Have the browser hold this session and no other."""
        self.browser.cookies.clear()
        self.browser.cookies.set("mh_session", cookie)

    def post(self, path: str, **fields: str) -> httpx.Response:
        return self.browser.post(self.prefix + path, data=fields)

    def actions(self) -> list[tuple[str | None, str, str | None]]:
        entries = self.operators.audit_log(Operator("admin"), size=100)
        return [(each.operator, each.action, each.subject) for each in reversed(entries)]


@pytest.fixture
def anonymous(tmp_path: Path) -> Iterator[Team]:
    site = Team(tmp_path)
    yield site
    site.stored.database.close()


@pytest.fixture
def site(anonymous: Team) -> Team:
    anonymous.sign_in()
    return anonymous


def replay(site: Team) -> httpx.Response:
    call_id = site.add_ended_call("-call")
    site.stored.add_handler("sync")
    site.stored.add_run(call_id, "sync", "failed")
    return site.post("/replay", session_id="-call")


def test_a_replay_by_an_operator_is_recorded(site: Team) -> None:
    assert replay(site).status_code == 303
    assert site.actions()[-1] == ("admin", "replay", "-call")


def test_a_viewer_is_refused_on_the_server(site: Team) -> None:
    site.enter_as("view")
    refused = replay(site)
    assert refused.status_code == 403
    assert "Your role is view." in Page(refused).text
    assert Page(refused).all("nav", **{"aria-label": "Main"})
    assert "replay" not in {action for _, action, _ in site.actions()}


def test_a_viewer_is_offered_only_allowed_actions(site: Team) -> None:
    replay(site)
    site.enter_as("view")
    page = site.page("/calls/-call")
    actions = {form["action"] for form in page.all("form", method="post")}
    assert actions == {"/logout", "/time-zone"}
    assert not [link for link in page.links() if link.startswith(("/forget", "/calls/export"))]


def changing_routes(site: Team) -> list[Route]:
    routes = [route for route in site.app.routes if isinstance(route, Route)]
    return [route for route in routes if "POST" in (route.methods or ())]


#: What is one's own to change, and what is needed to get in and out.
OPEN_TO_ALL = {
    "/login",
    "/logout",
    "/time-zone",
    "/operators/sign-out",
    "/operators/end-session",
}


def test_forms_require_the_operate_role_with_few_exceptions(site: Team) -> None:
    site.enter_as("view")
    closed = {route.path for route in changing_routes(site)} - OPEN_TO_ALL
    assert {"/replay", "/forget", "/setup/reveal"} <= closed
    refused = {path for path in closed if site.post(path).status_code == 403}
    assert refused == closed


def test_forms_require_sign_in(anonymous: Team) -> None:
    for route in changing_routes(anonymous):
        response = anonymous.post(route.path)
        assert (response.status_code, route.path) in {(303, route.path), (401, "/login")}
        assert response.headers.get("location", "/login").startswith("/login")


def test_exports_require_the_operate_role_and_are_recorded(site: Team) -> None:
    site.add_ended_call()
    assert site.get("/calls/export.csv?number=%2B4930901820&outcome=completed").status_code == 200
    assert site.actions()[-1][1] == "export"
    assert "4930901820" not in str(site.actions())
    site.enter_as("view")
    assert site.get("/calls/export.csv").status_code == 403


def test_a_reveal_asks_for_the_password_again_after_a_while_and_continues(site: Team) -> None:
    assert SECRET in site.post("/setup/reveal").text
    site.now += timedelta(minutes=15)
    question = site.post("/setup/reveal", hook='"><script>')
    assert SECRET not in question.text
    assert Page(question).all("input", name="hook", value='"><script>')
    assert site.actions()[-1][1] == "reveal"
    assert len(site.actions()) == 2
    wrong = site.post("/setup/reveal", confirm_password="wrong")
    assert wrong.status_code == 401
    assert SECRET not in wrong.text
    assert SECRET in site.post("/setup/reveal", confirm_password=PASSWORD).text
    assert [action for _, action, _ in site.actions()][-2:] == ["refused", "reveal"]
    assert SECRET in site.post("/setup/reveal").text


def test_an_unrecordable_reveal_shows_nothing(site: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise StorageError("the disk is full")

    monkeypatch.setattr(site.operators, "record", refuse)
    refused = site.post("/setup/reveal")
    assert refused.status_code == 503
    assert SECRET not in refused.text


def test_the_confirmation_password_never_reaches_an_action(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Mapping[str, str]] = []

    def act(request: OperatorRequest) -> Response:
        seen.append(request.fields)
        return PlainTextResponse("done")

    def routes(_: Setup, endpoints: Endpoints) -> Iterator[Route]:
        yield endpoints.form("/act", "act", act, needs_password=lambda _: True)

    monkeypatch.setattr(Setup, "routes", routes)
    site = Team(tmp_path)
    site.sign_in()
    site.now += timedelta(hours=1)
    site.post("/act", what="x", confirm_password=PASSWORD)
    site.stored.database.close()
    assert seen == [{"what": "x"}]


def test_the_role_operate_sees_all_sessions_and_the_audit_log(site: Team) -> None:
    site.add("anna", "view")
    site.browser.cookies.clear()
    agent = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
    site.browser.post(
        "/login",
        data={"username": "anna", "password": ANNAS},
        headers={"user-agent": agent},
    )
    site.browser.cookies.clear()
    site.sign_in()
    text = site.page("/operators").text
    assert "Firefox on Linux" in text
    assert "anna" in text
    assert text.count("Signed in") == 1 + 3
    twin = site.get("/operators.json")
    assert [account["name"] for account in twin.json()["accounts"]] == ["admin", "anna"]
    assert "$argon2" not in twin.text


def test_the_role_view_sees_its_own_sessions_and_entries(site: Team) -> None:
    site.enter_as("view")
    twin = site.get("/operators.json").json()
    assert {each["session"]["operator"] for each in twin["sessions"]} == {"view"}
    assert {each["entry"]["operator"] for each in twin["audit_log"]} == {"view"}
    assert twin["accounts"] == []
    assert "Your account" in site.page("/operators").text


def test_a_session_is_ended_from_the_page(site: Team) -> None:
    cookie = site.browser.cookies["mh_session"]
    site.browser.cookies.clear()
    site.sign_in()
    [other] = [
        each["session"]["key"]
        for each in site.get("/operators.json").json()["sessions"]
        if not each["is_own"]
    ]
    assert site.post("/operators/end-session", session=other).headers["location"] == "/operators"
    site.hold(cookie)
    assert site.get("/calls").status_code == 303


def test_ending_an_unknown_session_is_refused(site: Team) -> None:
    assert site.post("/operators/end-session", session="x").status_code == 404


def test_every_role_can_sign_out_everywhere(site: Team) -> None:
    site.enter_as("view")
    assert site.post("/operators/sign-out").headers["location"] == "/login"
    assert site.get("/calls").status_code == 303


def test_the_audit_log_is_paged(site: Team) -> None:
    for number in range(60):
        site.operators.record(Operator("admin"), "replay", subject=f"-{number}")
    first = site.get("/operators.json").json()
    assert len(first["audit_log"]) == 50
    page = site.page(f"/operators?before={first['older']}")
    assert f"/operators?before={first['older']}#audit-log" in site.page("/operators").links()
    assert "-9" in page.text
    assert site.get("/operators?before=%00x").status_code == 200


def test_hostile_names_of_browsers_and_calls_are_text(anonymous: Team) -> None:
    anonymous.browser.headers["user-agent"] = "<script>alert(1)</script>\"'><img src=x>"
    anonymous.sign_in()
    anonymous.operators.record(Operator("admin"), "replay", subject=HOSTILE)
    page = anonymous.page("/operators")
    assert not page.all("img")
    assert all("src" in script for script in page.all("script"))
    assert "alert(1)" in page.text


def test_the_sign_in_form_has_a_name_if_there_are_named_operators(anonymous: Team) -> None:
    assert anonymous.page("/login").all("input", name="username")[0]["value"] == "admin"
    anonymous.add("anna", "view")
    [field] = anonymous.page("/login").all("input", name="username")
    assert "hidden" not in field
    refused = Page(anonymous.sign_in("wrong", username=HOSTILE))
    assert refused.all("input", name="username")[0]["value"] == HOSTILE
    assert "That is not the name and password of an operator." in refused.text


def test_over_https_the_cookie_is_bound_to_the_host(anonymous: Team) -> None:
    anonymous.browser.base_url = httpx.URL("https://testserver")
    set_cookie = anonymous.sign_in().headers["set-cookie"]
    assert set_cookie.startswith("__Host-mh_session=")
    assert "Secure" in set_cookie
    assert "Domain" not in set_cookie
    assert anonymous.get("/calls").status_code == 200
    assert anonymous.post("/logout").headers["set-cookie"].startswith("__Host-mh_session=")


def test_below_a_path_the_cookie_is_bound_to_https(tmp_path: Path) -> None:
    site = Team(tmp_path, prefix="/hooks")
    site.browser.base_url = httpx.URL("https://testserver")
    set_cookie = site.sign_in().headers["set-cookie"]
    site.stored.database.close()
    assert set_cookie.startswith("__Secure-mh_session=")
    assert "Path=/hooks" in set_cookie


def test_a_cookie_from_before_the_sign_in_is_invalid_after_it(site: Team) -> None:
    before = site.browser.cookies["mh_session"]
    site.sign_in()
    assert site.browser.cookies["mh_session"] != before
    site.hold(before)
    assert site.get("/calls").status_code == 303


def test_a_call_is_deleted_after_a_page_that_lists_what_is_removed(site: Team) -> None:
    site.add_ended_call("-call")
    site.add_ended_call("-other")
    link = "/forget?session_id=-call"
    assert link in site.page("/calls/-call").links()
    question = site.page(link)
    assert "1 call, 1 webhook delivery" in question.text
    assert site.get("/calls/-call").status_code == 200
    gone = site.post("/forget", session_id="-call")
    done = site.page(gone.headers["location"])
    (receipt,) = (link for link in done.links() if "receipt.txt" in link)
    assert "Erased:    -call\nBy:        admin\n" in site.get(receipt).text
    assert "Nothing of this call is stored" in site.page(link).text
    assert site.get("/calls/-call").status_code == 404
    assert site.get("/calls/-other").status_code == 200
    assert site.actions()[-1] == ("admin", "forget", "-call")


def test_a_call_whose_handlers_are_not_done_is_not_deleted(site: Team) -> None:
    site.stored.add_run(site.add_ended_call("-call"), "sync", "running")
    assert "Nothing can be deleted now" in site.page("/forget?session_id=-call").text
    assert site.post("/forget", session_id="-call").status_code == 409
    assert site.get("/calls/-call").status_code == 200
    assert "forget" not in {action for _, action, _ in site.actions()}


def test_a_viewer_deletes_nothing(site: Team) -> None:
    site.add_ended_call("-call")
    site.enter_as("view")
    assert site.get("/forget?session_id=-call").status_code == 403
    assert site.get("/forget.json?session_id=-call").status_code == 403
    assert site.post("/forget", session_id="-call").status_code == 403


def test_everything_about_a_number_is_erased_with_a_receipt(site: Team) -> None:
    number = "+14155550134"
    for each in range(6):
        site.add_ended_call(f"-call-{each}")
        site.stored.write(
            lambda connection: connection.execute(update(calls).values(from_phone=number))
        )
    site.add_ended_call("-other")
    question = site.page("/forget?number=%2B1+415+555+0134&in=q%3Dtable")
    assert "6 calls , received Nov 21 2026" in question.text
    assert "/calls?q=table" in question.links()
    gone = site.post("/forget", number=number, **{"in": "q=table"})
    done = site.page(gone.headers["location"])
    assert "/calls?q=table" in done.links()
    (receipt,) = (link for link in done.links() if "receipt.txt" in link)
    assert "+1 415 555 0134" in site.get(receipt).text
    (left,) = site.get("/calls.json").json()["page"]["rows"]
    assert left["call"]["session_id"] == "-other"
    what = (
        "a number ending in 0134: 6 calls, 6 webhook deliveries, received 2026-11-21 to 2026-11-21"
    )
    assert site.actions()[-1] == ("admin", "forget", what)


@pytest.mark.parametrize(
    ("number", "why"), [("Ada", "not a phone number"), ("123", "not a phone number")]
)
def test_what_is_no_number_is_refused_at_its_field(site: Team, number: str, why: str) -> None:
    page = site.page(f"/forget?number={number}")
    assert why in page.text
    assert page.all("input", name="number", **{"aria-invalid": "true"})
    assert site.post("/forget", number=number).status_code == 404
    assert site.post("/forget").status_code == 404


def test_without_a_subject_the_page_asks_for_a_number(site: Team) -> None:
    assert site.page("/forget?session_id=").all("input", name="number")


def test_a_hostile_session_id_is_deleted_like_any_other(site: Team) -> None:
    site.stored.add_delivery(session_id=HOSTILE)
    page = Page(site.browser.get("/forget", params={"session_id": HOSTILE}))
    assert not page.all("img")
    assert page.all("input", name="session_id", value=HOSTILE)
    assert site.post("/forget", session_id=HOSTILE).status_code == 303
