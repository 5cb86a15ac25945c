"""The dashboard over a call log in a temporary file, and a test client."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import httpx2 as httpx
from sqlalchemy import Connection, Table, insert, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from millis_hooks.call_log.tables import metadata
from millis_hooks.dashboard.call_actions import CallActions
from millis_hooks.dashboard.connection_test import ConnectionTest
from millis_hooks.dashboard.forget import Forgetting
from millis_hooks.dashboard.pages import DashboardSettings
from millis_hooks.dashboard.security import ProxySignIn
from millis_hooks.dashboard.setup import Examine, Setup
from millis_hooks.dashboard.site import dashboard
from millis_hooks.exceptions import StorageError
from millis_hooks.masking.policy import SECRETS_ALONE, MaskPolicy
from millis_hooks.operators import Operators
from millis_hooks.protocol.agent_names import AgentNames
from millis_hooks.runs.replay import Replayed
from millis_hooks.settings import Settings
from support import databases
from support.app import SECRET
from support.stored_calls import NOW, StoredCalls

PASSWORD = "pässwörd"
HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> \u202e\u05e9\u05dc\u05d5\u05dd"


@cache
def _ordinary() -> Settings:
    return Settings.load(secrets=SECRET)


#: What the first site of this process had after its operator signed in: rows, and cookies.
_signed_in: list[tuple[dict[Table, list[dict[str, Any]]], httpx.Cookies]] = []


def make_setup(examine: Examine = tuple, **settings: Any) -> Setup:
    """What the setup page is made from, where the webhooks take SECRET unless told otherwise."""
    loaded = Settings.load(**({"secrets": SECRET} | settings)) if settings else _ordinary()
    return Setup(loaded, ConnectionTest(loaded), examine)


_MARKUP = re.compile(
    r"""<!--.*?-->|<![^>]*>"""
    r"""|<(?P<end>/?)(?P<tag>[a-zA-Z][\w-]*)(?P<attributes>(?:[^"'>]|"[^"]*"|'[^']*')*)>""",
    re.DOTALL,
)
_ATTRIBUTE = re.compile(r"""([^\s=/"']+)(?:\s*=\s*("[^"]*"|'[^']*'|[^\s"']+))?""")


class Page:
    """The elements of a page with their attributes, and the text; it has to be well-formed.

    The parser of the standard library takes as long as it takes to make the page.
    """

    def __init__(self, response: httpx.Response) -> None:
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        text, end = response.text, 0
        for markup in _MARKUP.finditer(text):
            if markup.start() > end:
                self.words.append(html.unescape(text[end : markup.start()]))
            end = markup.end()
            if markup["tag"] and not markup["end"]:
                self.elements.append((markup["tag"].lower(), _attributes(markup["attributes"])))
        if text[end:]:
            self.words.append(html.unescape(text[end:]))

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str, **attributes: str) -> list[dict[str, str | None]]:
        return [
            found
            for name, found in self.elements
            if name == tag and attributes.items() <= found.items()
        ]

    def links(self) -> list[str]:
        return [link["href"] or "" for link in self.all("a") if "href" in link]


def _attributes(text: str) -> dict[str, str | None]:
    pairs = _ATTRIBUTE.findall(text)
    return {
        name.lower(): html.unescape(value.strip("\"'")) if value else None for name, value in pairs
    }


class Site:
    """A dashboard over a call log of its own, and a browser that is signed in to it."""

    def __init__(
        self,
        folder: Path,
        *,
        password: str | None = PASSWORD,
        prefix: str = "",
        mask: MaskPolicy = SECRETS_ALONE,
        setup: Setup | None = None,
        public_url: str | None = None,
        agents: Mapping[str, str] | None = None,
        proxy: ProxySignIn | None = None,
    ) -> None:
        self.stored = StoredCalls(folder)
        self.now = NOW
        self.operators = Operators(
            self.stored.database.reader,
            write=self.stored.write,
            signing_key=b"key",
            password=password,
            now=self._now,
        )
        app = dashboard(
            self.stored.queries,
            self.operators,
            actions=CallActions(self._replay, lambda delivery_id: False),
            forgetting=Forgetting(self.stored.database.reader, self.stored.write, self.operators),
            setup=setup or make_setup(),
            settings=DashboardSettings(
                "1.2.3", mask=mask, public_url=public_url, agents=AgentNames(agents)
            ),
            now=self._now,
            proxy=proxy,
        )
        self.app = Starlette(routes=[Mount(prefix, app)]) if prefix else app
        self.browser = TestClient(self.app, follow_redirects=False, raise_server_exceptions=False)
        self.prefix = prefix

    def sign_in(self, password: str = PASSWORD, **fields: str) -> httpx.Response:
        form = {"username": "admin", "password": password} | fields
        return self.browser.post(self.prefix + "/login", data=form)

    def be_signed_in(self) -> None:
        """Sign in; from the second time on by what the first one left: the form takes long."""
        if databases.current() != "sqlite":
            self.sign_in()
        elif not _signed_in:
            self.sign_in()
            _signed_in.append((self._rows(), httpx.Cookies(self.browser.cookies)))
        else:
            [(rows, cookies)] = _signed_in
            self.stored.write(lambda to: [to.execute(insert(table), rows[table]) for table in rows])
            self.browser.cookies.update(cookies)

    def _rows(self) -> dict[Table, list[dict[str, Any]]]:
        with self.stored.database.reader.connect() as connection:
            rows = {each: connection.execute(select(each)) for each in metadata.sorted_tables}
            every = {each: [dict(row) for row in found.mappings()] for each, found in rows.items()}
        return {table: rows for table, rows in every.items() if rows}

    def get(self, path: str) -> httpx.Response:
        return self.browser.get(self.prefix + path)

    @property
    def cookie(self) -> str:
        return f"mh_session={self.browser.cookies['mh_session']}"

    def page(self, path: str) -> Page:
        response = self.get(path)
        assert response.status_code == 200, response.text
        return Page(response)

    def add_ended_call(self, session_id: str = "-call", **sent: Any) -> int:
        """Add a call with the end-of-call it was read from."""
        body = json.dumps({"session_id": session_id} | sent).encode()
        delivery_id = self.stored.add_delivery(session_id=session_id, body=body)
        return self.stored.add_call(session_id, delivery_id=delivery_id)

    def add_prefetch(self, query: str = "session_id=-call", **answer: Any) -> int:
        """Add a prefetch of the call `-call`, five minutes ago, and its answer."""
        return self.stored.add_delivery(
            "prefetch",
            session_id="-call",
            query=query,
            answer=json.dumps(answer).encode(),
            outcome="fresh",
            latency_ms=84.0,
            received_at=NOW - timedelta(minutes=5),
        )

    def _now(self) -> datetime:
        return self.now

    def _replay(self, work: Callable[[Connection], Replayed | None]) -> Replayed | None:
        try:
            return self.stored.write(work)
        except SQLAlchemyError as error:
            raise StorageError("the call log could not be written") from error
