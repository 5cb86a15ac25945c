"""The two ways out of the sandbox: over HTTP to this machine, and into an application."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from millis_hooks.sandbox.transport import (
    IN_PROCESS,
    MAX_ANSWER_BYTES,
    Answer,
    Request,
    TransportError,
    in_process,
    over_http,
)


class Echo(BaseHTTPRequestHandler):
    """Says what it was asked for."""

    def do_GET(self) -> None:
        body = self.path.encode()
        self.send_response(302 if "moved" in self.path else 200)
        self.send_header("location", "http://127.0.0.1:9/elsewhere")
        self.send_header("content-type", "text/plain")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def ask(request: Request, *, timeout_s: float = 10.0, anywhere: bool = False) -> Answer:
    async def once() -> Answer:
        async with over_http(anywhere=anywhere) as transport:
            return await transport.send(request, timeout_s=timeout_s)

    return asyncio.run(once())


def test_a_query_goes_out_as_it_is_beside_that_of_the_address(address: str) -> None:
    answer = ask(Request("GET", f"{address}/x?a=1", query=b"from=%2B1&b=+%ff&{x}"))
    assert answer == Answer(200, b"/x?a=1&from=%2B1&b=+%ff&{x}", "text/plain")


def test_no_redirect_is_followed(address: str) -> None:
    answer = ask(Request("GET", f"{address}/moved"))
    assert (answer.status_code, answer.is_success, answer.text) == (302, False, "/moved")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/", "example.com is not on this machine"),
        ("http://169.254.169.254/", "169.254.169.254 is not on this machine"),
        ("ftp://127.0.0.1/", "no http or https address"),
        ("javascript:alert(1)", "no http or https address"),
        ("/relative", "no http or https address"),
        ("http://[half", "."),
        ("http://127.0.0.1:1/", "All connection attempts failed"),
    ],
)
def test_an_address_that_cannot_or_may_not_be_reached_is_refused(url: str, why: str) -> None:
    with pytest.raises(TransportError, match=why):
        ask(Request("GET", url))


def test_a_header_that_cannot_be_sent_is_refused(address: str) -> None:
    with pytest.raises(TransportError):
        ask(Request("GET", address, headers=(("a\nb", "c"),)))


async def hang(request: HttpRequest) -> Response:
    await asyncio.Event().wait()
    return Response()


async def flood(request: HttpRequest) -> Response:
    return Response(b"x" * (MAX_ANSWER_BYTES + 1))


async def fail(request: HttpRequest) -> Response:
    raise RuntimeError


async def echo(request: HttpRequest) -> Response:
    return PlainTextResponse(f"{request.url.path} {(await request.body()).decode()}")


APP = Starlette(
    routes=[
        Route("/hang", hang),
        Route("/flood", flood),
        Route("/fail", fail),
        Route("/echo", echo, methods=["POST"]),
    ]
)


def ask_app(
    path: str, method: str = "GET", body: bytes | None = None, timeout_s: float = 10.0
) -> Answer:
    async def once() -> Answer:
        async with in_process(APP) as transport:
            request = Request(method, IN_PROCESS + path, body=body)
            return await transport.send(request, timeout_s=timeout_s)

    return asyncio.run(once())


def test_requests_reach_an_application_without_sockets() -> None:
    answer = ask_app("/echo", "POST", b"hello")
    assert (answer.status_code, answer.text) == (200, "/echo hello")


def test_an_application_that_fails_answers_500() -> None:
    assert ask_app("/fail").status_code == 500


def test_an_application_that_hangs_runs_into_the_timeout() -> None:
    with pytest.raises(TransportError, match=r"no answer within 0\.01 s"):
        ask_app("/hang", timeout_s=0.01)


def test_a_too_long_answer_is_refused() -> None:
    with pytest.raises(TransportError, match="the answer is over"):
        ask_app("/flood")


def test_other_addresses_are_reached_over_http(address: str) -> None:
    async def once() -> Answer:
        async with in_process(APP) as transport:
            return await transport.send(Request("GET", f"{address}/tool"), timeout_s=10)

    assert asyncio.run(once()).body == b"/tool"


def test_transport_imports_no_other_module_of_the_sandbox() -> None:
    heavy = "{'agent', 'session', 'scenario', 'simulator', 'emulator'}"
    code = (
        "import sys, millis_hooks.sandbox.transport\n"
        f"assert not {{f'millis_hooks.sandbox.{{name}}' for name in {heavy}}} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
