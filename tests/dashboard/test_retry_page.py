"""Failed runs of a list of calls are retried at once."""

from __future__ import annotations

from functools import partial
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import select

from millis_hooks.call_log.tables import handler_runs
from millis_hooks.operators.accounts import add, hash_password
from support.dashboard_site import HOSTILE, Site
from support.stored_calls import NOW


@pytest.fixture
def failed(site: Site) -> list[int]:
    """Three failed runs of `sync_crm` for two agents, and one of a handler that is gone."""
    site.stored.add_handler("sync_crm")
    runs = []
    for number, agent_id in enumerate(["-a", "-a", "-b"]):
        call_id = site.stored.add_call(f"-{number}", minutes_ago=number + 1, agent_id=agent_id)
        runs.append(site.stored.add_run(call_id, "sync_crm", "failed"))
    site.stored.add_run(call_id, "gone", "failed")
    return runs


def retry(site: Site, listed: str = "", **fields: str) -> httpx.Response:
    return site.browser.post("/retry", data={"in": listed} | fields)


def replays(site: Site) -> list[Any]:
    chosen = select(handler_runs).where(handler_runs.c.is_replay)
    return list(site.stored.write(lambda connection: connection.execute(chosen).all()))


def test_the_page_says_how_many_of_which_handlers_and_what_happens_again(
    site: Site, failed: list[int]
) -> None:
    assert "/retry?handler=failed" in site.page("/calls?handler=failed").links()
    text = site.page("/retry?handler=failed").text
    assert "3 runs can be retried" in text
    assert "gone 1 not registered" in text
    assert "Side effects (e-mails, CRM writes) happen again." in text
    assert replays(site) == []


def test_only_failed_runs_of_the_list_are_retried_and_their_progress_is_shown(
    site: Site, failed: list[int]
) -> None:
    response = retry(site, "handler=failed&agent=-a")
    assert response.status_code == 303
    assert {run.call_id for run in replays(site)} == {1, 2}
    page = site.page(response.headers["location"])
    assert "2 runs retried : 2 to go. 0 succeeded, 0 failed again." in page.text.replace(
        "retried:", "retried :"
    )
    assert "No failed runs" in page.text
    assert "1 run can be retried" in site.page("/retry?handler=failed").text


def test_one_handler_alone_is_retried(site: Site, failed: list[int]) -> None:
    site.stored.add_handler("save")
    site.stored.add_run(1, "save", "failed")
    retry(site, "handler=failed", handler="save")
    assert [run.handler for run in replays(site)] == ["save"]


def test_a_second_click_retries_nothing(site: Site, failed: list[int]) -> None:
    retry(site)
    assert "No failed runs" not in site.page(retry(site).headers["location"]).text
    assert len(replays(site)) == 3


@pytest.mark.parametrize(
    "query", ["at=x&after=y", "at=2026-11-21&after=-1", "after=1", "q=%00&agent=" + HOSTILE]
)
def test_any_address_has_a_page(site: Site, failed: list[int], query: str) -> None:
    assert site.get(f"/retry?{query}").status_code == 200


def test_viewers_retry_nothing(site: Site, failed: list[int]) -> None:
    hashed = hash_password("a viewer's password")
    site.stored.write(partial(add, name="anna", role="view", password_hash=hashed, now=NOW))
    site.sign_in("a viewer's password", username="anna")
    assert site.get("/retry").status_code == 403
    assert retry(site).status_code == 403
    assert replays(site) == []
