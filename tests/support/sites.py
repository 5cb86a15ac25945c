"""Real servers on one call log, started, killed and stopped; and what they acknowledged in all."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse
from itertools import count
from pathlib import Path
from subprocess import PIPE
from urllib.parse import urlencode, urlsplit

from millis_hooks.call_log.tables import handler_runs, inbox
from millis_hooks.protocol.samples import end_of_call_body
from support.app import SECRET
from support.databases import url_in
from support.programs import Program
from support.storage import opened, rows
from support.waiting import eventually

PASSWORD = "a password of the crash tests"

#: `note(call, word)` writes a line that outlives the process.
APP = """
import os, sys, time, random
from millis_hooks import Backoff, EndOfCall, GiveUp, MillisHooks, Retry
from millis_hooks.server import serve

port, *arguments = sys.argv[1:]
hooks = MillisHooks(
    secrets=[{secret!r}], database_url={url!r}, handler_grace_s=0.2, dashboard_password={password!r}
)
journal = os.open({journal!r}, os.O_CREAT | os.O_APPEND | os.O_WRONLY)

def note(call, word):
    os.write(journal, f"{{word}} {{call.session_id}}\\n".encode())

{handlers}

serve(hooks, host="127.0.0.1", port=int(port), announce=lambda: print("ready", flush=True))
"""


Process = Program | subprocess.Popen[str]


class Site:
    """A place where servers with the same handlers come and go."""

    def __init__(self, folder: Path, handlers: str) -> None:
        self.folder = folder
        self.acknowledged: list[bytes] = []
        self._journal = folder / "journal"
        app = APP.format(
            secret=SECRET,
            password=PASSWORD,
            url=url_in(folder),
            journal=str(self._journal),
            handlers=handlers,
        )
        (folder / "service.py").write_text(app)

    def has_acknowledged(self, goal: int) -> bool:
        return len(self.acknowledged) >= goal

    def noted(self, word: str) -> Counter[str]:
        """How often handlers noted the word, by session."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        pairs = (line.split(" ", 1) for line in lines)
        return Counter(session_id for noted, session_id in pairs if noted == word)

    @contextmanager
    def starting(self) -> Iterator[Program]:
        """Start to serve, without waiting until it does."""
        with Program([str(self.folder / "service.py"), str(free_port())], stdout=PIPE) as process:
            try:
                yield process
            finally:
                process.kill()

    @contextmanager
    def serving(self, *arguments: str, with_library: bool = False) -> Iterator[Server]:
        """Serve; with an interpreter of its own where a library is to be loaded before it."""
        port = free_port()
        command = [str(self.folder / "service.py"), str(port), *arguments]
        with (
            subprocess.Popen([sys.executable, *command], stdout=PIPE, text=True)
            if with_library
            else Program(command, stdout=PIPE)
        ) as process:
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                yield Server(self, port, process)
            finally:
                process.kill()

    def finish(self) -> None:
        """Serve until nothing is left to do, and stop in good order."""
        with opened(self.folder) as database, self.serving() as server:
            eventually(lambda: not rows(database, inbox))
            eventually(lambda: not self.states() & {"pending", "running", "retrying"})
            server.stop()

    def states(self) -> set[str]:
        with opened(self.folder) as database:
            return {run.state for run in rows(database, handler_runs)}


class Server:
    """One process of a site."""

    def __init__(self, site: Site, port: int, process: Process) -> None:
        self.process = process
        self._site = site
        self._port = port

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(20)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0

    def ask(self, method: str, path: str, body: bytes | None = None) -> HTTPResponse:
        """Send one request with the secret, and return what came back, read."""
        with closing(self._connect()) as connection:
            connection.request(method, path, body, {"Authorization": f"Bearer {SECRET}"})
            response = connection.getresponse()
            response.read()
            return response

    def deliver(self, session_id: str) -> None:
        """Deliver one end-of-call, and see it acknowledged."""
        with closing(self._connect()) as connection:
            self._post(end_of_call_body(session_id=session_id), connection)

    @contextmanager
    def under_fire(self, clients: int) -> Iterator[None]:
        """Deliver from several connections at once, until the server is gone."""
        threads = [threading.Thread(target=self._fire) for _ in range(clients)]
        for thread in threads:
            thread.start()
        yield
        for thread in threads:
            thread.join(20)

    def _fire(self) -> None:
        with closing(self._connect()) as connection, suppress(OSError, HTTPException):
            while True:
                note = "é" * random.randrange(2000)
                self._post(end_of_call_body(metadata={"note": note}), connection)

    def _connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self._port, timeout=20)

    def _post(self, body: bytes, connection: HTTPConnection) -> None:
        headers = {"Authorization": f"Bearer {SECRET}"}
        connection.request("POST", "/millis/end-of-call", body, headers)
        response = connection.getresponse()
        response.read()
        assert response.status == 200
        self._site.acknowledged.append(body)


@contextmanager
def following(server: Server) -> Iterator[HTTPResponse]:
    """Sign in, and follow over a socket of its own."""
    with closing(HTTPConnection(urlsplit(server.address).netloc, timeout=20)) as connection:
        connection.request("GET", "/live", headers={"Cookie": signed_in(server)})
        yield connection.getresponse()


def signed_in(server: Server) -> str:
    """Sign in, and return the cookie of the session: its name, "=" and its value."""
    with closing(HTTPConnection(urlsplit(server.address).netloc, timeout=20)) as connection:
        form = urlencode({"username": "admin", "password": PASSWORD})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", "/login", form, kind)
        answer = connection.getresponse()
        answer.read()
        return (answer.getheader("Set-Cookie") or "").partition(";")[0]


def next_event(stream: HTTPResponse) -> str:
    """Wait for an event, and return it on one line."""
    lines = []
    while line := stream.readline().decode().strip():
        lines.append(line)
    # A comment only says that the stream is alive.
    return next_event(stream) if lines == [":"] else " ".join(lines)


#: Below the ports that the system gives to connections, and to servers that ask for any: one of
#: these might have ours before the program that it is for. Each process begins at another.
_ports = count(20_000 + os.getpid() * 101 % 12_000)


def free_port() -> int:
    """Return a port for a program to serve, or for none to be there; never the same twice."""
    for port in _ports:
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("there is always another")


def session_of(body: bytes) -> str:
    return str(json.loads(body)["session_id"])
