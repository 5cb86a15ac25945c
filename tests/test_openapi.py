"""`/openapi.json` describes the twins and the webhooks, and both answer as it says."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import schemathesis
from browser.hostile import BACKWARDS, MARKUP, UNBROKEN, calls
from browser.pages import EXAMPLES, examples
from dashboard_site import Site
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import Case
from schemathesis.checks import CheckFunction, not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from sites import PASSWORD, SECRET, Server
from sites import Site as Running
from starlette.routing import Route

from millis_hooks.call_log.queries.filters import CallFilter
from millis_hooks.dashboard import Webhooks
from millis_hooks.dashboard.call_filters import QUERY, params_of

CHECKS: list[CheckFunction] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]

#: Ids of nothing.
NOBODYS = (MARKUP, BACKWARDS, UNBROKEN, "-1", "0", "9" * 30, "1e9", "..", "a.json")

#: The same examples every time: a bounded number, which no clock cuts short.
BOUNDED = settings(
    max_examples=12,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Running:
    return Running(tmp_path_factory.mktemp("running"), "")


@pytest.fixture(scope="module")
def server(running: Running) -> Iterator[Server]:
    """A server that has received every hostile call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MILLIS_HOOKS_SECRET_IN_PATH", "1")
        with running.serving() as server:
            for call in calls():
                server.ask("GET", f"/millis/prefetch?{call.query}")
                server.ask("POST", "/millis/end-of-call", call.body)
            assert server.ask("PUT", "/millis/prefetch").status == 405
            yield server


@pytest.fixture(scope="module")
def operator(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.address) as client:
        signed_in = client.post("/login", data={"username": "admin", "password": PASSWORD})
        assert signed_in.status_code == 303
        yield client


def test_what_is_described_is_what_is_answered(
    running: Running, server: Server, operator: httpx.Client
) -> None:
    document = _with_examples(operator.get("/openapi.json").json(), running.folder)
    headers = {"Authorization": f"Bearer {SECRET}"}
    answered: defaultdict[str, set[int]] = defaultdict(set)
    for operation in schemathesis.openapi.from_dict(document).get_all_operations():

        @BOUNDED
        @given(case=operation.ok().as_strategy())  # type: ignore[union-attr]
        def answers(case: Case[Any]) -> None:
            cookies = dict(operator.cookies)
            response = case.call(server.address, headers=headers, cookies=cookies)
            case.validate_response(response, checks=CHECKS)
            answered[case.operation.label].add(response.status_code)

        answers()
    assert [label for label, statuses in answered.items() if 200 not in statuses] == []


def _with_examples(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Have what there is asked for, beside what there is not."""
    values = {name: [*examples(name, folder), *NOBODYS] for name in EXAMPLES}
    values["secret"] = [SECRET, MARKUP]
    for path in document["paths"].values():
        for parameter in (each for method in path.values() for each in method["parameters"]):
            if parameter["name"] in values:
                parameter["schema"] = {"enum": values[parameter["name"]]}
    return document


def test_the_document_is_openapi(site: Site) -> None:
    schemathesis.openapi.from_dict(document(site)).validate()


def test_every_page_has_its_twin_described(site: Site) -> None:
    twins = {route.name for route in site.app.routes if isinstance(route, Route)}
    described = {
        f"{operation['operationId']}_json"
        for path in document(site)["paths"].values()
        for operation in path.values()
    }
    assert {name for name in twins if name.endswith("_json")} <= described


def test_only_operators_read_it(site: Site) -> None:
    site.browser.cookies.clear()
    assert site.get("/openapi.json").status_code == 401


def test_it_says_where_the_dashboard_is_mounted(tmp_path: Path) -> None:
    site = Site(tmp_path, prefix="/hooks")
    site.sign_in()
    assert document(site)["servers"] == [{"url": "/hooks"}]
    site.stored.database.close()


def test_the_secret_is_a_bearer_token_unless_another_header_carries_it() -> None:
    assert Webhooks().security_scheme() == {"type": "http", "scheme": "bearer"}
    other = {"type": "apiKey", "in": "header", "name": "X-Secret"}
    assert Webhooks(secret_header="X-Secret").security_scheme() == other


def test_the_secret_is_in_the_path_only_where_that_is_set() -> None:
    paths = Webhooks("/hooks", secret_in_path=True).paths()
    assert paths["/hooks/{secret}/prefetch"]["get"]["security"] == []
    assert set(Webhooks("/hooks").paths()) == {"/hooks/prefetch", "/hooks/end-of-call"}


def test_every_filter_that_an_address_has_is_described() -> None:
    assert set(params_of(EVERY_FILTER, 25)) <= {parameter.name for parameter in QUERY}


EVERY_FILTER = CallFilter(
    q="gold",
    outcome="failed",
    status=("error",),
    agent=("-agent",),
    channel="web",
    direction="inbound",
    number="+1415",
    range="all",
    since=datetime(2026, 11, 20, tzinfo=UTC),
    until=datetime(2026, 11, 21, tzinfo=UTC),
    min_s=1,
    max_s=2,
    cost_min=1,
    cost_max=2,
    metadata=(("plan", "gold"),),
    handler="none",
    unparsed=True,
    duplicate=True,
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


def document(site: Site) -> dict[str, Any]:
    described: dict[str, Any] = site.get("/openapi.json").json()
    return described
