"""The application as servers and other applications see it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx2
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from starlette.websockets import WebSocketDisconnect

from millis_hooks import ConfigError, EndOfCall, MillisHooks, PrefetchRequest, Router
from millis_hooks.app import Site
from millis_hooks.exceptions import StorageError
from support.app import AUTHORIZED, END_OF_CALL, PREFETCH, SECRET, MakeHooks, Rows, serving
from support.sites import PASSWORD
from support.waiting import eventually

BODY = b'{"session_id": "-Ox1"}'


async def lifespan_of(app: MillisHooks) -> list[dict[str, Any]]:
    """Start and stop `app` as a server does; return what it said."""
    said: list[dict[str, Any]] = []
    asked = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(asked)}

    async def send(message: Any) -> None:
        said.append(message)

    await app({"type": "lifespan"}, receive, send)
    return said


def test_the_webhooks_and_the_dashboard_are_served(hooks: MillisHooks) -> None:
    with serving(hooks) as client:
        assert client.get(PREFETCH).json() == {}
        assert client.post(END_OF_CALL, content=BODY).json() == {"received": True}
        assert client.get("/login").status_code == 200
        assert client.get("/no-such-page").status_code in {303, 401, 404}


@pytest.mark.parametrize("path", [PREFETCH, END_OF_CALL, "/healthz", "/readyz"])
def test_no_answer_is_taken_for_another_kind_of_content(hooks: MillisHooks, path: str) -> None:
    with serving(hooks) as client:
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(("path", "status"), [("/healthz", "alive"), ("/readyz", "ready")])
def test_probes_need_no_secret(hooks: MillisHooks, path: str, status: str) -> None:
    with serving(hooks, headers={}) as client:
        response = client.get(path)
    assert (response.status_code, response.json()["status"]) == (200, status)


def test_readiness_tells_what_the_runner_does(hooks: MillisHooks) -> None:
    working = {"role": "working", "at_work": 0, "late": 0, "hung": []}
    with serving(hooks) as client:
        eventually(lambda: client.get("/readyz").json()["runner"] == working)


def test_a_service_whose_runner_has_ended_is_not_ready(hooks: MillisHooks) -> None:
    with serving(hooks) as client:
        assert hooks._service is not None
        hooks._service.runner.close()
        response = client.get("/readyz")
    assert (response.status_code, response.json()["status"]) == (503, "cannot run handlers")


def test_a_service_that_cannot_store_is_alive_and_not_ready(
    hooks: MillisHooks, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(hooks) as client:
        assert hooks._service is not None
        hooks._service.call_log.close()
        assert client.get("/healthz").status_code == 200
        response = client.get("/readyz")
    assert (response.status_code, response.json()) == (503, {"status": "cannot store"})
    assert "not ready: The call log is closed." in caplog.text


@pytest.mark.parametrize("slashes", ["/", "//"])
def test_a_trailing_slash_is_not_redirected(hooks: MillisHooks, slashes: str) -> None:
    with serving(hooks, follow_redirects=False) as client:
        assert client.get(f"/millis/prefetch{slashes}?session_id=-Ox1").status_code == 200
        assert client.post(END_OF_CALL + slashes, content=BODY).status_code == 200


@pytest.mark.parametrize(("prefix", "path"), [("/", "/prefetch"), ("/a/b/", "/a/b/prefetch")])
def test_the_prefix_is_ours_to_choose(make_hooks: MakeHooks, prefix: str, path: str) -> None:
    with serving(make_hooks(prefix=prefix)) as client:
        assert client.get(path).json() == {}


@pytest.mark.parametrize(
    "path", ["/prefetch", "/millis", "/millis/", "/millis/other", "/millis/pre//fetch",
             "/millis/x/prefetch", "/millisprefetch", "/MILLIS/prefetch"],
)  # fmt: skip
def test_no_other_path_is_a_webhook(hooks: MillisHooks, path: str, rows: Rows) -> None:
    with serving(hooks, follow_redirects=False) as client:
        assert client.get(path).status_code != 200
    assert rows("SELECT * FROM deliveries") == []


@pytest.mark.parametrize(
    "path", ["//millis/end-of-call", "/millis//end-of-call", "///millis//end-of-call//"]
)
def test_slashes_that_double_are_one(hooks: MillisHooks, path: str, rows: Rows) -> None:
    with serving(hooks, follow_redirects=False) as client:
        assert client.post(f"http://testserver{path}", content=BODY).status_code == 200
    assert len(rows("SELECT * FROM deliveries")) == 1


NEAR = [
    ("POST", "/millis/end_of_call", "/millis/end_of_call"),
    ("POST", "/Millis/End-Of-Call", "/Millis/End-Of-Call"),
    ("POST", "/end-of-call", "/end-of-call"),
    ("POST", "/hooks/end-of-call", "/hooks/end-of-call"),
    ("POST", "/millis/end-of-call/extra", "/millis/end-of-call/extra"),
    ("POST", "/millis/end-of-cal", "/millis/end-of-cal"),
    ("POST", "/millis/end-of-call%20", "/millis/…"),
    ("PUT", "/millis/endofcall", "/millis/endofcall"),
    ("POST", "/", "/"),
    ("GET", "/millis/Prefetch", "/millis/Prefetch"),
    ("GET", "/prefetch", "/prefetch"),
    ("GET", "/millis/pre-fetch/-Ox1/14155550134", "/millis/pre-fetch/-Ox1/…"),
]


@pytest.mark.parametrize(("method", "path", "shown"), NEAR)
def test_a_right_secret_at_a_wrong_address_is_written_down_with_the_right_one(
    hooks: MillisHooks, rows: Rows, method: str, path: str, shown: str
) -> None:
    with serving(hooks, follow_redirects=False) as client:
        status = client.request(method, f"{path}?from=%2B14155550134").status_code
    [rejected] = rows("SELECT * FROM rejections")
    right = "GET /millis/prefetch" if method == "GET" else "POST /millis/end-of-call"
    assert rejected["reason"] == f"No webhook is at {method} {shown}. The address is {right}."
    assert (rejected["status_code"], rejected["method"]) == (status, method)
    assert status >= 300
    assert not any(hidden in str(rejected) for hidden in (SECRET, "4155550134"))


@pytest.mark.parametrize(
    ("headers", "path", "reason"),
    [
        ({"authorization": SECRET}, "/end-of-call", "in another form"),
        ({"x-api-key": SECRET}, "/end-of-call", "is in the x-api-key header"),
        ({"authorization": ""}, f"/millis/{SECRET}/End-Of-Call", "MILLIS_HOOKS_SECRET_IN_PATH=1"),
        ({"authorization": ""}, f"/{SECRET}/millis/end-of-call", "MILLIS_HOOKS_SECRET_IN_PATH=1"),
        ({"authorization": ""}, f"/%2561{SECRET[1:]}/prefetch", "MILLIS_HOOKS_SECRET_IN_PATH=1"),
        ({"authorization": ""}, f"/hook?secret={SECRET}", "is in the query, in another form"),
        ({"authorization": ""}, f"/millis/end-of-call?a=b&{SECRET}", "is in the query"),
        ({"authorization": ""}, f"/millis/end-of-call?authorization=Bearer+{SECRET}", "the query"),
        ({"authorization": ""}, f"/millis/end-of-call?key=%61{SECRET[1:]}", "the query"),
    ],
)
def test_a_secret_in_another_form_at_a_wrong_address_is_written_down_too(
    hooks: MillisHooks, rows: Rows, headers: dict[str, str], path: str, reason: str
) -> None:
    with serving(hooks, headers=headers) as client:
        client.post(path, content=BODY)
    [rejected] = rows("SELECT * FROM rejections")
    assert reason in rejected["reason"]
    assert SECRET not in str(rejected)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"{PREFETCH}?from=%2B14155550134&note={'x' * 33_000}", {}),
        (f"{PREFETCH}?from=%2B14155550134&note={'x' * 60_000}", {"authorization": SECRET}),
        (f"/millis/prefetch?secret={SECRET}&note={'x' * 62_000}", {"authorization": ""}),
        (f"/millis/{SECRET}/prefetch?{'x' * 40_000}", {"authorization": ""}),
        (PREFETCH, {f"x-{number}": "x" * 800 for number in range(60)}),
        ("/hook", {"x-long": "x" * 40_000}),
    ],
)
def test_too_long_a_query_or_headers_with_a_right_secret_are_written_down(
    hooks: MillisHooks, rows: Rows, path: str, headers: dict[str, str]
) -> None:
    with serving(hooks) as client:
        client.headers = {**headers, "authorization": f"Bearer {SECRET}", **headers}
        assert client.get(path).status_code == 431
    [rejected] = rows("SELECT * FROM rejections")
    assert "at most 32 kB are read" in rejected["reason"]
    assert not any(hidden in str(rejected) for hidden in (SECRET, "4155550134"))


def test_too_long_a_query_of_a_stranger_leaves_no_trace(hooks: MillisHooks, rows: Rows) -> None:
    with serving(hooks, headers={"authorization": "Bearer of-another-secret"}) as client:
        assert client.get(f"{PREFETCH}?{'x' * 33_000}").status_code == 431
    assert rows("SELECT * FROM rejections") == []


def test_a_client_that_a_proxy_names_shows_no_secret(hooks: MillisHooks, rows: Rows) -> None:
    with TestClient(hooks, client=(SECRET, 1), headers={"x-forwarded-for": SECRET}) as client:
        client.get("/hook")
    [rejected] = rows("SELECT * FROM rejections")
    assert SECRET not in str(rejected)


def test_no_access_line_shows_a_secret_of_a_query(hooks: MillisHooks) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hooks(scope, receive, send)
        seen.append(scope)

    with TestClient(app) as client:
        client.get(f"/hook?secret={SECRET}")
    assert SECRET not in str(seen)


@pytest.mark.parametrize(
    ("secret", "path"),
    [("a-secret-that-is-not-right", "/end-of-call"), (SECRET, "/login"), (SECRET, "/healthz")],
)
def test_what_brings_no_right_secret_or_finds_a_page_is_no_near_miss(
    hooks: MillisHooks, rows: Rows, secret: str, path: str
) -> None:
    with serving(hooks, headers={"authorization": f"Bearer {secret}"}) as client:
        client.get(path)
    assert rows("SELECT * FROM rejections") == []


def test_where_it_is_allowed_the_secret_may_be_in_the_path(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(secret_in_path=True)
    with serving(hooks, headers={}) as client:
        assert client.get(f"/millis/{SECRET}/prefetch/").json() == {}
        assert client.post(f"/millis/{SECRET}/end-of-call", content=BODY).status_code == 200
        assert client.get("/millis/wrong/prefetch").status_code == 401
        assert client.get("/millis//prefetch").status_code == 401
        assert client.get("/millis/prefetch").status_code == 401


def test_a_secret_of_any_script_may_be_in_the_path(make_hooks: MakeHooks) -> None:
    secret = "пароль/из/многих/букв"
    with serving(make_hooks(secret_in_path=True, secrets=secret), headers={}) as client:
        assert client.get(f"/millis/{secret}/prefetch").json() == {}


@pytest.mark.parametrize("root_path", ["", "/hooks"])
def test_neither_the_secret_nor_the_query_is_left_for_an_access_log(
    make_hooks: MakeHooks, root_path: str
) -> None:
    hooks = make_hooks(secret_in_path=True)
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await hooks(scope, receive, send)
        seen.append(scope)  # as a server does once the request is done

    path = f"{root_path}/millis/{SECRET}/prefetch"
    with TestClient(app, root_path=root_path) as client:
        client.get(f"{path}?from=%2B14155550134")
    [scope] = [scope for scope in seen if scope["type"] == "http"]
    assert scope["path"] == f"{root_path}/millis/•/prefetch"
    assert scope["query_string"] == b""


def test_the_environment_configures_it(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    monkeypatch.setenv("MILLIS_HOOKS_SECRETS", SECRET)
    monkeypatch.setenv("MILLIS_HOOKS_DATABASE_URL", f"sqlite:///{database}")
    with serving(MillisHooks()) as client:
        assert client.get(PREFETCH).status_code == 200


def test_a_wrong_setting_is_refused_when_it_is_made() -> None:
    with pytest.raises(ConfigError, match="prefix: expected a path"):
        MillisHooks(prefix="millis")


@pytest.mark.parametrize(
    ("key", "status"), [("a-key-of-the-team", 200), ("another-key-of-the-team", 303)]
)
def test_operators_stay_signed_in_while_the_session_key_is_the_same(
    make_hooks: MakeHooks, key: str, status: int
) -> None:
    login = {"username": "admin", "password": "a-password-for-tests"}
    before = make_hooks(dashboard_password=login["password"], session_key="a-key-of-the-team")
    with serving(before, follow_redirects=False) as client:
        client.post("/login", data=login, headers={"origin": "http://testserver"})
        cookies = dict(client.cookies)
    after = make_hooks(dashboard_password=login["password"], session_key=key)
    with serving(after, follow_redirects=False, cookies=cookies) as client:
        assert client.get("/calls").status_code == status


def test_it_does_not_start_open(make_hooks: MakeHooks) -> None:
    [said] = asyncio.run(lifespan_of(make_hooks(secrets="")))
    assert said["type"] == "lifespan.startup.failed"
    assert "export MILLIS_HOOKS_SECRETS=" in said["message"]


def test_it_starts_open_where_that_was_chosen(make_hooks: MakeHooks) -> None:
    with serving(make_hooks(secrets="", insecure=True), headers={}) as client:
        assert client.get(PREFETCH).status_code == 200


def test_it_does_not_start_without_a_place_to_store(make_hooks: MakeHooks, tmp_path: Path) -> None:
    left: list[bool] = []

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        left.append(True)

    hooks = make_hooks(lifespan=lifespan, database_url=f"sqlite:///{tmp_path}/missing/calls.db")
    before = threading.active_count()
    [said] = asyncio.run(lifespan_of(hooks))
    assert said["type"] == "lifespan.startup.failed"
    assert left == [True]
    assert eventually(lambda: threading.active_count() <= before)


def test_a_lifespan_that_raises_stops_the_start_with_its_traceback(
    make_hooks: MakeHooks,
) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        raise ConnectionError("password=hunter2-hunter2")
        yield

    [said] = asyncio.run(lifespan_of(make_hooks(lifespan=lifespan)))
    assert said["type"] == "lifespan.startup.failed"
    assert "ConnectionError: password=" in said["message"]
    assert "hunter2" not in said["message"]


def test_a_lifespan_that_raises_at_the_end_does_not_keep_the_log_from_closing(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        yield
        raise ConnectionError

    with serving(make_hooks(lifespan=lifespan)) as client:
        client.get(PREFETCH)
    assert len(rows("SELECT * FROM deliveries")) == 1


def test_it_starts_and_stops_as_servers_ask(hooks: MillisHooks) -> None:
    said = asyncio.run(lifespan_of(hooks))
    assert [message["type"] for message in said] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


def test_it_may_start_again_after_a_stop(hooks: MillisHooks, rows: Rows) -> None:
    for _ in range(2):
        with serving(hooks) as client:
            assert client.post(END_OF_CALL, content=BODY).status_code == 200
    assert len(rows("SELECT * FROM deliveries")) == 2


def test_what_the_lifespan_yields_is_what_handlers_share(make_hooks: MakeHooks) -> None:
    @asynccontextmanager
    async def lifespan() -> AsyncIterator[str]:
        yield "the CRM"

    hooks = make_hooks(lifespan=lifespan)
    ended: list[str] = []
    hooks.on_prefetch(name="greet")(lambda call: f"Asked {call.state}.")
    hooks.on_end_of_call(name="note")(lambda call: ended.append(call.state))
    with serving(hooks) as client:
        assert client.get(PREFETCH).json() == {"extra_prompt": "Asked the CRM."}
        client.post(END_OF_CALL, content=BODY)
        assert eventually(lambda: ended) == ["the CRM"]


@pytest.mark.parametrize("isolate_handlers", [True, False])
def test_handlers_run_apart_or_not_as_was_chosen(
    make_hooks: MakeHooks, isolate_handlers: bool
) -> None:
    hooks = make_hooks(isolate_handlers=isolate_handlers)
    loops: list[object] = []

    @hooks.on_prefetch
    async def which(call: PrefetchRequest) -> None:
        loops.append(asyncio.get_running_loop())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loops[:] = [asyncio.get_running_loop()]
        await hooks(scope, receive, send)

    with TestClient(app, headers=AUTHORIZED) as client:
        assert client.get(PREFETCH).status_code == 200
    serving_loop, handlers_loop = loops
    assert (serving_loop is handlers_loop) is not isolate_handlers


def test_handlers_may_come_on_routers(make_hooks: MakeHooks) -> None:
    first, second = Router(), Router()
    first.on_prefetch(name="first")(lambda call: "One.")
    second.on_prefetch(name="second")(lambda call: "Two.")
    hooks = make_hooks(first)
    hooks.include(second)
    with serving(hooks) as client:
        assert client.get(PREFETCH).json() == {"extra_prompt": "One.\n\nTwo."}


def test_it_is_mounted_in_starlette(hooks: MillisHooks) -> None:
    app = Starlette(routes=[Mount("/hooks", hooks)], lifespan=hooks.running)
    with TestClient(app, headers=AUTHORIZED) as client:
        assert client.get(f"/hooks{PREFETCH}").json() == {}
        assert client.post(f"/hooks{END_OF_CALL}", content=BODY).json() == {"received": True}
        assert client.get("/hooks/readyz").json()["status"] == "ready"
        assert client.get("/hooks/login").status_code == 200


def test_it_is_mounted_in_fastapi_beside_other_routes(hooks: MillisHooks) -> None:
    app = FastAPI(lifespan=hooks.running)
    app.mount("/hooks", hooks)

    @app.get("/")
    async def home() -> str:
        return "home"

    with TestClient(app, headers=AUTHORIZED) as client:
        assert client.get(f"/hooks{PREFETCH}").json() == {}
        assert client.get("/").json() == "home"


@pytest.mark.parametrize("path", ["/voice", "/a/b c", "/millis"])
@pytest.mark.parametrize("removed", [True, False], ids=["removed", "left in"])
def test_a_proxy_serves_it_below_the_path_of_its_public_address(
    make_hooks: MakeHooks, path: str, removed: bool
) -> None:
    seen = "" if removed else path
    app = make_hooks(public_url=f"https://example.com{quote(path)}", dashboard_password=PASSWORD)
    with serving(app, follow_redirects=False) as client:
        assert client.get(f"{seen}{PREFETCH}").json() == {}
        assert client.post(f"{seen}{END_OF_CALL}", content=BODY).json() == {"received": True}
        assert client.get(f"{seen}/readyz").json()["status"] == "ready"
        assert client.get(f"{seen}/calls").headers["location"].startswith(f"{quote(path)}/login")
        assert client.get(path).status_code == 303
        page = client.get(f"{seen}/login").text
        assert f'href="{quote(path)}/static/app.css' in page
        form = {"username": "admin", "password": PASSWORD}
        signed_in = client.post(f"{seen}/login", data=form)
        assert signed_in.headers["location"].startswith(f"{quote(path)}/")
        assert f"Path={quote(path)}" in signed_in.headers["set-cookie"]


def test_a_proxy_serves_the_application_that_it_is_mounted_in_below_a_path(
    make_hooks: MakeHooks,
) -> None:
    hooks = make_hooks(public_url="https://example.com/voice/hooks")
    app = Starlette(routes=[Mount("/hooks", hooks)], lifespan=hooks.running)
    with TestClient(app, headers=AUTHORIZED, follow_redirects=False) as client:
        assert client.get(f"/hooks{PREFETCH}").json() == {}
        assert client.get("/hooks/").headers["location"].startswith("/voice/hooks/")


def test_mounted_without_a_lifespan_it_starts_at_the_first_request(
    hooks: MillisHooks, rows: Rows
) -> None:
    app = Starlette(routes=[Mount("/hooks", hooks)])

    async def stop() -> None:
        async with hooks.running():
            pass

    with TestClient(app, headers=AUTHORIZED) as client:
        assert client.post(f"/hooks{END_OF_CALL}", content=BODY).status_code == 200
        assert client.portal is not None
        client.portal.call(stop)
    assert len(rows("SELECT * FROM deliveries")) == 1


def test_a_client_with_a_loop_for_each_request_gets_its_answers(hooks: MillisHooks) -> None:
    hooks.on_prefetch(name="plain")(lambda call: "One.")

    @hooks.on_prefetch
    async def later(call: PrefetchRequest) -> str:
        return "Two."

    client = serving(hooks)
    answers = [client.get(PREFETCH).json() for _ in range(3)]
    asyncio.run(hooks._stop())
    assert answers == [{"extra_prompt": "One.\n\nTwo."}] * 3


def test_requests_that_come_together_start_it_once(hooks: MillisHooks) -> None:
    async def together() -> bool:
        services = await asyncio.gather(hooks._start(), hooks._start())
        await hooks._stop()
        await hooks._stop()
        return services[0] is services[1]

    assert asyncio.run(together())


def test_pages_that_are_asked_for_together_make_the_dashboard_once(
    hooks: MillisHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Site] = []
    make = Site._build_pages

    def make_and_count(site: Site) -> ASGIApp:
        made.append(site)
        return make(site)

    monkeypatch.setattr(Site, "_build_pages", make_and_count)

    async def together() -> list[int]:
        transport = httpx2.ASGITransport(hooks)
        client = httpx2.AsyncClient(transport=transport, base_url="http://testserver")
        async with hooks.running(), client:
            pages = await asyncio.gather(*(client.get("/login") for _ in range(8)))
        return [page.status_code for page in pages]

    assert asyncio.run(together()) == [200] * 8
    assert len(made) == 1


def test_a_websocket_is_not_taken_for_a_webhook(hooks: MillisHooks) -> None:
    with (
        serving(hooks) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect("/millis/prefetch"),
    ):
        pass


def test_a_handler_added_later_is_called_for_what_ends_from_then_on(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    with serving(make_hooks()) as client:
        client.post(END_OF_CALL, content=BODY)
        eventually(lambda: rows("SELECT * FROM calls"))
    hooks = make_hooks()
    ended: list[str] = []

    @hooks.on_end_of_call
    def note(call: EndOfCall) -> None:
        ended.append(call.session_id)

    with serving(hooks) as client:
        client.post(END_OF_CALL, content=b'{"session_id": "-Ox2"}')
        assert eventually(lambda: ended) == ["-Ox2"]


def test_an_invalid_database_is_a_storage_error(make_hooks: MakeHooks, tmp_path: Path) -> None:
    path = tmp_path / "not.db"
    path.write_bytes(b"this is not a database, whatever its name says" * 100)
    hooks = make_hooks(database_url=f"sqlite:///{path}")
    with pytest.raises(StorageError):
        asyncio.run(_start_and_stop(hooks))


async def _start_and_stop(hooks: MillisHooks) -> None:
    async with hooks.running():
        pass


def test_a_webhook_does_not_wait_until_a_crowd_of_pages_has_begun(hooks: MillisHooks) -> None:
    begun: list[int] = []

    def scope(method: str, path: str) -> dict[str, Any]:
        form = {"host": "x", "content-type": "application/x-www-form-urlencoded"}
        names = {"authorization": AUTHORIZED["Authorization"], "content-length": "9", **form}
        headers = [(name.encode(), value.encode()) for name, value in names.items()]
        asked = {"type": "http", "method": method, "path": path, "query_string": b""}
        return {**asked, "headers": headers, "scheme": "http", "server": ("127.0.0.1", 80)}

    async def never() -> dict[str, Any]:
        begun.append(1)
        await asyncio.Event().wait()
        return {}

    async def send(_message: Any) -> None:
        pass

    async def attack() -> None:
        await hooks._start()
        await hooks(scope("GET", "/login"), never, send)
        pages = [hooks(scope("POST", "/login"), never, send) for _ in range(500)]
        crowd = [asyncio.create_task(page) for page in pages]
        await asyncio.create_task(hooks(scope("GET", "/millis/prefetch"), never, send))
        assert len(begun) < 250
        for task in crowd:
            task.cancel()
        await asyncio.gather(*crowd, return_exceptions=True)
        await hooks._stop()

    asyncio.run(attack())


def test_a_start_without_handlers_and_with_an_unused_router_warns(
    hooks: MillisHooks, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router()

    @router.on_prefetch
    def greet(call: PrefetchRequest) -> None: ...

    with serving(hooks):
        pass
    assert "no handlers are registered" in caplog.text
    assert "the handlers of a Router are not called: greet (" in caplog.text


def test_without_the_pages_webhooks_health_and_metrics_are_served(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(dashboard=False, metrics_open=True, dashboard_password="a-password-for-us")
    with serving(hooks) as client:
        assert client.get(PREFETCH).status_code == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            assert client.get(path).status_code == 200, path
        for path in ("/", "/login", "/calls", "/calls.json", "/setup", "/static/app.css"):
            assert client.get(path).status_code == 404, path
