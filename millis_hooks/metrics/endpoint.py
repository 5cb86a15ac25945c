"""`GET /metrics`: who may read it, and in which of Prometheus' two formats."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from hmac import compare_digest
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send

from ..exceptions import StorageError
from ..settings import Settings
from .sources import Sources

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

_WHO_MAY = (
    "Who may read the metrics: whoever brings the token of MILLIS_HOOKS_METRICS_TOKEN as "
    "`Authorization: Bearer <token>`, and operators who are signed in."
)
_KEPT_BY_NOBODY = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}


class MetricsEndpoint:
    """An ASGI application for one path."""

    def __init__(
        self, settings: Settings, sources: Sources, is_operator: Callable[[Scope], bool]
    ) -> None:
        """Ask `is_operator`, which may block, whether a request is of somebody signed in."""
        self._token = settings.metrics_token
        self._is_open = settings.metrics_open
        self._sources = sources
        self._is_operator = is_operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            response = await run_in_threadpool(self._answer, scope)
        except StorageError as error:  # nobody can be looked up now
            response = PlainTextResponse(str(error), 503, headers=_KEPT_BY_NOBODY)
        await response(scope, receive, send)

    def _answer(self, scope: Scope) -> Response:
        if scope["method"] not in ("GET", "HEAD"):
            return PlainTextResponse("Ask with GET.", 405, headers={"Allow": "GET, HEAD"})
        headers = Headers(scope=scope)
        if not self._may_read(scope, headers.get("authorization")):
            asks = {"WWW-Authenticate": "Bearer"} | _KEPT_BY_NOBODY
            return PlainTextResponse(_WHO_MAY, 401, headers=asks)
        return self._exposition(headers.get("accept", ""))

    def _may_read(self, scope: Scope, authorization: str | None) -> bool:
        if self._is_open:
            return True
        if authorization is None:
            return self._is_operator(scope)
        scheme, _, token = authorization.partition(" ")
        wanted = self._token.get_secret_value() if self._token is not None else ""
        is_token = compare_digest(token.strip().encode(), wanted.encode())
        return bool(wanted) and scheme.lower() == "bearer" and is_token

    def _exposition(self, accept: str) -> Response:
        from prometheus_client.exposition import choose_encoder

        encode, content_type = choose_encoder(accept)
        made = Response(encode(self._registry), headers=_KEPT_BY_NOBODY)
        made.headers["Content-Type"] = content_type
        return made

    @cached_property
    def _registry(self) -> CollectorRegistry:
        from prometheus_client import CollectorRegistry, ProcessCollector

        from .collector import ServiceCollector

        registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        registry.register(ServiceCollector(self._sources))
        return registry
