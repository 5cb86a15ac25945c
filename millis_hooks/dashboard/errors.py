"""What is shown when a page cannot be: what went wrong, and what to do where there is something."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from ..exceptions import StorageError
from .guards import HEADERS
from .pages import Pages, as_json

logger = logging.getLogger("millis_hooks.dashboard")

_EXPLANATIONS = {
    403: ("Not allowed", "Your role is view. Somebody whose role is operate can do this."),
    404: ("Not found", "There is no such page, or the call was removed from the call log."),
    409: ("Not now", "Handlers of this call are not done, or a delivery is not processed yet."),
    413: ("Too large", "This form is larger than any form here."),
}
_NOT_POSSIBLE = ("Not possible", "The dashboard cannot do what was asked.")
_NO_STORAGE = (
    "The call log cannot be used",
    "{} Try again soon; on the server, millis-hooks doctor says more.",
)
_RETRY_AFTER_S = 5
_BUG = ("Something went wrong", "The page could not be made. The reason is in the server's log.")


class Errors:
    """Answers in the place of a page or a twin that failed."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages

    def handlers(self) -> dict[Any, Callable[[Request, Exception], Response]]:
        """Return what answers each kind of exception."""
        return {HTTPException: self._http, StorageError: self._storage, Exception: self._bug}

    def _http(self, request: Request, error: Exception) -> Response:
        status_code = error.status_code if isinstance(error, HTTPException) else 500
        return self._explain(request, status_code, _EXPLANATIONS.get(status_code, _NOT_POSSIBLE))

    def _storage(self, request: Request, error: Exception) -> Response:
        logger.error("the dashboard could not use the call log: %s", error)
        title, text = _NO_STORAGE
        response = self._explain(request, 503, (title, text.format(error)))
        response.headers["Retry-After"] = str(_RETRY_AFTER_S)
        return response

    def _bug(self, request: Request, _: Exception) -> Response:
        # This one stands outside the guards, whose headers every answer needs.
        response = self._explain(request, 500, _BUG)
        response.headers.update(HEADERS)
        return response

    def _explain(
        self, request: Request, status_code: int, explanation: tuple[str, str]
    ) -> Response:
        title, text = explanation
        if request.url.path.endswith(".json"):
            return as_json({"error": f"{title}. {text}"}, status_code)
        operator = getattr(request.state, "operator", None)
        return self._pages.render(
            request,
            "error.html",
            status_code=status_code,
            operator=operator,
            title=title,
            text=text,
            sought=request.path_params.get("session_id") if status_code == 404 else None,
        )
