"""The network, for examples that ask services out there: what it was asked, and what it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest


class Outside:
    """Takes the place of every connection that is made by httpx2."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[httpx2.Request] = []
        #: Answered, or raised, in turn; after the last, everything is well.
        self.answers: list[httpx2.Response | Exception] = []
        transport = httpx2.MockTransport(self._answer)

        async def ask(_self: object, request: httpx2.Request) -> httpx2.Response:
            return await transport.handle_async_request(request)

        monkeypatch.setattr(httpx2.AsyncHTTPTransport, "handle_async_request", ask)
        monkeypatch.setattr(
            httpx2.HTTPTransport,
            "handle_request",
            lambda _self, request: transport.handle_request(request),
        )

    @property
    def told(self) -> list[Any]:
        """The bodies it got, as JSON."""
        return [json.loads(request.content) for request in self.asked if request.content]

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [request.url.path for request in self.asked]

    def _answer(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(request)
        answer = self.answers.pop(0) if self.answers else httpx2.Response(200, json={})
        if isinstance(answer, Exception):
            raise answer
        return answer
