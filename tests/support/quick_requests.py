"""Requests of Starlette's test client in one visit to the event loop, where its own make twenty.

Its own read a response while it is written, for which no test asks: here it is whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from urllib.parse import unquote

import anyio
import anyio.from_thread
import httpx2 as httpx
import pytest
from anyio.from_thread import BlockingPortal
from starlette import testclient

_own = testclient._TestClientTransport.handle_request


@contextmanager
def quick_requests() -> Iterator[None]:
    """Make requests so; clients that start no application share an event loop."""
    with anyio.from_thread.start_blocking_portal() as shared, pytest.MonkeyPatch.context() as patch:

        def portal_of(client: testclient.TestClient) -> AbstractContextManager[BlockingPortal]:
            return nullcontext(client.portal or shared)

        patch.setattr(testclient.TestClient, "_portal_factory", portal_of)
        patch.setattr(testclient._TestClientTransport, "handle_request", _handle)
        yield


def _handle(transport: Any, request: httpx.Request) -> httpx.Response:
    if request.url.scheme in {"ws", "wss"}:
        return _own(transport, request)
    body = request.read()
    with transport.portal_factory() as portal:
        answer = portal.call(_answer, transport, _scope(transport, request), body)
    if "status_code" not in answer:
        assert not transport.raise_server_exceptions, "there was no response"
        return httpx.Response(500, request=request)
    content = b"" if request.method == "HEAD" else b"".join(answer.pop("content"))
    stream = httpx.ByteStream(content)
    return httpx.Response(answer["status_code"], headers=answer["headers"], stream=stream)


async def _answer(transport: Any, scope: dict[str, Any], body: bytes) -> dict[str, Any]:
    """Call the application, and return what it sent."""
    answer: dict[str, Any] = {"content": []}
    unread = [{"type": "http.request", "body": body}]
    is_complete = anyio.Event()

    async def receive() -> Any:
        if unread:
            return unread.pop()
        await is_complete.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            assert "status_code" not in answer
            headers = [(key.decode(), value.decode()) for key, value in message.get("headers", ())]
            answer.update(status_code=message["status"], headers=headers)
        elif message["type"] == "http.response.body":
            assert not is_complete.is_set()
            answer["content"].append(bytes(message.get("body", b"")))
            if not message.get("more_body"):
                is_complete.set()

    try:
        await transport.app(scope, receive, send)
    except Exception:
        if transport.raise_server_exceptions:
            raise
    return answer


def _scope(transport: Any, request: httpx.Request) -> dict[str, Any]:
    url = request.url
    return {
        "type": "http",
        "http_version": "1.1",
        "method": request.method,
        "path": unquote(url.path),
        "raw_path": url.raw_path.split(b"?", 1)[0],
        "root_path": transport.root_path,
        "scheme": url.scheme,
        "query_string": url.query,
        "headers": [
            (key.lower().encode(), value.encode()) for key, value in request.headers.multi_items()
        ],
        "client": transport.client,
        "server": [url.host, url.port or {"http": 80, "https": 443}[url.scheme]],
        "state": transport.app_state.copy(),
    }
