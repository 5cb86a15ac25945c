"""The server, over real sockets: what peers may do to it, and how it ends.

Every read blocks until the server acts, so no test sleeps; limits are tiny instead.
"""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from millis_hooks.exceptions import StorageError
from millis_hooks.server import Config, Limits, Server, run_child
from millis_hooks.server.connection import affordable
from millis_hooks.webhooks.responses import report_secret
from support.programs import Program, run
from support.sites import free_port
from support.waiting import SOON_S

GET = b"GET /seen HTTP/1.1\r\nHost: test\r\n\r\n"
HEAD_OF_POST = b"POST /echo HTTP/1.1\r\nHost: test\r\n"

Connect = Callable[[], socket.socket]
Serve = Callable[[Limits], AbstractContextManager[Connect]]


async def echo(request: Request) -> Response:
    try:
        return Response(await request.body())
    except ClientDisconnect:
        return Response()


async def seen(request: Request) -> Response:
    return PlainTextResponse(" ".join(request.headers))


async def query(request: Request) -> Response:
    return PlainTextResponse(f"{len(request.scope['query_string'])} queried")


async def early(request: Request) -> Response:
    return PlainTextResponse("not read", status_code=413)


async def large(request: Request) -> Response:
    return Response(bytes(32 * 1024 * 1024))


async def known(request: Request) -> Response:
    report_secret(request.scope)
    return Response(await request.body() or b"known!")


async def slow(request: Request) -> Response:
    await request.receive()
    await request.receive()  # until the peer is gone
    return Response()


async def ring(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()


APP = Starlette(
    routes=[
        Route("/echo", echo, methods=["POST"]),
        Route("/seen", seen),
        Route("/seen/{rest:path}", seen),
        Route("/query", query),
        Route("/early", early, methods=["POST"]),
        Route("/large", large),
        Route("/known", known, methods=["GET", "POST"]),
        Route("/slow", slow),
        WebSocketRoute("/ring", ring),
    ]
)


@contextmanager
def serving(limits: Limits, **options: Any) -> Iterator[Connect]:
    """Serve APP from a thread; a peer that waits over 10 s has found a bug."""
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    ready = threading.Event()
    server = Server(Config(APP, limits=limits, log_config=None, **options), announce=ready.set)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    assert ready.wait(10)
    peers: list[socket.socket] = []

    def connect() -> socket.socket:
        peers.append(socket.create_connection(address, timeout=10))
        return peers[-1]

    try:
        yield connect
    finally:
        for peer in peers:
            peer.close()
        server.should_exit = True
        thread.join()
        listener.close()


@pytest.fixture(scope="module")
def connect() -> Iterator[Connect]:
    """A server with the limits of production."""
    with serving(Limits()) as connect:
        yield connect


def read_all(peer: socket.socket) -> bytes:
    """Read until the server closes, politely or not."""
    received = b""
    with suppress(ConnectionResetError):
        while piece := peer.recv(65536):
            received += piece
    return received


def read_until(peer: socket.socket, end: bytes) -> bytes:
    received = b""
    while not received.endswith(end):
        piece = peer.recv(65536)
        assert piece, received
        received += piece
    return received


def answer_to(connect: Connect, request: bytes) -> bytes:
    """What comes back before the server closes, or before our side of the connection is done."""
    peer = connect()
    peer.sendall(request)
    return read_all(peer)


def test_a_header_that_never_ends_is_answered_408_and_closed() -> None:
    with serving(Limits(header_timeout_s=0.1)) as connect:
        assert answer_to(connect, b"GET /seen HTTP/1.1\r\nHos").startswith(b"HTTP/1.1 408 ")


def test_a_header_that_trickles_in_is_answered_408() -> None:
    with serving(Limits(header_timeout_s=0.1)) as connect:
        peer = connect()
        peer.sendall(b"GET /")
        peer.settimeout(0.02)
        received = b""
        while not received:
            peer.sendall(b"X")
            try:
                received = peer.recv(65536)
            except TimeoutError:
                continue
        assert received.startswith(b"HTTP/1.1 408 ")


def test_a_connection_that_says_nothing_is_closed_without_an_answer() -> None:
    with serving(Limits(header_timeout_s=0.1)) as connect:
        assert read_all(connect()) == b""


def test_blank_lines_do_not_keep_a_connection_open() -> None:
    with serving(Limits(header_timeout_s=SOON_S)) as connect:
        peer = connect()
        peer.sendall(GET)
        read_until(peer, b"host")
        peer.sendall(b"\r\n")
        assert read_all(peer) == b""


def test_a_body_that_never_ends_is_answered_408_and_closed() -> None:
    with serving(Limits(body_timeout_s=0.1)) as connect:
        request = HEAD_OF_POST + b"Content-Length: 100\r\n\r\nabc"
        assert answer_to(connect, request).startswith(b"HTTP/1.1 408 ")


def test_a_body_answered_before_its_end_still_has_to_end() -> None:
    with serving(Limits(body_timeout_s=SOON_S)) as connect:
        request = b"POST /early HTTP/1.1\r\nHost: t\r\nContent-Length: 100\r\n\r\nabc"
        answer = answer_to(connect, request)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b" 408 " not in answer


def test_the_next_request_gets_a_deadline_of_its_own() -> None:
    with serving(Limits(header_timeout_s=SOON_S)) as connect:
        peer = connect()
        peer.sendall(GET)
        read_until(peer, b"host")
        peer.sendall(b"GET /se")
        assert read_all(peer).startswith(b"HTTP/1.1 408 ")


def test_a_peer_that_stops_reading_loses_its_place() -> None:
    with serving(Limits(write_timeout_s=0.1, max_connections=1)) as connect:
        peer = connect()
        peer.sendall(GET.replace(b"/seen", b"/large"))
        peer.recv(1)
        while b" 503 " in (answer := answer_to(connect, b"GET /seen HTTP/1.0\r\n\r\n")):
            pass
        assert answer.startswith(b"HTTP/1.1 200 ")


def test_an_idle_connection_is_closed_when_its_keep_alive_ends() -> None:
    with serving(Limits(keep_alive_s=0)) as connect:
        assert answer_to(connect, GET).endswith(b"host")


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(b"GET /seen HTTP/1.1\r\nX: " + b"x" * 140_000 + b"\r\n\r\n", id="one value"),
        pytest.param(b"GET /seen HTTP/1.1\r\nX: " + b"x" * 140_000, id="a value without end"),
        pytest.param(b"GET /seen HTTP/1.1\r\n" + b"X: y\r\n" * 30_000 + b"\r\n", id="many"),
        pytest.param(b"GET /" + b"x" * 140_000 + b" HTTP/1.1\r\n\r\n", id="request line"),
        pytest.param(
            HEAD_OF_POST + b"X: " + b"x" * 140_000 + b"\r\nContent-Length: 3\r\n\r\nabc", id="body"
        ),
        pytest.param(
            HEAD_OF_POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: " + b"x" * 300_000,
            id="trailer",
        ),
        pytest.param(b"\r\n" * 70_000, id="blank lines"),
    ],
)
def test_headers_over_the_limit_are_answered_431(connect: Connect, request_bytes: bytes) -> None:
    assert answer_to(connect, request_bytes).startswith(b"HTTP/1.1 431 ")


@pytest.mark.parametrize("length", [40_000, 65_500, 65_536, 100_000])
def test_a_long_query_reaches_the_application_whole(connect: Connect, length: int) -> None:
    peer = connect()
    peer.sendall(b"GET /query?" + b"q" * length + b" HTTP/1.1\r\nHost: a\r\n\r\n")
    assert read_until(peer, b"queried").endswith(b"\r\n\r\n%d queried" % length)


def test_a_long_path_is_answered_431(connect: Connect) -> None:
    request = b"GET /" + b"p" * 70_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n"
    assert answer_to(connect, request).startswith(b"HTTP/1.1 431 ")


def test_a_large_body_does_not_count_as_headers(connect: Connect) -> None:
    peer = connect()
    peer.sendall(HEAD_OF_POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 99_999 + b"!")
    assert read_until(peer, b"x!").startswith(b"HTTP/1.1 200 ")


def test_a_megabyte_of_headers_is_still_told_why(connect: Connect) -> None:
    peer = connect()
    peer.sendall(b"GET /seen HTTP/1.1\r\nX: ")
    sent = 0
    while sent < 1_000_000:
        sent += peer.send(b"x" * 10_000)
    assert read_all(peer).startswith(b"HTTP/1.1 431 ")


CHUNKED = b"Transfer-Encoding: chunked\r\n"
OFFER = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        pytest.param(
            HEAD_OF_POST + b"Content-Length: 5\r\n" + CHUNKED + b"\r\n0\r\n\r\n", id="CL.TE"
        ),
        pytest.param(HEAD_OF_POST + CHUNKED + b"Content-Length: 5\r\n\r\n0\r\n\r\n", id="TE.CL"),
        pytest.param(
            HEAD_OF_POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", id="two CL"
        ),
        pytest.param(HEAD_OF_POST + b"Transfer-Encoding: chunked, x\r\n\r\n0\r\n\r\n", id="odd TE"),
        pytest.param(HEAD_OF_POST + b"Content-Length: +3\r\n\r\nabc", id="signed CL"),
        pytest.param(HEAD_OF_POST + b"Content-Length : 3\r\n\r\nabc", id="space before colon"),
        pytest.param(HEAD_OF_POST + CHUNKED + b"\r\nzz\r\n", id="chunk size"),
        pytest.param(b"GET /seen HTTP/1.1\nHost: test\n\n", id="bare line feeds"),
        pytest.param(b"GET /seen HTTP/1.1\r\nA: b\r\n c\r\n\r\n", id="folded header"),
        pytest.param(b"GET /s\xc3\xa9 HTTP/1.1\r\n\r\n", id="bytes in the path"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\n\r\n", id="CONNECT"),
        pytest.param(b"GET /seen HTTP/9.9\r\n\r\n", id="version"),
        pytest.param(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", id="TLS"),
        pytest.param(bytes(range(256)) * 8, id="garbage"),
        pytest.param(
            HEAD_OF_POST + OFFER + b"Content-Length: 3\r\n" + CHUNKED + b"\r\n", id="offer"
        ),
        pytest.param(HEAD_OF_POST + OFFER + b"Transfer-Encoding: x\r\n\r\n", id="offer, odd TE"),
        pytest.param(
            HEAD_OF_POST + OFFER + b"Content-Length: 3, 3\r\n\r\nabc", id="offer, CL list"
        ),
        pytest.param(HEAD_OF_POST + OFFER + b"A: b\r\n c\r\n\r\n", id="offer, folded header"),
        pytest.param(HEAD_OF_POST + OFFER + CHUNKED + b"\r\nzz\r\n", id="offer, chunk size"),
        pytest.param(b"CONNECT a:1 HTTP/1.1\r\n" + OFFER + b"\r\n", id="offer, CONNECT"),
    ],
)
def test_broken_or_ambiguous_http_is_answered_400(connect: Connect, request_bytes: bytes) -> None:
    answer = answer_to(connect, request_bytes)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1 ") == 1


def test_garbage_after_a_request_does_not_take_the_place_of_its_answer(connect: Connect) -> None:
    assert answer_to(connect, GET + b"\x00garbage").startswith(b"HTTP/1.1 200 ")


def test_trailers_do_not_become_headers(connect: Connect) -> None:
    head = b"GET /seen HTTP/1.1\r\nConnection: close\r\n" + CHUNKED
    answer = answer_to(connect, head + b"\r\n0\r\nAuthorization: Bearer x\r\n\r\n")
    assert answer.endswith(b"connection transfer-encoding")


def test_pipelined_requests_are_answered_in_order(connect: Connect) -> None:
    peer = connect()
    posts = (HEAD_OF_POST + b"Content-Length: 2\r\n\r\n" + body for body in (b"1;", b"2;", b"3;"))
    peer.sendall(b"".join(posts))
    bodies = [answer[:2] for answer in read_until(peer, b"3;").split(b"\r\n\r\n")[1:]]
    assert bodies == [b"1;", b"2;", b"3;"]


def test_a_connection_serves_one_request_after_another(connect: Connect) -> None:
    peer = connect()
    for _ in range(3):
        peer.sendall(GET)
        assert read_until(peer, b"host").startswith(b"HTTP/1.1 200 ")


def test_http_1_0_is_answered_and_closed(connect: Connect) -> None:
    assert answer_to(connect, b"GET /seen HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_an_offer_to_upgrade_is_left_aside(connect: Connect) -> None:
    peer = connect()
    peer.sendall(b"GET /seen HTTP/1.1\r\nA: b\r\n" + OFFER + b"\r\n")
    answer = read_until(peer, b"a connection")
    assert answer.startswith(b"HTTP/1.1 200 ")


OFFERS = [
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    b"Upgrade: TLS/1.2\r\nConnection: keep-alive, upgrade\r\n",
    b"Connection: keep-alive\r\nConnection: UPGRADE\r\nUpgrade: h2c, IRC/6.9\r\nUpgrade: x\r\n",
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAA\r\n",
    b"Connection: Upgrade\r\nExpect: 100-continue\r\nUpgrade: h2\r\n",
    b"Connection: Upgrade\r\nUpgrade:\r\n",
]
BODIES = [
    b"Content-Length: 5\r\n\r\nHELLO",
    CHUNKED + b"\r\n2\r\nHE\r\n3;x=y\r\nLLO\r\n0\r\nTrailer: z\r\n\r\n",
]


@pytest.mark.parametrize("body", BODIES, ids=["length", "chunks"])
@pytest.mark.parametrize("offer", OFFERS)
def test_the_body_behind_an_offer_arrives(connect: Connect, offer: bytes, body: bytes) -> None:
    """However it is cut, and so do the requests before and behind it."""
    post = HEAD_OF_POST + offer + body
    for size in (1, 7, len(post), 3 * len(post)):
        peer = connect()
        stream = GET + post + post + GET
        for start in range(0, len(stream), size):
            peer.sendall(stream[start : start + size])
        answers = b""
        while answers.count(b"HTTP/1.1 200 OK") < 4 or not answers.endswith(b"host"):
            piece = peer.recv(65536)
            assert piece, answers
            answers += piece
        assert answers.count(b"HELLO") == 2
        assert answers.count(b"HTTP/1.1 ") - answers.count(b"HTTP/1.1 100 ") == 4


def test_a_header_too_large_is_reported_behind_an_offer_too(connect: Connect) -> None:
    head = HEAD_OF_POST + OFFER + b"X: " + b"x" * 140_000
    for end in (b"", b"\r\nContent-Length: 1\r\n\r\na"):
        assert answer_to(connect, head + end).startswith(b"HTTP/1.1 431 ")


def test_an_offer_with_half_a_body_is_answered_408() -> None:
    with serving(Limits(body_timeout_s=0.1)) as connect:
        answer = answer_to(connect, HEAD_OF_POST + OFFER + b"Content-Length: 9\r\n\r\nhalf")
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_websocket_outlives_the_deadline_of_its_handshake() -> None:
    with serving(Limits(header_timeout_s=SOON_S)) as connect:
        peer, witness = connect(), connect()
        handshake = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        peer.sendall(b"GET /ring HTTP/1.1\r\nHost: t\r\n" + upgrade + handshake + b"\r\n")
        assert read_until(peer, b"\r\n\r\n").startswith(b"HTTP/1.1 101 ")
        assert read_all(witness) == b""  # silent for longer than a handshake may take
        peer.sendall(b"\x81\x82\0\0\0\0hi")  # a text frame under an empty mask
        assert peer.recv(4) == b"\x81\x02hi"


def test_answers_do_not_name_the_server(connect: Connect) -> None:
    peer = connect()
    peer.sendall(GET)
    headers = read_until(peer, b"host").lower()
    assert b"\r\ndate: " in headers
    assert b"\r\nserver:" not in headers


KNOWN = b"GET /known HTTP/1.1\r\n\r\n"
SLOW = b"GET /slow HTTP/1.1\r\n\r\n"
LAST = b"GET /seen HTTP/1.1\r\nConnection: close\r\n\r\n"


def sent(connect: Connect, request: bytes, end: bytes = b"") -> socket.socket:
    """A connection on which `request` was sent, and answered up to `end`."""
    peer = connect()
    peer.sendall(request)
    read_until(peer, end)
    return peer


WAITS = {
    "says nothing": (b"", b""),
    "half a header": (b"GET /se", b""),
    "idle": (GET, b"host"),
    "half a body": (HEAD_OF_POST + b"Content-Length: 9\r\n\r\nhalf", b""),
    "half a body behind an offer": (HEAD_OF_POST + OFFER + b"Content-Length: 9\r\n\r\nhalf", b""),
    "half a body of chunks": (HEAD_OF_POST + CHUNKED + b"\r\n9\r\nhalf", b""),
    "refused": (b"GET /\0", b"bad request"),
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_new_connection_takes_the_place_of_the_longest_idle(wait: str) -> None:
    patient = Limits(300, 300, strangers_idle_s=300, max_connections=3)
    with serving(patient) as connect:
        peers = [sent(connect, *WAITS[wait]) for _ in range(3)]
        for peer in peers:
            assert answer_to(connect, LAST).startswith(b"HTTP/1.1 200 ")
            read_all(peer)
            connect()


def test_half_a_request_that_gives_way_is_told_to_come_back() -> None:
    with serving(Limits(max_connections=1)) as connect:
        for request, _ in (WAITS["half a header"], WAITS["half a body"]):
            peer = sent(connect, request)
            answer_to(connect, LAST)
            assert b"\r\nretry-after: 1\r\n" in read_all(peer)


def test_authenticated_connections_give_way_last() -> None:
    with serving(Limits(max_connections=3)) as connect:
        known, known_body = sent(connect, KNOWN, b"known!"), connect()
        known_body.sendall(b"POST /known HTTP/1.1\r\nContent-Length: 4\r\n\r\nha")
        for _ in range(5):
            sent(connect, GET, b"host")
        known.sendall(KNOWN)
        assert read_until(known, b"known!")
        known_body.sendall(b"lf")
        assert read_until(known_body, b"half")


def test_only_when_all_are_being_answered_one_more_is_told_to_come_back() -> None:
    with serving(Limits(max_connections=2)) as connect:
        for _ in range(2):
            sent(connect, SLOW)
        while b" 503 " not in (answer := answer_to(connect, LAST)):
            pass  # a request may still be on its way
        assert b"\r\nretry-after: 1\r\n" in answer


def test_a_peer_that_goes_amid_its_body_leaves_no_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(Limits(max_connections=1)) as connect:
        sent(connect, b"POST /known HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf").close()
        answer_to(connect, LAST)
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize(
    "other",
    [
        SLOW,
        b"GET /ring HTTP/1.1\r\nHost: t\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    ],
    ids=["pages", "websockets"],
)
def test_the_last_places_are_kept_for_webhooks(other: bytes) -> None:
    with serving(
        Limits(max_connections=20, kept_for_webhooks=2), is_webhook="/known".__eq__
    ) as connect:
        for _ in range(19):
            sent(connect, other)
        while b" 503 " not in answer_to(connect, LAST):
            pass  # a request may still be on its way
        assert read_until(sent(connect, KNOWN), b"known!")


def test_one_network_gets_a_tenth_unless_it_brings_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Config, "trusts", lambda *_: False)
    with serving(Limits(max_connections=30)) as connect:
        known = [sent(connect, KNOWN, b"known!") for _ in range(4)]
        peers = [sent(connect, GET, b"host") for _ in range(4)]
        assert read_all(peers[0]) == b""
        for peer, request, end in [(known[0], KNOWN, b"known!"), (peers[1], GET, b"host")]:
            peer.sendall(request)
            assert read_until(peer, end)


def test_one_network_with_all_its_places_at_work_is_told_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Config, "trusts", lambda *_: False)
    with serving(Limits(max_connections=10)) as connect:
        sent(connect, SLOW)
        while b" 503 " not in answer_to(connect, LAST):
            pass  # the request may still be on its way


def test_only_authenticated_peers_and_proxies_may_idle_for_long() -> None:
    with serving(Limits(strangers_idle_s=0)) as connect:
        assert answer_to(connect, GET).startswith(b"HTTP/1.1 200 ")
        proxied = GET[:-2] + b"X-Forwarded-For: 203.0.113.7\r\n\r\n"
        for request, end in [(KNOWN, b"known!"), (proxied, b"x-forwarded-for")]:
            peer, stranger = sent(connect, request, end), connect()
            stranger.sendall(GET)
            read_all(stranger)
            peer.sendall(GET)
            assert read_until(peer, b"host")


def test_no_more_connections_than_there_are_files_for(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for files, most in [(64, 16), (1024, 412), (4096, 1000), (resource.RLIM_INFINITY, 1000)]:
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert affordable(1000) == most


def test_the_access_line_has_no_query_and_no_control_characters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "millis_hooks.access")
    with serving(Limits()) as connect:
        request = b"GET /seen/%0aGET%1b[31m?from=%2B15550100 HTTP/1.1\r\nConnection: close\r\n\r\n"
        answer_to(connect, request)
    (line,) = caplog.messages
    assert line.startswith("GET /seen/%0AGET%1B%5B31m 404 ")
    assert "15550100" not in caplog.text


def test_a_refusal_leaves_an_access_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millis_hooks.access")
    with serving(Limits()) as connect:
        answer_to(connect, b"\x00\r\n\r\n")
    assert "- - 400 -" in caplog.messages


PROGRAM = """
import sys
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from millis_hooks.server import Limits, serve

async def stubborn(request):
    try:
        await request.body()
        return PlainTextResponse("complete")
    finally:
        print("request over", flush=True)

@asynccontextmanager
async def lifespan(app):
    yield
    print("lifespan over", flush=True)

app = Starlette(routes=[Route("/", stubborn, methods=["POST"])], lifespan=lifespan)
limits = Limits(graceful_shutdown_s=float(sys.argv[2]))
announce = lambda: print("ready", flush=True)
serve(app, host="127.0.0.1", port=int(sys.argv[1]), limits=limits, announce=announce)
print("returned", flush=True)
"""


@contextmanager
def program(graceful_shutdown_s: float) -> Iterator[tuple[Program, Connect]]:
    port = free_port()
    command = ["-c", PROGRAM, str(port), str(graceful_shutdown_s)]
    with Program(command, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process, lambda: socket.create_connection(("127.0.0.1", port), timeout=10)
        process.kill()


def test_sigterm_ends_the_server_though_requests_are_half_sent() -> None:
    with program(graceful_shutdown_s=0.2) as (process, connect):
        header, body = connect(), connect()
        header.sendall(b"POST / HT")
        body.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\nabc")
        read_until(body, b"100 Continue\r\n\r\n")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=10)
        header.close()
        body.close()
    assert output.splitlines() == ["request over", "lifespan over", "returned"]
    assert process.returncode == 0


def test_sigterm_lets_a_request_under_way_finish() -> None:
    with program(graceful_shutdown_s=10) as (process, connect):
        with connect() as idle, connect() as peer:
            peer.sendall(b"POST / HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\nabc")
            read_until(peer, b"100 Continue\r\n\r\n")
            process.send_signal(signal.SIGTERM)
            assert read_all(idle) == b""
            peer.sendall(b"defghi")
            assert read_all(peer).endswith(b"complete")
        output, _ = process.communicate(timeout=10)
    assert output.splitlines() == ["request over", "lifespan over", "returned"]


def test_a_port_that_is_taken_ends_the_server_with_status_3() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = run(["-c", PROGRAM, str(taken.getsockname()[1]), "1"])
    assert done.returncode == 3
    assert "ready" not in done.stdout


async def without_disk(_scope: Scope, _receive: Receive, send: Send) -> None:
    try:
        raise StorageError("no disk")
    except StorageError as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})


def test_an_error_of_ours_at_the_start_is_raised_and_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server(Config(without_disk, limits=Limits(), log_config=None))
    with pytest.raises(StorageError, match="no disk"):
        server.run([])
    assert caplog.records == []


def test_a_child_tells_why_the_application_did_not_start_and_serves_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[object] = []

    def run(server: Server, sockets: object = None) -> None:
        served.append(server.config.app)
        if len(served) == 1:
            raise StorageError("no disk")

    monkeypatch.setattr(Server, "run", run)
    reported: list[str] = []
    server = Server(Config(without_disk, limits=Limits(), log_config=None))
    run_child(server, None, lambda error: reported.append(str(error)), [])
    assert reported == ["no disk"]
    answer = TestClient(served[1]).get("/millis/prefetch")  # type: ignore[arg-type]
    assert (answer.status_code, "no disk" in answer.text) == (503, True)


RELOADING = """
import sys
from millis_hooks.server import serve

if __name__ == "__main__":
    announce = lambda: print("ready", flush=True)
    port = int(sys.argv[1])
    serve("app:app", host="127.0.0.1", port=port, reload=True, announce=announce)
"""

RELOADED = """
from starlette.responses import PlainTextResponse

app = PlainTextResponse("{}")
"""


def answer_of_child(port: int) -> bytes:
    """One request; empty if the child that took it was replaced meanwhile."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=20) as peer:
            peer.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return read_all(peer)
    except ConnectionError:
        return b""


def test_reload_serves_the_changed_file_and_says_why_one_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(RELOADING)
    (tmp_path / "app.py").write_text(RELOADED.format("before"))
    port = free_port()
    command = [sys.executable, "main.py", str(port)]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        while not (answer := answer_of_child(port)):
            assert parent.poll() is None
        assert answer.endswith(b"before")
        for saved, expected in ((")", b"SyntaxError"), (RELOADED.format("after"), b"after")):
            while expected not in answer:
                # Again and again: the parent may not be watching yet.
                (tmp_path / "app.py").write_text(saved)
                answer = answer_of_child(port)
                assert parent.poll() is None
        parent.terminate()
    assert parent.returncode == 0
