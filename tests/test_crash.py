"""Real servers, killed at random moments: whatever was acknowledged is there and gets processed."""

from __future__ import annotations

import json
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from storage import eventually, opened, rows, url_in

from millis_hooks.call_log.tables import attempts, calls, deliveries, handler_runs, inbox
from millis_hooks.samples import end_of_call_body

SECRET = "a secret of the crash tests"
APP = """
import sys
from millis_hooks import MillisHooks
from millis_hooks.call_log.processing import Processor
from millis_hooks.server import serve

hooks = MillisHooks(secrets=[{secret!r}], database_url={url!r})

@hooks.on_end_of_call
def notify(call):
    pass

if "unprocessed" in sys.argv:
    Processor.process_chunk = lambda self: 0

serve(hooks, host="127.0.0.1", port={port}, announce=lambda: print("ready", flush=True))
"""


class Site:
    """A place where servers come and go, and what they acknowledged in all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.acknowledged: list[bytes] = []
        app = APP.format(secret=SECRET, url=url_in(folder), port=self.port)
        (folder / "app.py").write_text(app)

    def has_acknowledged(self, goal: int) -> bool:
        return len(self.acknowledged) >= goal

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        command = [sys.executable, str(self.folder / "app.py"), *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                assert server.stdout.readline() == "ready\n"
                yield server
            finally:
                server.kill()

    @contextmanager
    def under_fire(self, clients: int) -> Iterator[None]:
        """Deliver from several connections at once, until the server is gone."""
        threads = [threading.Thread(target=self._deliver) for _ in range(clients)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(20)

    def _deliver(self) -> None:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=20)
        headers = {"Authorization": f"Bearer {SECRET}"}
        try:
            while True:
                body = end_of_call_body(metadata={"note": "é" * random.randrange(2000)})
                connection.request("POST", "/millis/end-of-call", body, headers)
                response = connection.getresponse()
                response.read()
                assert response.status == 200
                self.acknowledged.append(body)
        except (OSError, HTTPException):
            connection.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def session_of(body: bytes) -> str:
    return str(json.loads(body)["session_id"])


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_no_acknowledged_call_is_lost_however_often_the_server_is_killed(site: Site) -> None:
    for _ in range(4):
        goal = len(site.acknowledged) + random.randint(1, 300)
        with site.serving() as server, site.under_fire(clients=4):
            eventually(partial(site.has_acknowledged, goal))
            server.kill()
    finish(site)
    with opened(site.folder) as database:
        kept = [row.body for row in rows(database, deliveries)]
        assert len(kept) == len(set(kept))
        assert set(site.acknowledged) <= set(kept)
        assert {row.session_id for row in rows(database, calls)} == set(map(session_of, kept))
        assert len(rows(database, handler_runs)) == len(kept)


def test_what_was_acknowledged_but_not_processed_is_processed_at_the_next_start(site: Site) -> None:
    with site.serving("unprocessed") as server, site.under_fire(clients=2):
        eventually(lambda: site.has_acknowledged(60))
        server.kill()
    with opened(site.folder) as database:
        assert len(rows(database, inbox)) >= 60
        assert rows(database, calls) == []
    finish(site)
    with opened(site.folder) as database:
        assert len(rows(database, calls)) == len(rows(database, deliveries)) >= 60
        assert {run.state for run in rows(database, handler_runs)} == {"succeeded"}
        assert len(rows(database, attempts)) == len(rows(database, deliveries))


def finish(site: Site) -> None:
    """Serve until nothing is left to do, and stop in good order."""
    with opened(site.folder) as database, site.serving() as server:
        eventually(lambda: not rows(database, inbox))
        eventually(lambda: "pending" not in {run.state for run in rows(database, handler_runs)})
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == 0
