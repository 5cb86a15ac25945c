"""The list of calls as a file: the same calls, with the same hidden, for those who may have it."""

from __future__ import annotations

import csv
import json
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path

import pytest

from millis_hooks.masking.policy import MaskPolicy
from support.dashboard_site import Page, Site

pytestmark = pytest.mark.both_databases


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    site.sign_in()
    yield site
    site.stored.database.close()


def sessions(text: str) -> list[str]:
    return [row["session_id"] for row in csv.DictReader(text.splitlines())]


def test_an_export_has_the_calls_of_the_list(site: Site) -> None:
    for number in range(3):
        site.stored.add_call(f"-call{number}", minutes_ago=30 - number, agent_id=f"-a{number % 2}")
    links = site.page("/calls?agent=-a0&size=25").all("a")
    link = next(each for each in links if "download" in each)
    response = site.get(link["href"] or "")
    assert sessions(response.content.decode("utf-8-sig")) == ["-call0", "-call2"]
    assert response.headers["content-type"] == "text/csv; charset=utf-8"
    assert response.headers["content-disposition"] == (
        'attachment; filename="calls-2026-11-21.csv"'
    )


def test_the_page_exports_for_excel_and_an_address_without_bom_for_programs(site: Site) -> None:
    site.stored.add_call("-a")
    link = next(each for each in site.page("/calls").all("a") if "download" in each)
    assert site.get(link["href"] or "").content.startswith(BOM_UTF8)
    assert not site.get("/calls/export.csv").content.startswith(BOM_UTF8)


def test_lines_of_json_have_the_webhooks_too(site: Site) -> None:
    site.add_ended_call("-a", metadata={"api_key": "sk-abcdefghijklmnop1234"})
    response = site.get("/calls/export.jsonl")
    (line,) = map(json.loads, response.text.splitlines())
    assert (line["session_id"], line["masked"], len(line["deliveries"])) == ("-a", True, 1)
    assert "sk-abcdefghijklmnop1234" not in response.text


def test_an_export_hides_what_the_pages_hide(tmp_path: Path) -> None:
    site = Site(tmp_path, mask=MaskPolicy(numbers="full"))
    site.sign_in()
    site.stored.add_call("-a", from_phone="+14155550134")
    assert "5550134" not in site.get("/calls/export.csv").text
    site.stored.database.close()


def test_a_long_export_comes_in_pieces_and_is_whole(site: Site) -> None:
    for number in range(300):
        site.stored.add_call(f"-{number}", snippet="word " * 100)
    assert len(sessions(site.get("/calls/export.csv").text)) == 300


def test_an_empty_list_is_a_file_with_a_heading_alone(site: Site) -> None:
    assert sessions(site.get("/calls/export.csv?agent=-none").text) == []


@pytest.mark.parametrize("path", ["/calls/export.csv", "/calls/export.jsonl"])
def test_exports_require_sign_in(tmp_path: Path, path: str) -> None:
    site = Site(tmp_path)
    assert site.get(path).headers["location"].startswith("/login")
    site.stored.database.close()


def test_an_export_is_on_record_without_what_was_searched_for(site: Site) -> None:
    site.stored.add_call("-a", text="refund")
    site.get("/calls/export.csv?q=refund&range=all")
    page = Page(site.get("/operators"))
    assert "export" in page.text.lower()
    assert "refund" not in page.text


@pytest.mark.sqlite_only
def test_a_call_log_that_cannot_be_read_gives_no_half_a_file(site: Site) -> None:
    cookie = site.cookie
    site.stored.database.close()
    Path(str(site.stored.database.url.database)).write_bytes(b"no database at all" * 1000)
    response = site.browser.get("/calls/export.csv", headers={"cookie": cookie})
    assert response.status_code == 503
