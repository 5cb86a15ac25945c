"""One connection: whenever a peer owes us something a deadline is running, and what can be read in
two ways as HTTP is refused."""

from __future__ import annotations

import asyncio
import enum
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote

import httptools
import uvicorn
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ..environment.addresses import is_loopback, network_of
from ..settings import PEER
from ..webhooks.responses import BROUGHT_SECRET
from .places import ConnectionPlaces, Place

#: How long a refused peer may continue to send, so that closing does not discard our answer.
LINGER_S = 1.0

#: Open files that connections leave to the call log and to handlers.
OWN_FILES = 200

#: So long an address can be taken apart by httptools.
MAX_URL_BYTES = 2**16 - 1

BODY_HEADERS = frozenset({b"content-length", b"transfer-encoding"})

access_log = logging.getLogger("millis_hooks.access")


@dataclass(frozen=True)
class Limits:
    """What one peer, and all of them together, may take."""

    header_timeout_s: float = 10  # from connecting, or from the first byte of a later request
    body_timeout_s: float = 30  # from the end of the headers
    write_timeout_s: float = 30  # for a peer that stopped reading our answer
    keep_alive_s: int = 75  # for idle peers that brought a secret, and for proxies
    strangers_idle_s: int = 5  # for all others
    max_header_bytes: int = 128 * 1024  # request line and headers; chunk framing and trailers too
    max_connections: int = 1000
    kept_for_webhooks: int = 20  # of these
    graceful_shutdown_s: float = 10
    drain_s: float = 0  # before that: requests are answered, connections closed


def no_webhook(path: str) -> bool:
    """Tell that a path is not a webhook's, for applications that have none."""
    return False


class ConnectionConfig(uvicorn.Config):
    """uvicorn's configuration, and what all connections share.

    Requests for a path that `is_webhook` may take the last places among the connections.
    """

    places: ConnectionPlaces

    def __init__(
        self,
        app: ASGIApp | str,
        *,
        limits: Limits,
        is_webhook: Callable[[str], bool] = no_webhook,
        **options: Any,
    ) -> None:
        self.limits = limits
        self.is_webhook = is_webhook
        super().__init__(app, **options)

    def load(self) -> None:
        super().load()
        proxies = ProxyHeadersMiddleware(self.loaded_app, self.forwarded_allow_ips)
        self._trusted = proxies.trusted_hosts
        kept = 0 if self.is_webhook is no_webhook else self.limits.kept_for_webhooks
        self.places = ConnectionPlaces(affordable(self.limits.max_connections), kept=kept)

    def trusts(self, host: str | None) -> bool:
        """Tell whether many peers may share this address: it is a trusted proxy's, or our own."""
        return host in self._trusted or is_loopback(host)


def affordable(connections: int) -> int:
    """Return how many connections there are files for, and as many again that wait to be taken."""
    try:
        import resource
    except ImportError:  # not made for Windows
        return connections
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return connections
    return min(connections, max((files - OWN_FILES) // 2, files // 4))


class Phase(enum.Enum):
    """Which part of a request the next byte belongs to."""

    IDLE = enum.auto()
    HEADER = enum.auto()
    BODY = enum.auto()


class Deadline:
    """A call that happens unless it is cleared in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self, delay_s: float, then: Callable[[], None]) -> None:
        self.clear()
        self._timer = self._loop.call_later(delay_s, then)

    def clear(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Protocol(HttpToolsProtocol):
    """One connection. Whenever a request is incomplete, a deadline is running."""

    config: ConnectionConfig

    def __init__(
        self,
        config: ConnectionConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.limits = config.limits
        self._phase = Phase.IDLE
        self._deaf = False  # refused, upgraded or gone: what still arrives is dropped
        self._framing_bytes = 0  # received since the last body byte or end of a request
        self._deadline = Deadline(self.loop)
        self._write_deadline = Deadline(self.loop)
        self._places = config.places
        self._place = Place(None, self._give_way)
        self._is_trusted = False  # this machine, or a proxy
        self._is_proxy = False  # trusted, and named its client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        host = self.client[0] if self.client is not None else None
        self._is_trusted = self.config.trusts(host)
        self._place.network = None if self._is_trusted or host is None else network_of(host)
        if self._places.take(self._place, len(self.connections)):
            self._set_deadline()
        else:
            self._deaf = True
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._deaf = True
        self._deadline.clear()
        self._write_deadline.clear()
        self._places.free(self._place)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._framing_bytes += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(memoryview(data))
        except httptools.HttpParserError:
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._framing_bytes > self.limits.max_header_bytes:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        elif not self._deadline.is_set:
            self._set_deadline()

    def _parse(self, data: memoryview) -> None:
        """Feed the parser, which stops behind the header of each request that offers an upgrade."""
        while not self._deaf:
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as stop:
                if self._is_handshake():
                    self.handle_websocket_upgrade()
                    return
                data = data[stop.args[0] :]
                self._decline_upgrade()
            else:
                return

    def _decline_upgrade(self) -> None:
        """Parse the header again without its offer, which anybody may leave aside (RFC 9110, 7.8).

        The parser skips the body of what offers an upgrade: the body would be the next request.
        """
        method, version = self.parser.get_method(), self.parser.get_http_version()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version.encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = _new_parser(self)
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _is_handshake(self) -> bool:
        """Tell whether the parsed header begins a websocket, as RFC 6455, 4.1 has it."""
        names = [name for name, _ in self.headers]
        return (
            self.parser.get_method() == b"GET"
            and self.parser.get_http_version() == "1.1"
            and [value.lower() for name, value in self.headers if name == b"upgrade"]
            == [b"websocket"]
            and b"sec-websocket-key" in names
            and BODY_HEADERS.isdisjoint(names)
        )

    def on_message_begin(self) -> None:
        self._phase = Phase.HEADER
        super().on_message_begin()
        bring_secret = partial(self._places.bring_secret, self._place)
        peer = self.client[0] if self.client else None
        self.scope["extensions"] = {BROUGHT_SECRET: bring_secret, PEER: peer}  # type: ignore[dict-item]

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and not self._is_handshake():
            if self.parser.get_method() == b"CONNECT":
                raise httptools.HttpParserError("CONNECT")
            return  # see `_decline_upgrade`
        refusal = self._objection()
        if refusal is not None:
            self._refuse(refusal)
            raise httptools.HttpParserError(refusal.phrase)  # stops the parser
        self._hand_on()
        self._deadline.clear()
        self._phase = Phase.BODY
        if self._is_trusted and not self._is_proxy:
            self._is_proxy = any(name == b"x-forwarded-for" for name, _ in self.headers)
        if not self.parser.should_upgrade():
            self._note_turn()
            self.headers = []  # the parser reports trailers as headers: keep them from the scope

    def _hand_on(self) -> None:
        """Have uvicorn begin the request, and take a long query apart in its place."""
        url, self.url = self.url, self.url[:MAX_URL_BYTES]
        super().on_headers_complete()
        if len(url) > MAX_URL_BYTES:
            self.scope["query_string"] = url.partition(b"?")[2]

    def on_body(self, body: bytes) -> None:
        self._framing_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # the message continues in another parser, or as a websocket
        self._deadline.clear()
        self._phase = Phase.IDLE
        self._framing_bytes = 0
        super().on_message_complete()
        self._note_turn()

    def on_response_complete(self) -> None:
        self.timeout_keep_alive = self._idle_time()
        super().on_response_complete()
        self._note_turn()
        if self.transport.is_closing():
            self._deadline.set(self.limits.write_timeout_s, self.transport.abort)

    def handle_websocket_upgrade(self) -> None:
        self._deaf = True
        self._deadline.clear()
        self._places.free(self._place)
        super().handle_websocket_upgrade()

    def timeout_keep_alive_handler(self) -> None:
        self.transport.abort()  # `close` would wait for a peer that reads nothing

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline.set(self.limits.write_timeout_s, self.transport.abort)

    def resume_writing(self) -> None:
        self._write_deadline.clear()
        super().resume_writing()

    def _objection(self) -> HTTPStatus | None:
        """Why these headers are not passed on, though the parser took them."""
        if self._framing_bytes > self.limits.max_header_bytes:  # perhaps: body bytes came along
            lengths = (len(name) + len(value) + 4 for name, value in self.headers)
            if len(self.url) + sum(lengths) > self.limits.max_header_bytes:
                return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        url = self.url[:MAX_URL_BYTES]
        if len(self.url) > MAX_URL_BYTES and b"?" not in url:
            return HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        path = unquote(httptools.parse_url(url).path.decode("ascii"))
        if self.parser.should_upgrade() or not self.config.is_webhook(path):
            is_begun = self._places.begin_other(self._place, len(self.connections))
            return None if is_begun else HTTPStatus.SERVICE_UNAVAILABLE
        return None

    def _should_upgrade(self) -> bool:
        return self._is_handshake()

    def _note_turn(self) -> None:
        """Tell whether it is the peer who has to act now."""
        is_answering = self._unanswered is not None
        if is_answering and (self._phase is not Phase.BODY or self.pipeline):
            self._places.work(self._place)
        else:
            self._places.wait(self._place)
        if not is_answering:
            self._places.end_other(self._place)

    def _idle_time(self) -> int:
        """How long the connection may be idle: a proxy chooses it for a webhook at any moment."""
        is_long = self._is_proxy or self._place.brought_secret
        limits = self.limits
        return limits.keep_alive_s if is_long else min(limits.keep_alive_s, limits.strangers_idle_s)

    @property
    def _unanswered(self) -> RequestResponseCycle | None:
        """The newest request whose answer is not complete."""
        cycle = cast("RequestResponseCycle | None", self.cycle)
        return None if cycle is None or cycle.response_complete else cycle

    def _refuse(self, status: HTTPStatus) -> None:
        """Answer `status` where no other answer would be mistaken for it, and close."""
        if self._deaf or self.transport.is_closing():
            return
        self._deaf = True
        self._deadline.clear()
        cycle = self._unanswered
        if cycle is not None and self._phase is not Phase.BODY:
            cycle.keep_alive = False  # an earlier request is being answered: close after that
            return
        if self._is_answerable:
            self._answer(status)
        if cycle is not None:
            cycle.disconnected = True
            cycle.message_event.set()
        self._hang_up()

    def _give_way(self) -> None:
        """Close at once, to make room for another connection; this one waits for its peer."""
        if not self._deaf and self._phase is not Phase.IDLE and self._is_answerable:
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE)
            self._deaf = True
        self.connections.discard(self)
        self.transport.abort()

    @property
    def _is_answerable(self) -> bool:
        """Whether our answer would be taken for that to the incomplete request."""
        cycle = self._unanswered
        if self._phase is Phase.BODY:
            return cycle is not None and not cycle.response_started and not self.pipeline
        return cycle is None

    def _answer(self, status: HTTPStatus) -> None:
        body = status.phrase.lower().encode()
        lines = [b"HTTP/1.1 %d %s" % (status, status.phrase.encode())]
        lines += [b"%s: %s" % header for header in self.server_state.default_headers]
        if status is HTTPStatus.SERVICE_UNAVAILABLE:
            lines.append(b"retry-after: 1")
        lines += [
            b"content-type: text/plain; charset=utf-8",
            b"content-length: %d" % len(body),
            b"connection: close",
        ]
        self.transport.write(b"\r\n".join([*lines, b"", body]))
        access_log.info("- - %d -", status)

    def _hang_up(self) -> None:
        """Close our side now, and the other when the peer has closed or lingered too long."""
        self.flow.resume_reading()
        self.transport.write_eof()
        self._deadline.set(LINGER_S, self.transport.abort)

    def _set_deadline(self) -> None:
        """Start the clock if the peer is the one who has to act."""
        if self._deaf or self.transport.is_closing():
            return
        if self._phase is Phase.BODY:
            self._deadline.set(self.limits.body_timeout_s, self._give_up)
        elif self._phase is Phase.HEADER or (
            self._unanswered is None and self.timeout_keep_alive_task is None
        ):
            self._deadline.set(self.limits.header_timeout_s, self._give_up)

    def _give_up(self) -> None:
        if self._phase is Phase.IDLE:
            self.transport.abort()  # nothing was asked, so nothing is answered
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)


def _new_parser(protocol: Protocol) -> httptools.HttpRequestParser:
    """Return a parser as uvicorn makes it for each connection."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser
