"""A load generator that counts exactly: it waits for every answer it has asked for.

`wrk` is faster and measures latency under load better, but drops what is under way when its time is
up. Where every answer has to be accounted for, this one asks.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

from .load import HEADERS, LOAD_CORE

#: A server that has answered nobody for so long is not waited for.
PATIENCE_S = 60

_PLACE = b"SESSION"
_ID = "-Count%012x-%08d"


@dataclass
class Answers:
    """What came back. `failed` are answers other than 200, and connections that broke."""

    latencies_ms: list[float] = field(default_factory=list)  # of the 200s
    failed: int = 0
    took_s: float = 0.0

    @property
    def ok(self) -> int:
        return len(self.latencies_ms)


def ask_all(
    url: str,
    *,
    connections: int,
    count: int | None = None,
    seconds: float | None = None,
    body: bytes | None = None,
) -> Answers:
    """Send `count` requests, or as many as fit into `seconds`, and wait for every answer.

    `SESSION` in the URL, or in `body`, becomes a new id each time. Moves the calling thread to the
    core of the load.
    """
    os.sched_setaffinity(0, {LOAD_CORE})
    requests, parts = _requests(url, body, count=count, seconds=seconds), urlsplit(url)
    return uvloop.run(send_all(parts.hostname or "", parts.port or 80, [requests] * connections))


async def send_all(host: str, port: int, queues: Sequence[Iterator[bytes]]) -> Answers:
    """Send each connection's requests in their order, and wait for every answer. Connections that
    share a queue take the next one when they are free."""
    loop = asyncio.get_running_loop()
    answers = Answers()
    began = time.perf_counter()
    asked = []
    for requests in queues:
        connect = partial(_Connection, requests, answers)
        _, connection = await loop.create_connection(connect, host, port)
        asked.append(connection)
    await _all_closed(asked, answers)
    answers.took_s = time.perf_counter() - began
    return answers


async def _all_closed(asked: list[_Connection], answers: Answers) -> None:
    """Wait for every connection; cut them off when nothing has come back for a long time."""
    open_ = {connection.closed for connection in asked}
    known = -1
    while open_:
        if known == (known := answers.ok + answers.failed):
            for connection in asked:
                connection.abort()
        _, open_ = await asyncio.wait(open_, timeout=PATIENCE_S)


class _Connection(asyncio.Protocol):
    """Asks, waits for the answer, asks again."""

    def __init__(self, requests: Iterator[bytes], answers: Answers) -> None:
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._answers = answers
        self._parser = httptools.HttpResponseParser(self)
        self._asked_at: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_complete(self) -> None:
        """Called by the parser."""
        assert self._asked_at is not None
        if self._parser.get_status_code() == 200:
            self._answers.latencies_ms.append((time.perf_counter() - self._asked_at) * 1000)
        else:
            self._answers.failed += 1
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._asked_at is not None:
            self._answers.failed += 1
        self.closed.set_result(None)

    def abort(self) -> None:
        self._transport.abort()

    def _ask(self) -> None:
        request = next(self._requests, None)
        if request is None:
            self._asked_at = None
            self._transport.close()
        else:
            self._asked_at = time.perf_counter()
            self._transport.write(request)


def _requests(
    url: str, body: bytes | None, *, count: int | None, seconds: float | None
) -> Iterator[bytes]:
    before, after = _template(url, body)
    run = time.time_ns() & 0xFFFFFFFFFFFF
    end = time.perf_counter() + seconds if seconds is not None else None
    number = 0
    while number != count and (end is None or time.perf_counter() < end):
        number += 1
        yield before + (_ID % (run, number)).encode() + after


def _template(url: str, body: bytes | None) -> tuple[bytes, bytes]:
    """Return the request up to the session's id, and the rest."""
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    headers = {"Host": parts.netloc, **HEADERS}
    if body is not None:
        length = len(body) - len(_PLACE) + len(_ID % (0, 0))
        headers |= {"Content-Type": "application/json", "Content-Length": str(length)}
    lines = [f"{'GET' if body is None else 'POST'} {target} HTTP/1.1"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    before, _, after = (head + (body or b"")).partition(_PLACE)
    return before, after
