"""Answers what handlers of a sandbox call ask of Millis' API, from the sandbox's own API."""

from __future__ import annotations

import asyncio
import json
from contextvars import Context
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ..exceptions import MillisUnreachableError
from ..handlers.made_up_calls import MillisRequest

if TYPE_CHECKING:
    from pydantic import SecretStr
    from starlette.types import ASGIApp

_API = "/sandbox/api"
_STOPPED = "The service has stopped, and its sandbox with it."


class SandboxAnswers:
    """Sends requests to the sandbox of the application, on the loop that serves it."""

    def __init__(
        self, app: ASGIApp, key: SecretStr | None, loop: asyncio.AbstractEventLoop
    ) -> None:
        """`key` is the sandbox's key, if one is set."""
        self._app = app
        self._key = "any-key" if key is None else key.get_secret_value()
        self._loop = loop

    async def __call__(self, request: MillisRequest) -> tuple[int, bytes]:
        """Return the status and the body of the sandbox's answer."""
        sending = self._send(request)
        try:
            # An empty context: a call that starts here does not belong to the handler's call.
            answer = Context().run(asyncio.run_coroutine_threadsafe, sending, self._loop)
        except RuntimeError:
            sending.close()
            raise MillisUnreachableError(_STOPPED) from None
        return await asyncio.wrap_future(answer)

    async def _send(self, request: MillisRequest) -> tuple[int, bytes]:
        import httpx2

        transport = httpx2.ASGITransport(app=self._app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, timeout=None) as client:
            answer = await client.request(
                request.method,
                f"http://127.0.0.1{_api_path(request.base_url)}/{request.path}",
                params=dict(request.query),
                headers={"authorization": self._key, "content-type": "application/json"},
                content=None if request.body is None else json.dumps(request.body),
            )
        return answer.status_code, answer.content


def _api_path(base_url: str) -> str:
    """Return the path of the sandbox's API, with the scenario or policy that `base_url` names."""
    _, is_sandbox, rest = urlsplit(base_url).path.partition(_API)
    return f"{_API}{rest}" if is_sandbox else _API
