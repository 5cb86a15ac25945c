"""The setup page: the address, masked secrets, what arrived, and the connection test."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import insert, select
from typer.testing import CliRunner

from millis_hooks.call_log.tables import audit_log, rejections
from millis_hooks.checks import CheckResult, bad, ok, warn
from millis_hooks.cli.commands import app
from millis_hooks.dashboard.connection_test import ConnectionTest
from millis_hooks.dashboard.setup import Setup
from millis_hooks.environment.addresses import is_link_local
from millis_hooks.exceptions import StorageError
from millis_hooks.operators import accounts
from millis_hooks.operators.accounts import hash_password
from millis_hooks.protocol.test_marks import TEST_SOURCE, Marks
from millis_hooks.settings import Settings
from support.app import SECRET
from support.dashboard_site import HOSTILE, PASSWORD, Page, Site, make_setup
from support.stored_calls import NOW

PUBLIC = "https://hooks.example.com"
OTHER = "another-secret-for-tests-only-02"

Peer = Callable[[httpx2.Request], httpx2.Response]


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return signed_in(tmp_path)


def signed_in(folder: Path, **settings: Any) -> Site:
    site = Site(folder, setup=make_setup(**settings))
    site.sign_in()
    return site


def through(folder: Path, peer: Peer, **settings: Any) -> Site:
    """A site whose tests go to `peer` instead of the network."""
    loaded = Settings.load(**({"secrets": SECRET, "public_url": PUBLIC} | settings))

    def make_client(_: str) -> httpx2.Client:
        return httpx2.Client(transport=httpx2.MockTransport(peer))

    site = Site(folder, setup=Setup(loaded, ConnectionTest(loaded, make_client=make_client)))
    site.sign_in()
    return site


def shown(site: Site, query: str = "") -> dict[str, Any]:
    view: dict[str, Any] = site.get(f"/setup.json{query}").json()
    return view


def send(site: Site, hook: str, **fields: str) -> httpx2.Response:
    return site.browser.post("/setup/test", data={"hook": hook} | fields)


def sent(site: Site, hook: str, **fields: str) -> dict[str, Any]:
    """Send a test, and return what the page then says became of it."""
    led_to = send(site, hook, **fields).headers["location"]
    trial: dict[str, Any] = shown(site, "?" + led_to.partition("?")[2].partition("#")[0])["test"]
    return trial


def test_a_log_that_never_had_a_call_leads_to_setup(site: Site) -> None:
    assert site.get("/").headers["location"] == "/setup"
    site.add_ended_call()
    assert site.get("/").headers["location"] == "/calls"


def test_the_setup_page_requires_sign_in(tmp_path: Path) -> None:
    site = Site(tmp_path)
    assert site.get("/setup").headers["location"].startswith("/login")
    assert site.get("/setup.json").status_code == 401


def test_the_address_is_that_of_the_browser(site: Site) -> None:
    view = shown(site)
    assert (view["address"]["url"], view["address"]["origin"]) == ("http://testserver", "browser")
    assert view["webhooks"][1]["url"] == "http://testserver/millis/end-of-call"


def test_the_address_includes_the_mount_path(tmp_path: Path) -> None:
    site = Site(tmp_path, prefix="/ops/voice")
    site.sign_in()
    assert shown(site)["webhooks"][0]["url"] == "http://testserver/ops/voice/millis/prefetch"


def test_forwarded_hosts_are_ignored(site: Site) -> None:
    headers = {"X-Forwarded-Host": "evil.example", "Forwarded": "host=evil.example"}
    answer = site.browser.get("/setup", headers=headers)
    assert "evil.example" not in answer.text


@pytest.mark.parametrize("host", ["[", "a b", "<script>", "evil.example/x?y", ""])
def test_an_invalid_host_is_not_shown(site: Site, host: str) -> None:
    view = site.browser.get("/setup.json", headers={"Host": host}).json()
    assert view["address"]["url"] == PUBLIC


def test_a_typed_address_precedes_the_setting_and_the_setting_the_browser(tmp_path: Path) -> None:
    site = signed_in(tmp_path, public_url="https://calls.example.org/")
    assert shown(site)["address"]["url"] == "https://calls.example.org"
    typed = shown(site, "?url=https://my.example/&agent=nobody")
    assert (typed["address"]["url"], typed["address"]["is_ours"]) == ("https://my.example", False)
    assert typed["params"] == {"url": "https://my.example"}


@pytest.mark.parametrize(
    "typed",
    [
        "hooks.example.com",
        "javascript:alert(1)",
        "ftp://hooks.example.com",
        "https://",
        "https://user:password@hooks.example.com",
        "https://hooks.example.com/?x=1",
        "https://hooks.example.com:99999",
        "http://169.254.169.254",
        "http://[fe80::1]",
        'https://hooks.example.com/%22"><script>',
        "https://[",
        "https://" + "a" * 10_000,
    ],
)
def test_an_invalid_public_address_is_reported_and_not_used(site: Site, typed: str) -> None:
    answer = site.browser.get("/setup", params={"url": typed})
    field = Page(answer).all("input", name="url")[0]
    assert field["aria-invalid"] == "true"
    assert (
        shown(site)["webhooks"]
        == site.browser.get("/setup.json", params={"url": typed}).json()["webhooks"]
    )


def test_a_loopback_address_comes_with_a_tunnel_command(tmp_path: Path) -> None:
    site = signed_in(tmp_path)
    view = site.browser.get("/setup.json", headers={"Host": "localhost:8000"}).json()
    assert "cannot reach localhost" in view["address"]["warning"]
    assert view["address"]["tunnel"] == "cloudflared tunnel --url http://localhost:8000"
    assert "Use https" in shown(site)["address"]["warning"]
    assert shown(site, f"?url={PUBLIC}")["address"]["warning"] is None


def test_the_configuration_is_that_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"secret_header": "X-Key", "secret_in_path": True, "secrets": SECRET}
    site = signed_in(tmp_path, **settings)
    revealed = site.browser.post("/setup/reveal", data={"url": PUBLIC})
    for form, id_ in (("object", "config"), ("string", "path-config")):
        env = {f"MILLIS_HOOKS_{name.upper()}": str(value) for name, value in settings.items()}
        printed = CliRunner().invoke(app, ["config", "--url", PUBLIC, "--as", form], env=env).stdout
        assert json.loads(text_of(revealed, id_)) == json.loads(printed)


def text_of(answer: httpx2.Response, id_: str) -> str:
    """The text of the `pre` with this id."""
    begun = answer.text.partition(f'id="{id_}"')[2].partition(">")[2]
    return "".join(Page(httpx2.Response(200, text=begun.partition("</pre>")[0])).words)


def test_secrets_are_masked_everywhere_until_they_are_revealed(tmp_path: Path) -> None:
    agents = {"-agent": [OTHER]}
    site = signed_in(tmp_path, secret_in_path=True, agent_secrets=agents)
    for path in ("/setup", "/setup.json", "/setup?agent=-agent", "/setup/received"):
        text = site.get(path).text
        assert SECRET not in text
        assert OTHER not in text
    revealed = site.browser.post("/setup/reveal", data={"agent": "-agent"})
    assert OTHER in revealed.text
    assert SECRET not in revealed.text
    assert revealed.headers["cache-control"] == "no-store"


def test_a_reveal_is_recorded(site: Site) -> None:
    site.browser.post("/setup/reveal")
    actions = site.stored.write(
        lambda c: c.execute(select(audit_log.c.action, audit_log.c.subject)).all()
    )
    assert ("reveal", "webhook secrets") in actions


def test_a_reveal_asks_for_the_password_again_after_a_while(site: Site) -> None:
    site.now = NOW + timedelta(minutes=16)
    question = site.browser.post("/setup/reveal", data={"url": PUBLIC})
    assert SECRET not in question.text
    assert Page(question).all("input", name="url")[0]["value"] == PUBLIC
    fields = {"url": PUBLIC, "confirm_password": PASSWORD}
    revealed = site.browser.post("/setup/reveal", data=fields)
    assert (SECRET in revealed.text, PUBLIC in revealed.text) == (True, True)


def test_a_viewer_reveals_and_sends_nothing(tmp_path: Path) -> None:
    site = through(tmp_path, not_asked)
    hashed = hash_password(PASSWORD)
    site.stored.write(
        lambda connection: accounts.add(
            connection, "eve", role="view", password_hash=hashed, now=NOW
        )
    )
    site.sign_in(username="eve")
    page = site.page("/setup")
    assert "operator" in page.text
    assert not page.all("button", form="reveal")
    assert site.browser.post("/setup/reveal").status_code == 403
    assert send(site, "prefetch").status_code == 403


def test_each_webhook_has_its_own_header_where_their_secrets_differ(tmp_path: Path) -> None:
    site = signed_in(tmp_path, end_of_call_secrets=OTHER)
    labels = [header["label"] for header in shown(site)["headers"]]
    assert labels == ["Header for the prefetch data webhook", "Header for the end-of-call webhook"]


def test_where_every_secret_is_an_agents_the_first_agents_is_shown(tmp_path: Path) -> None:
    site = signed_in(tmp_path, secrets="", agent_secrets={"-b": [OTHER], "-a": [SECRET]})
    assert shown(site)["agent_id"] == "-a"
    assert shown(site, "?agent=-b")["agent_id"] == "-b"
    assert SECRET in site.browser.post("/setup/reveal").text


def test_a_service_without_secrets_shows_a_warning(tmp_path: Path) -> None:
    site = signed_in(tmp_path, secrets="", insecure=True)
    assert shown(site)["headers"] == []
    assert "anyone can deliver" in site.page("/setup").text


def test_the_newest_arrival_of_each_webhook_is_shown(site: Site) -> None:
    site.stored.add_delivery("prefetch", session_id="-old", outcome="fresh")
    site.stored.add_delivery("prefetch", session_id="-new", outcome="fresh", latency_ms=84.0)
    site.stored.add_delivery("prefetch", session_id="-refused", outcome="rejected")
    received = shown(site)["received"]
    assert (received["prefetch"]["session_id"], received["end_of_call"]) == ("-new", None)
    assert "answered 200 in 84 ms" in site.page("/setup").text


def test_only_deliveries_of_millis_make_it_connected(site: Site) -> None:
    for kind in ("prefetch", "end_of_call"):
        site.stored.add_delivery(kind, session_id="-test", source=TEST_SOURCE)
    assert "Connected." not in site.page("/setup").text
    for kind in ("prefetch", "end_of_call"):
        site.stored.add_delivery(kind, session_id="-real")
    page = site.page("/setup")
    assert "Connected." in page.text
    assert "/calls/-real" in page.links()


def test_refused_requests_are_counted_by_reason(site: Site) -> None:
    row = {"webhook": "prefetch", "status_code": 401, "reason": HOSTILE, "received_at": NOW}
    row |= {"method": "GET", "query": "", "headers": "[]"}
    site.stored.write(lambda connection: connection.execute(insert(rejections), [row] * 12))
    assert shown(site)["received"]["rejected_count"] == 12
    page = site.page("/setup")
    assert "12 ×" in page.text
    assert not page.all("img")


def test_the_handlers_of_every_hook_are_listed_prefetch_first(site: Site) -> None:
    site.stored.add_handler("tell_team", hook="failed")
    site.stored.add_handler("sync_crm", filters='{"outcome": ["voicemail"]}')
    site.stored.add_handler("greet", hook="prefetch")
    assert [handler["name"] for handler in shown(site)["handlers"]] == [
        "greet",
        "sync_crm",
        "tell_team",
    ]
    assert "outcome: voicemail" in site.page("/setup").text


def test_a_text_for_a_coding_assistant_has_addresses_and_handlers_and_no_secret(site: Site) -> None:
    site.stored.add_handler("greet", hook="prefetch")
    text = shown(site, "?url=https://hooks.example.com")["assistant"]
    assert "- GET https://hooks.example.com/millis/prefetch" in text
    assert "- greet (@hooks.on_prefetch)" in text
    assert SECRET not in text


def test_problems_are_shown_with_advice(tmp_path: Path) -> None:
    results = [
        ok("schema", "0005"),
        warn("room", "Little.", "Make room."),
        bad("clock", "Off.", HOSTILE),
    ]
    site = Site(tmp_path, setup=make_setup(lambda: results))
    site.sign_in()
    view = shown(site)
    assert (len(view["problems"]), view["checks"]) == (2, 3)
    assert "Make room." in site.page("/setup").text


def test_checks_are_not_repeated_for_every_request(tmp_path: Path) -> None:
    looks: list[CheckResult] = []

    def run_checks() -> list[CheckResult]:
        looks.append(ok("look", "once"))
        return looks

    site = Site(tmp_path, setup=make_setup(run_checks))
    site.sign_in()
    shown(site)
    shown(site)
    assert len(looks) == 1
    site.now = NOW + timedelta(seconds=31)
    shown(site)
    assert len(looks) == 2


def not_asked(request: httpx2.Request) -> httpx2.Response:
    raise AssertionError(f"{request.url} was asked")


def test_a_test_is_sent_like_a_delivery_of_millis_with_a_mark(tmp_path: Path) -> None:
    requests: list[httpx2.Request] = []

    def peer(request: httpx2.Request) -> httpx2.Response:
        requests.append(request)
        session_id = request.url.params["session_id"]
        tried.stored.add_delivery("prefetch", session_id=session_id, source=TEST_SOURCE)
        return httpx2.Response(200, json={})

    tried = through(tmp_path, peer)
    trial = sent(tried, "prefetch")
    (request,) = requests
    assert (trial["result"]["state"], trial["session_id"]) == (
        "ok",
        request.url.params["session_id"],
    )
    assert str(request.url).startswith(f"{PUBLIC}/millis/prefetch?")
    assert request.headers["authorization"] == f"Bearer {SECRET}"
    assert request.url.params["millis_hooks_test"] == "setup"
    raw = [(name.lower(), value) for name, value in request.headers.raw]
    assert Marks().mark_of(raw, trial["session_id"], SECRET.encode()).source == TEST_SOURCE


def test_a_test_end_of_call_ends_the_last_test_prefetch(tmp_path: Path) -> None:
    def peer(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        tried.stored.add_delivery(session_id=body["session_id"], source=TEST_SOURCE)
        return httpx2.Response(200, json={"received": True})

    tried = through(tmp_path, peer)
    agent_id = "-Ox1sampleAgent00001"
    tried.stored.add_unended_call("-real", minutes_ago=1, agent_id=agent_id)
    tried.stored.add_unended_call("-open", minutes_ago=2, agent_id=agent_id, source=TEST_SOURCE)
    assert sent(tried, "end_of_call")["session_id"] == "-open"


def test_an_answer_by_another_service_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.dashboard.connection_test._PATIENCE_S", 0.0)
    site = through(tmp_path, lambda _: httpx2.Response(200, text="Welcome to nginx!"))
    trial = sent(site, "end_of_call")
    assert (trial["result"]["state"], trial["session_id"]) == ("bad", None)
    assert trial["result"]["found"] == "hooks.example.com answered 200, but nothing arrived here."


def test_a_failure_shows_nothing_of_the_answer(tmp_path: Path) -> None:
    answer = httpx2.Response(302, headers={"Location": "http://internal/"}, text="internal text")
    site = through(tmp_path, lambda _: answer)
    led_to = send(site, "prefetch").headers["location"]
    page = site.page(led_to.partition("#")[0])
    assert "redirects to another address (302)" in page.text
    assert "internal" not in page.text


def test_an_address_from_a_link_gets_no_secret_without_consent(tmp_path: Path) -> None:
    site = through(tmp_path, not_asked)
    assert send(site, "prefetch", url="https://evil.example").status_code == 400
    assert send(site, "prefetch", url="http://169.254.169.254", vouched="1").status_code == 400
    assert Page(site.get("/setup?url=https://evil.example")).all("input", name="vouched")


def lapse(site: Site) -> None:
    """Let the password be one that was given long ago."""
    site.now = NOW + timedelta(minutes=16)


@pytest.mark.parametrize(
    ("public_url", "fields"),
    [
        (PUBLIC, {"url": "https://my.example", "vouched": "1"}),
        (None, {"url": "https://my.example", "vouched": "1"}),
        (None, {"url": "http://testserver"}),
        (None, {}),
    ],
)
def test_a_test_to_an_address_not_in_the_settings_requires_the_password(
    tmp_path: Path, public_url: str | None, fields: dict[str, str]
) -> None:
    asked_for: list[str] = []

    def peer(request: httpx2.Request) -> httpx2.Response:
        asked_for.append(request.url.host)
        return httpx2.Response(502)

    site = through(tmp_path, peer, public_url=public_url)
    lapse(site)
    for confirm in ({}, {"confirm_password": "a guess"}):
        question = send(site, "prefetch", **fields, **confirm)
        assert Page(question).all("input", name="confirm_password")
    assert (asked_for, recorded(site)) == ([], [])
    sent(site, "prefetch", **fields, confirm_password=PASSWORD)
    host = fields.get("url", "http://testserver")
    assert [f"//{each}" for each in asked_for] == [host.partition(":")[2]]
    assert recorded(site) == [host]


def test_the_host_of_a_request_gets_no_secret_without_the_password(tmp_path: Path) -> None:
    site = through(tmp_path, not_asked, public_url=None)
    lapse(site)
    headers = {"Host": "evil.example"}
    question = site.browser.post("/setup/test", data={"hook": "prefetch"}, headers=headers)
    assert Page(question).all("input", name="confirm_password")


def test_a_test_to_the_address_of_the_settings_is_recorded(tmp_path: Path) -> None:
    site = through(tmp_path, lambda _: httpx2.Response(502))
    lapse(site)
    sent(site, "prefetch")
    assert recorded(site) == [PUBLIC]
    assert f"Sent a test with a secret to {PUBLIC}" in site.page("/operators").text


def test_an_unrecordable_test_sends_no_secret(tmp_path: Path) -> None:
    site = through(tmp_path, not_asked)

    def refuse(*_: object) -> None:
        raise StorageError("The disk is full.")

    site.operators._write = refuse  # type: ignore[assignment]
    assert send(site, "prefetch").status_code == 503


def recorded(site: Site) -> list[str | None]:
    subjects = select(audit_log.c.subject).where(audit_log.c.action == "send_test")
    return list(site.stored.write(lambda connection: connection.scalars(subjects).all()))


LINK_LOCAL = [
    "169.254.169.254", "2852039166", "0xa9fea9fe", "0251.0376.0251.0376", "169.254.43518",
    "169.254.169.254.", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]", "[64:ff9b::a9fe:a9fe]",
    "[fe80::1]", "[2002:a9fe:a9fe::1]", "[fd00:ec2::254]", "[::169.254.169.254]",
]  # fmt: skip


@pytest.mark.parametrize("host", LINK_LOCAL)
def test_private_addresses_are_refused_in_any_spelling(tmp_path: Path, host: str) -> None:
    site = through(tmp_path, not_asked)
    for port in ("", ":8080"):
        url = f"http://{host}{port}"
        assert send(site, "prefetch", url=url, vouched="1").status_code == 400
        assert shown(site, f"?url={url}")["address"]["refused"] == url


@pytest.mark.parametrize("addresses", [["169.254.169.254"], ["192.0.2.1", "fe80::1%eth0"]])
def test_a_name_of_a_link_local_address_is_sent_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolved = [(0, 0, 0, "", (each, 0)) for each in addresses]
    monkeypatch.setattr("socket.getaddrinfo", lambda *_, **__: resolved)
    site = signed_in(tmp_path)
    trial = sent(site, "prefetch", url="https://metadata.example", vouched="1")
    assert "link-local" in trial["result"]["found"]


@pytest.mark.parametrize("host", ["192.168.1.5", "127.0.0.1", "[::1]", "1", "hooks.example"])
def test_other_addresses_are_accepted(host: str) -> None:
    assert not is_link_local(host)


def test_an_address_with_consent_is_tested(tmp_path: Path) -> None:
    site = through(tmp_path, lambda _: httpx2.Response(502))
    trial = sent(site, "prefetch", url="https://my.example:8443", vouched="1")
    assert trial["result"]["found"] == (
        "The proxy at my.example:8443 answers, but does not reach the service (502)."
    )


@pytest.mark.parametrize("hook", ["", "failed", HOSTILE])
def test_an_unknown_test_is_refused(site: Site, hook: str) -> None:
    assert send(site, hook).status_code == 400


def test_forms_of_other_sites_send_no_tests(tmp_path: Path) -> None:
    site = through(tmp_path, not_asked)
    for path in ("/setup/test", "/setup/reveal"):
        headers = {"Sec-Fetch-Site": "cross-site"}
        assert (
            site.browser.post(path, data={"hook": "prefetch"}, headers=headers).status_code == 403
        )


@pytest.mark.parametrize(
    "query",
    [
        "?tested=prefetch",
        f"?tested=prefetch&result={HOSTILE}",
        "?tested=x&result=ok",
        "?result=unknown_host",
    ],
)
def test_an_invalid_result_in_the_address_is_ignored(site: Site, query: str) -> None:
    assert shown(site, query)["test"] is None


def test_the_side_of_the_page_is_a_fragment(site: Site) -> None:
    page = site.page("/setup/received")
    assert [section["id"] for section in page.all("section")] == [
        "received",
        "problems",
        "handlers",
    ]
    assert not page.all("main")
