"""Our own time for a page of 50 calls and for a call of 200 turns, and what a first visit weighs.

A page's own time is that of the whole request less that of the queries to the call log and for the
session, in one process and without a network: time of processors, which says the same on a machine
that has other work. A first visit loads the page and all files it names, packed.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy import select
from starlette.applications import Starlette

from millis_hooks.call_log.call_rows import write
from millis_hooks.call_log.database import Database
from millis_hooks.call_log.deliveries import insert_deliveries
from millis_hooks.call_log.projection import digest_delivery
from millis_hooks.call_log.queries import Queries
from millis_hooks.call_log.sessions import SessionReader
from millis_hooks.call_log.tables import deliveries
from millis_hooks.dashboard.call_actions import CallActions
from millis_hooks.dashboard.connection_test import ConnectionTest
from millis_hooks.dashboard.forget import Forgetting
from millis_hooks.dashboard.pages import DashboardSettings
from millis_hooks.dashboard.setup import Setup
from millis_hooks.dashboard.site import dashboard
from millis_hooks.operators import Operators
from millis_hooks.settings import Settings

from .bystanders import Bystanders
from .generate import NEWEST, OWN_NUMBERS, Generator, make
from .report import Row, median, options, print_report, progress

NOW = NEWEST + timedelta(hours=1)
CALLS = 2_000
TURNS = 200
PASSWORD = "a password for benchmarks"
MAX_LIST_MS = 15
MAX_CALL_MS = 25
MAX_FIRST_VISIT_KB = 90
#: Left out: what is made once is made by then.
WARM_UP = 5


@dataclass
class Answer:
    """What a request was answered with."""

    status: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    body: bytes = b""
    #: Names and values as they are sent back.
    cookies: list[bytes] = field(default_factory=list)


class Timed:
    """Anything, with the time that is spent in its methods."""

    def __init__(self, inner: object) -> None:
        self._inner = inner
        self.spent_s = 0.0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        return self._timed(value) if callable(value) else value

    def _timed(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            began = time.process_time()
            try:
                return method(*arguments, **named)
            finally:
                self.spent_s += time.process_time() - began

        return call


class Browser:
    """Asks an application for pages, as one that is signed in and takes packed answers."""

    def __init__(self, app: Starlette) -> None:
        self._app = app
        self._headers = [(b"host", b"localhost"), (b"accept-encoding", b"gzip")]

    async def sign_in(self) -> None:
        form = f"username=admin&password={PASSWORD}".replace(" ", "+").encode()
        kind = (b"content-type", b"application/x-www-form-urlencoded")
        answer = await self.ask("POST", "/login", body=form, headers=[kind])
        self._headers.append((b"cookie", b"; ".join(answer.cookies)))

    async def ask(
        self,
        method: str,
        address: str,
        *,
        body: bytes = b"",
        headers: list[tuple[bytes, bytes]] | None = None,
    ) -> Answer:
        path, _, query = address.partition("?")
        answer = Answer()

        sent = iter([body])

        async def receive() -> MutableMapping[str, Any]:
            for part in sent:
                return {"type": "http.request", "body": part}
            return await asyncio.Future()  # this browser never hangs up

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answer.status, answer.headers = message["status"], dict(message["headers"])
                cookies = (each for name, each in message["headers"] if name == b"set-cookie")
                answer.cookies += [cookie.split(b";")[0] for cookie in cookies]
            else:
                answer.body += message.get("body", b"")

        scope = {
            "type": "http", "method": method, "path": path, "query_string": query.encode(),
            "headers": self._headers + (headers or []), "scheme": "http", "root_path": "",
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "http_version": "1.1",
        }  # fmt: skip
        await self._app(scope, receive, send)
        return answer


def add_long_call(database: Database) -> str:
    """Add a call of so many turns, with its prefetch, and return its session."""
    prefetch, end = Generator(CALLS).call(CALLS - 3)[:2]
    payload = json.loads(end.body)
    session = payload["session_id"] = "-Ox1long000000000001"
    roles = ("assistant", "user")
    said = "I would like to book a table for two on Tuesday evening, by the window if you can."
    chat = [{"role": roles[turn % 2], "content": said} for turn in range(TURNS)]
    end = end._replace(body=json.dumps(payload | {"chat": chat}).encode(), session_id=session)
    with database.writer.begin() as connection:
        insert_deliveries(connection, [prefetch._replace(session_id=session), end])
        of_session = select(deliveries.c.id).where(deliveries.c.session_id == session)
        ids = connection.scalars(of_session.order_by(deliveries.c.id)).all()
        to_digest = partial(digest_delivery, own_numbers=OWN_NUMBERS)
        batch = SessionReader(to_digest, lambda _: ["save"]).read(connection, ids)
        write(connection, batch, hears_of_changes=lambda name: False)
    return session


async def own_ms(browser: Browser, address: str, queries: list[Timed], rounds: int) -> list[float]:
    """Return how long each request took, less its queries."""
    took = []
    for _ in range(rounds + WARM_UP):
        before_s = sum(each.spent_s for each in queries)
        began = time.process_time()
        answer = await browser.ask("GET", address)
        passed_s = time.process_time() - began
        assert answer.status == 200, f"{address}: {answer.status}"
        took.append(1000 * (passed_s - sum(each.spent_s for each in queries) + before_s))
    return took[WARM_UP:]


async def first_visit_kb(browser: Browser, address: str) -> float:
    """Return what a page and the files it names weigh as they are sent."""
    page = await browser.ask("GET", address, headers=[(b"accept-encoding", b"identity")])
    packed = await browser.ask("GET", address)
    # The icons are named once for each place, after a # of their own.
    named = set(re.findall(r'(?:src|href)="(/static/[^"#]+)', _text(page)))
    files = [await browser.ask("GET", name.replace("&amp;", "&")) for name in named]
    return sum(len(answer.body) for answer in [packed, *files]) / 1000


def _text(answer: Answer) -> str:
    packed = answer.headers.get(b"content-encoding") == b"gzip"
    return (gzip.decompress(answer.body) if packed else answer.body).decode()


async def measure(file: Path, rounds: int) -> list[Row]:
    database = Database(f"sqlite:///{file}")
    session = add_long_call(database)
    operators = Operators(
        database.reader,
        write=lambda work: _write(database, work),
        signing_key=b"key",
        password=PASSWORD,
        now=lambda: NOW,
    )
    settings = Settings.load(secrets="a-secret-for-benchmarks")
    queries = [Timed(Queries(database.reader)), Timed(operators)]
    app = dashboard(
        cast("Queries", queries[0]),
        cast("Operators", queries[1]),
        actions=CallActions(lambda _work: None, lambda _id: False),
        forgetting=Forgetting(database.reader, lambda work: _write(database, work), operators),
        setup=Setup(settings, ConnectionTest(settings)),
        settings=DashboardSettings("0"),
        now=lambda: NOW,
    )
    browser = Browser(app)
    await browser.sign_in()
    listed = await own_ms(browser, "/calls?range=all", queries, rounds)
    progress(f"list {median(listed, ' ms')}")
    call = await own_ms(browser, f"/calls/{session}", queries, rounds)
    weight_kb = await first_visit_kb(browser, "/calls?range=all")
    database.close()
    return [
        Row("a page of 50 calls", statistics.median(listed), "ms", at_most=MAX_LIST_MS),
        Row(f"a call of {TURNS} turns", statistics.median(call), "ms", at_most=MAX_CALL_MS),
        Row("a first visit, packed", weight_kb, "kB", at_most=MAX_FIRST_VISIT_KB),
    ]


def _write(database: Database, work: Callable[[Any], Any]) -> Any:
    with database.writer.begin() as connection:
        return work(connection)


def main() -> None:
    chosen = options(__doc__, rounds=50)
    bystanders = Bystanders()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "calls.db"
        make(file, CALLS)
        rows = asyncio.run(measure(file, chosen.rounds))
    print_report(f"Own time of pages, median of {chosen.rounds}", rows, bystanders)


if __name__ == "__main__":
    main()
