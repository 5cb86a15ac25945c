"""One request to a public address: what goes wrong on the way has a name and plain words."""

from __future__ import annotations

import socket
import ssl
import string
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx2
import pytest

from millis_hooks.checks.reachability import TROUBLES, Exchange, Told, exchange, trouble_of

URL = "http://127.0.0.1/millis/prefetch"
FIELDS = {"host", "prefix", "header", "status"}


def ask(url: str = URL, **options: object) -> Exchange:
    with httpx2.Client(trust_env=False, **{"timeout": 5.0} | options) as client:  # type: ignore[arg-type]
        return exchange(client, client.build_request("GET", url))


def answered(status_code: int, body: bytes = b"") -> Exchange:
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
    assert (result.trouble, result.status_code) == (None, 200)
    assert result.latency_ms is not None


@pytest.mark.parametrize(
    ("status_code", "trouble"),
    [
        (204, "odd"),
        (302, "redirect"),
        (308, "redirect"),
        (401, "guarded"),
        (403, "forbidden"),
        (404, "not_found"),
        (405, "odd"),
        (429, "too_many"),
        (500, "odd"),
        (502, "gateway"),
        (503, "cannot_store"),
        (504, "gateway"),
    ],
)
def test_every_answer_but_200_has_a_reason(status_code: int, trouble: str) -> None:
    assert answered(status_code).trouble == trouble


def test_a_secret_that_was_lost_is_told_from_a_door_of_somebody_elses() -> None:
    assert answered(401, b'{"error":"unauthorized"}').trouble == "secret_lost"
    assert answered(401, b"<h1>401 Authorization Required</h1>").trouble == "guarded"


@pytest.mark.parametrize(
    ("error", "trouble"),
    [
        (caused_by(socket.gaierror(-2, "unknown"), httpx2.ConnectError("")), "no_name"),
        (caused_by(ssl.SSLCertVerificationError(), httpx2.ConnectError("")), "certificate"),
        (httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] expired"), "certificate"),
        (httpx2.ConnectTimeout(""), "no_connection"),
        (httpx2.ReadTimeout(""), "late"),
        (httpx2.ConnectError(""), "broken"),
    ],
)
def test_every_way_to_get_no_answer_has_a_name(error: httpx2.HTTPError, trouble: str) -> None:
    assert trouble_of(error) == trouble


def test_a_port_that_nobody_listens_on_refuses() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert ask(f"http://127.0.0.1:{port}/").trouble == "refused"


def test_what_does_not_speak_tls_is_told() -> None:
    with peer(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as host:
        assert ask(f"https://{host}/").trouble == "no_tls"


def test_what_does_not_speak_http_is_told() -> None:
    with peer(lambda connection: connection.sendall(b"220 mail.example ESMTP\r\n")) as host:
        assert ask(f"http://{host}/").trouble == "no_http"


def test_silence_is_waited_for_only_so_long() -> None:
    is_over = threading.Event()
    with peer(lambda _: wait_for(is_over)) as host:
        assert ask(f"http://{host}/", timeout=0.05).trouble == "late"
        is_over.set()


def test_an_answer_that_never_ends_is_not_read_to_its_end() -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"." * 10_000

    def answer(_: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, content=endless())

    assert ask(transport=httpx2.MockTransport(answer)).trouble is None


def test_an_answer_that_drips_is_late() -> None:
    with httpx2.Client(
        transport=httpx2.MockTransport(lambda _: httpx2.Response(200, content=iter([b"."])))
    ) as client:
        request = client.build_request("GET", URL)
        assert exchange(client, request, deadline_s=0).trouble == "late"


@pytest.mark.parametrize("told", TROUBLES.values(), ids=TROUBLES)
def test_every_trouble_is_told_in_sentences(told: Told) -> None:
    for text in (told.found, told.advice):
        assert text[0].isupper() or text.startswith("{host}")
        assert text[-1] in ".?"
        assert {name for _, name, _, _ in string.Formatter().parse(text) if name} <= FIELDS
