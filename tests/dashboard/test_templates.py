"""Templates escape every value, and contain nothing that the content policy refuses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from jinja2 import Environment, meta, nodes
from markupsafe import Markup
from starlette.testclient import TestClient

from browser.hostile import MARKUP, calls
from browser.pages import page_names, paths_of
from millis_hooks import MillisHooks
from millis_hooks.call_log.tables import inbox
from millis_hooks.dashboard import formats
from millis_hooks.version import templates_dir
from support.app import AUTHORIZED, SECRET
from support.databases import url_in
from support.storage import opened, rows
from support.waiting import eventually

TEMPLATES = sorted(templates_dir().rglob("*.html"))
PASSWORD = "a password of the tests"

#: What a template is given: by `Pages`, by the few pages that have no view, or as a global.
KNOWN = set(
    re.findall(
        r"\w+",
        """
    badge icon moment outcome places twin
    damage view operator waiting link static has_page is_at here theme zone now version without
    handler_labels source_labels page_sizes range_labels statuses
    title text error target username are_named has_password password_field longest_days fields back
    sought notice agent_names
    last_prefetch_at
    """,
    )
)
#: Filters that trust what they are given, or make markup of it.
TRUSTING = {"safe", "tojson", "xmlattr", "urlize", "forceescape"}
#: Addresses that are neither made by `link` or `static` nor checked by `web`: paths on this site.
LOCAL = {"{{ here }}", "{{ row.address }}", "{{ back }}", "{{ twin }}", "{{ icons }}#{{ name }}"}

_ADDRESS = re.compile(r'(?<=\s)(?:href|src|action|formaction|poster|data)="([^"]*)"')
_OURS = re.compile(r"(\{\{ ?(link|static)\()|#")
_REFUSED = re.compile(
    r"\s(style|on[a-z]+|srcdoc)\s*=|<style|<script(?![^>]*\ssrc=)|javascript:", re.I
)


def parsed(path: Path) -> nodes.Template:
    return Environment().parse(path.read_text())


def test_templates_mark_no_value_as_safe() -> None:
    for path in TEMPLATES:
        template = parsed(path)
        assert not {each.name for each in template.find_all(nodes.Filter)} & TRUSTING, path
        assert not list(template.find_all(nodes.EvalContextModifier)), path


def test_templates_have_nothing_that_the_content_policy_refuses() -> None:
    for path in TEMPLATES:
        assert _REFUSED.findall(path.read_text()) == [], path


def test_attributes_are_quoted() -> None:
    for path in TEMPLATES:
        assert re.findall(r"<[a-z][^<>]*?\s[\w-]+=\{\{", path.read_text()) == [], path


def test_addresses_are_local_or_checked() -> None:
    for path in TEMPLATES:
        addresses = _ADDRESS.findall(path.read_text())
        others = {each for each in addresses if not _OURS.match(each)} - LOCAL
        assert all(each.endswith("| web }}") for each in others), (path, others)


def test_external_links_send_no_referrer() -> None:
    for path in TEMPLATES:
        leaving = re.findall(r'<a [^>]*\| web \}\}"[^>]*>', path.read_text())
        assert all('rel="noreferrer' in tag for tag in leaving), path


def test_templates_use_only_defined_names() -> None:
    in_base = {*_bound(parsed(TEMPLATES[0].with_name("base.html")))}
    for path in TEMPLATES:
        environment = Environment()
        template = environment.parse(path.read_text())
        for each in template.find_all(nodes.Filter):
            environment.filters.setdefault(each.name, str)
        bound = {*_bound(template)} | in_base
        assert meta.find_undeclared_variables(template) - bound <= KNOWN, path


@pytest.mark.parametrize("name", sorted(formats.FILTERS))
def test_filters_that_make_markup_escape_what_it_holds(name: str) -> None:
    try:
        made = formats.FILTERS[name](MARKUP)
    except (AttributeError, TypeError, ValueError):
        return  # not for text
    assert not isinstance(made, Markup) or "<script" not in made


@pytest.mark.parametrize("name", page_names())
def test_a_page_of_hostile_text_has_only_our_own_elements(
    name: str, filled: Path, browser: TestClient
) -> None:
    for path in paths_of(name, filled):
        response = browser.get(path)
        assert response.status_code < 500
        assert list(Foreign(response.text).found) == []


@pytest.mark.parametrize("name", page_names())
def test_a_twin_of_hostile_text_is_json(name: str, filled: Path, browser: TestClient) -> None:
    for path in paths_of(name, filled):
        page, _, query = path.partition("?")
        response = browser.get(f"{page}.json?{query}")
        assert response.status_code < 500
        response.json()


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def browser(filled: Path) -> Iterator[TestClient]:
    """An operator's browser on an application that has received every hostile call."""
    hooks = MillisHooks(secrets=SECRET, database_url=url_in(filled), dashboard_password=PASSWORD)
    hooks.on_end_of_call(max_attempts=1)(_fail)
    with TestClient(hooks) as browser:
        for call in calls():
            browser.get(f"/millis/prefetch?{call.query}", headers=AUTHORIZED)
            browser.post("/millis/end-of-call", content=call.body or b"", headers=AUTHORIZED)
        with opened(filled) as database:
            eventually(lambda: not rows(database, inbox))
        signed_in = browser.post("/login", data={"username": "admin", "password": PASSWORD})
        assert signed_in.url.path != "/login"
        yield browser


def _fail(call: object) -> None:
    raise ValueError(MARKUP)


def _bound(template: nodes.Template) -> Iterator[str]:
    """Yield the names that a template gives a meaning itself."""
    yield from (each.name for each in template.find_all(nodes.Name) if each.ctx != "load")
    yield from (macro.name for macro in template.find_all(nodes.Macro))
    for each in template.find_all(nodes.FromImport):
        yield from (name if isinstance(name, str) else name[1] for name in each.names)


#: How an address may begin; one that leaves is a link, and has been looked at above.
_FOLLOWED = ("/", "#", "http://", "https://")


class Foreign(HTMLParser):
    """Finds what no page of ours has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        is_script = tag == "script" and not (given.get("src") or "").startswith("/static/")
        if is_script or tag in {"img", "iframe", "style", "object", "embed", "base"}:
            self.found.append(tag)
        self.found += [name for name in given if name == "style" or name.startswith("on")]
        urls = (given.get(name) or "" for name in ("href", "src", "action") if given.get(name))
        self.found += [url for url in urls if not url.startswith(_FOLLOWED)]
