"""One request to a public address, and the problems that it can have."""

from __future__ import annotations

import socket
import ssl
import string
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest

from millis_hooks.checks.reachability import PROBLEMS, Problem, SendResult, problem_of, send

URL = "http://127.0.0.1/millis/prefetch"
FIELDS = {"host", "prefix", "header", "status"}


def ask(url: str = URL, **options: object) -> SendResult:
    with httpx2.Client(trust_env=False, **{"timeout": 5.0} | options) as client:  # type: ignore[arg-type]
        return send(client, client.build_request("GET", url))


def answered(status_code: int, body: bytes = b"") -> SendResult:
    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status_code, content=body)

    return ask(transport=httpx2.MockTransport(answer))


def caused_by(cause: Exception, error: httpx2.HTTPError) -> httpx2.HTTPError:
    error.__cause__ = cause
    return error


@contextmanager
def peer(behave: Callable[[socket.socket], None]) -> Iterator[str]:
    """Something that listens, and does this with the first connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(4096)
                behave(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        thread.join(10)


def wait_for(event: threading.Event) -> None:
    assert event.wait(10)


def test_an_answer_is_timed() -> None:
    result = answered(200, b"{}")
    assert (result.problem, result.status_code) == (None, 200)
    assert result.latency_ms is not None


@pytest.mark.parametrize(
    ("status_code", "problem"),
    [
        (204, "unexpected"),
        (302, "redirect"),
        (308, "redirect"),
        (401, "unauthorized"),
        (403, "blocked"),
        (404, "not_found"),
        (405, "unexpected"),
        (429, "blocked"),
        (500, "unexpected"),
        (502, "gateway"),
        (503, "unavailable"),
        (504, "gateway"),
    ],
)
def test_every_answer_but_200_has_a_reason(status_code: int, problem: str) -> None:
    assert answered(status_code).problem == problem


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (caused_by(socket.gaierror(-2, "unknown"), httpx2.ConnectError("")), "unknown_host"),
        (caused_by(ssl.SSLCertVerificationError(), httpx2.ConnectError("")), "certificate"),
        (httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] expired"), "certificate"),
        (httpx2.ConnectTimeout(""), "no_connection"),
        (httpx2.ReadTimeout(""), "no_answer"),
        (httpx2.ConnectError(""), "no_connection"),
    ],
)
def test_every_error_without_an_answer_has_a_problem(error: httpx2.HTTPError, problem: str) -> None:
    assert problem_of(error) == problem


def test_a_closed_port_is_no_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}/").problem == "no_connection"


def test_an_answer_that_is_not_tls_is_reported() -> None:
    with peer(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as host:
        assert ask(f"https://{host}/").problem == "no_answer"


def test_an_answer_that_is_not_http_is_reported() -> None:
    with peer(lambda connection: connection.sendall(b"220 mail.example ESMTP\r\n")) as host:
        assert ask(f"http://{host}/").problem == "no_answer"


def test_the_wait_for_an_answer_is_bounded() -> None:
    is_over = threading.Event()
    with peer(lambda _: wait_for(is_over)) as host:
        assert ask(f"http://{host}/", timeout=0.05).problem == "no_answer"
        is_over.set()


def test_the_body_of_an_answer_is_not_read() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"." * 10_000

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=endless())

    assert ask(transport=httpx2.MockTransport(answer)).problem is None


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_every_problem_is_described_in_sentences(problem: Problem) -> None:
    for text in problem:
        assert text[0].isupper() or text.startswith("{host}")
        assert text[-1] in ".?"
        assert {name for _, name, _, _ in string.Formatter().parse(text) if name} <= FIELDS
