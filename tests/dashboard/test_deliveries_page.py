"""The pages of deliveries and rejected requests."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from millis_hooks import EndOfCall
from millis_hooks.call_log.tables import rejections
from millis_hooks.masking.policy import MaskPolicy
from millis_hooks.masking.secret_patterns import MASK
from support.app import END_OF_CALL, MakeHooks, Rows, serving
from support.dashboard_site import HOSTILE, Page, Site
from support.stored_calls import NOW
from support.waiting import eventually

PASSWORD = "a password of the tests"


def add_rejection(site: Site, *, minutes_ago: float = 0, **columns: Any) -> int:
    at = NOW - timedelta(minutes=minutes_ago)
    defaults = {
        "received_at": at,
        "webhook": "end_of_call",
        "method": "POST",
        "status_code": 401,
        "reason": "The secret is not one of those accepted.",
        "client": "203.0.113.9",
        "query": "",
        "headers": json.dumps([["authorization", f"Bearer {MASK}"]]),
    }
    row = insert(rejections).values(defaults | columns).returning(rejections.c.id)
    return site.stored.write(lambda connection: int(connection.scalar(row) or 0))


def add_many(site: Site) -> None:
    """Add 120 requests, a minute apart, each third of them refused."""
    for number in range(120):
        if number % 3:
            at = NOW - timedelta(minutes=number)
            site.stored.add_delivery(session_id=f"-{number}", received_at=at)
        else:
            add_rejection(site, minutes_ago=number)


def listed(site: Site, query: str = "") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = site.get(f"/deliveries.json?{query}").json()["page"]["rows"]
    return rows


def names(rows: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(row["origin"], row["id"]) for row in rows]


def test_each_request_is_listed_with_its_outcome(site: Site) -> None:
    site.stored.add_delivery(
        "prefetch", session_id="-a", query="x" * 40, outcome="late", reason="slow", latency_ms=84.0
    )
    page = site.page("/deliveries")
    assert "Prefetch Too slow, fallback sent 200 84 ms 40 B -a slow" in page.text
    assert "/calls/-a" in page.links()
    assert "/deliveries/1" in page.links()


def test_deliveries_and_rejected_requests_are_one_list_newest_first(site: Site) -> None:
    add_many(site)
    rows = listed(site)
    assert len(rows) == 50
    moments = [row["received_at"] for row in rows]
    assert moments == sorted(moments, reverse=True)
    assert {row["origin"] for row in rows} == {"delivery", "rejection"}


def test_pages_link_from_the_newest_to_the_oldest_and_back(site: Site) -> None:
    add_many(site)
    forth, path = [], "/deliveries"
    while path:
        forth.append(path)
        (older,) = site.page(path).all("a", rel="next")
        path = older.get("href") or ""
    assert len(forth) == 3
    (newer,) = site.page(forth[-1]).all("a", rel="prev")
    middle = newer["href"] or ""
    assert names(listed(site, middle.partition("?")[2])) == names(
        listed(site, forth[1].partition("?")[2])
    )


def test_simultaneous_requests_are_on_one_page_each(site: Site) -> None:
    for _ in range(40):
        site.stored.add_delivery()
        add_rejection(site)
    first = site.get("/deliveries.json").json()["page"]
    second = listed(site, f"before={first['older']}")
    assert len({*names(first["rows"]), *names(second)}) == 80


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("kind=prefetch", ["failed", "rejected"]),
        ("kind=end_of_call", ["unparsed", "stored"]),
        ("outcome=rejected", ["rejected"]),
        ("outcome=unparsed", ["unparsed"]),
        ("outcome=stored", ["stored"]),
        ("session=-a", ["failed", "stored"]),
        ("session=-a&kind=prefetch", ["failed"]),
        ("session=secret is not", ["rejected"]),
        ("range=24h", ["unparsed", "failed", "rejected"]),
        ("from=2026-11-19&to=2026-11-19", ["stored"]),
        ("kind=x&outcome=y&range=z", ["unparsed", "failed", "rejected", "stored"]),
        ("before=x&after=0,1,2", ["unparsed", "failed", "rejected", "stored"]),
    ],
)
def test_the_list_is_filtered(site: Site, query: str, expected: list[str]) -> None:
    site.stored.add_delivery(session_id="-a", received_at=NOW - timedelta(days=2))
    add_rejection(site, webhook="prefetch", minutes_ago=3)
    site.stored.add_delivery(
        "prefetch", session_id="-a", outcome="failed", received_at=NOW - timedelta(minutes=2)
    )
    site.stored.add_delivery(outcome="unparsed", received_at=NOW - timedelta(minutes=1))
    assert [row["outcome"] for row in listed(site, query)] == expected


def test_filters_stay_in_the_address_of_the_next_page(site: Site) -> None:
    add_many(site)
    (older,) = site.page("/deliveries?kind=end_of_call&range=30d").all("a", rel="next")
    assert "kind=end_of_call&range=30d" in (older["href"] or "")


def test_a_rejected_request_has_a_page(site: Site) -> None:
    number = add_rejection(site, query="agent_id=-desk&from=%2B14155550134")
    page = site.page(f"/rejections/{number}")
    for words in (
        "Answered 401. The secret is not one of those accepted.",
        "203.0.113.9",
        f"authorization Bearer {MASK}",
        '"-desk"',
    ):
        assert words in page.text


def test_a_rejected_request_has_every_value_of_a_repeated_name(site: Site) -> None:
    number = add_rejection(site, query="tag=a&tag=b&to=%2B1")
    twin = site.get(f"/rejections/{number}.json").json()
    assert twin["rejection"]["query"] == "tag=a&tag=b&to=%2B1"


def test_a_rejected_request_is_masked(tmp_path: Path) -> None:
    site = Site(tmp_path, mask=MaskPolicy(numbers="full", words="full"))
    site.sign_in()
    number = add_rejection(site, query="from=%2B14155550134&name=Ada")
    for path in (f"/rejections/{number}", f"/rejections/{number}.json"):
        text = site.get(path).text
        assert "Ada" not in text
        assert "4155550134" not in text
    site.stored.database.close()


@pytest.mark.parametrize("path", ["/rejections/99", "/rejections/x", "/rejections/99.json"])
def test_a_missing_rejected_request_is_not_found(site: Site, path: str) -> None:
    assert site.get(path).status_code == 404


def test_hostile_requests_are_shown_as_text(site: Site) -> None:
    site.stored.add_delivery(session_id=HOSTILE, outcome="unparsed", reason=HOSTILE)
    number = add_rejection(
        site,
        method=HOSTILE,
        reason=HOSTILE,
        client=HOSTILE,
        query=f"a={HOSTILE}",
        headers=json.dumps([[HOSTILE, HOSTILE]]),
    )
    for path in ("/deliveries", f"/rejections/{number}", "/deliveries/1"):
        page = site.page(path)
        assert page.all("img") == []
        assert all(script.get("src") for script in page.all("script"))


def test_a_delivery_shows_its_answer(site: Site) -> None:
    number = site.stored.add_delivery(
        "prefetch", query="tier=gold", answer=b'{"metadata": {"a": 1}}', latency_ms=12.0
    )
    text = site.page(f"/deliveries/{number}").text
    assert '"gold"' in text
    assert "Our answer 200 in 12 ms" in text


def test_the_list_without_requests_is_explained(site: Site) -> None:
    assert "Nothing received yet" in site.page("/deliveries").text
    assert "No delivery is unparsed" in site.page("/deliveries?outcome=unparsed").text
    assert "No deliveries match" in site.page("/deliveries?outcome=late").text


def test_a_wrong_secret_shows_up_on_the_page(make_hooks: MakeHooks, rows: Rows) -> None:
    with serving(make_hooks(dashboard_password=PASSWORD), headers={}) as client:
        client.post(END_OF_CALL, content=b"{}")
        eventually(lambda: rows("SELECT * FROM rejections"))
        client.post("/login", data={"username": "admin", "password": PASSWORD})
        page = Page(client.get("/deliveries?outcome=rejected"))
    assert "No secret in the authorization header." in page.text


def test_an_unparsed_delivery_is_read_again(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(dashboard_password=PASSWORD)
    handled: list[str] = []

    @hooks.on_end_of_call(name="note")
    def note(call: EndOfCall) -> None:
        handled.append(call.session_id)

    with serving(hooks) as client:
        client.post(END_OF_CALL, content=b'{"session_id": "-fixed", "call_status": "user-ended"}')
        eventually(lambda: handled)
        hooks._service.call_log.writer.run(_forget_how_to_read)  # type: ignore[union-attr]
        client.post("/login", data={"username": "admin", "password": PASSWORD})
        response = client.post("/reread", data={"delivery_id": "1"})
        eventually(lambda: len(handled) == 2)
    assert "It is parsed" in Page(response).text
    assert rows("SELECT outcome FROM deliveries") == [{"outcome": "stored"}]


def _forget_how_to_read(connection: Any) -> None:
    """Leave the call log as a version that could not read the delivery would have."""
    connection.exec_driver_sql("DELETE FROM calls")
    connection.exec_driver_sql(
        "UPDATE deliveries SET outcome = 'unparsed', reason = 'x', session_id = NULL"
    )


@pytest.mark.parametrize("delivery_id", ["99", "x", "", "-1"])
def test_a_missing_delivery_is_not_read_again(make_hooks: MakeHooks, delivery_id: str) -> None:
    with serving(make_hooks(dashboard_password=PASSWORD), headers={}) as client:
        client.post("/login", data={"username": "admin", "password": PASSWORD})
        assert client.post("/reread", data={"delivery_id": delivery_id}).status_code == 404


def test_a_delivery_that_is_still_unparsed_is_reported(make_hooks: MakeHooks, rows: Rows) -> None:
    with serving(make_hooks(dashboard_password=PASSWORD)) as client:
        client.post(END_OF_CALL, content=b"{broken")
        eventually(lambda: not rows("SELECT * FROM inbox"))
        client.post("/login", data={"username": "admin", "password": PASSWORD})
        response = client.post("/reread", data={"delivery_id": "1"})
    assert "It is still unparsed." in Page(response).text
