"""Records what Millis would have been asked, and answers as it does where all goes well."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime

from .in_place_of_millis import MillisRequest
from .samples import push_id

logger = logging.getLogger("millis_hooks.millis_api")

_UNKNOWN = (404, b'{"detail":"Call history not found"}')
_STARTS = frozenset({"start_outbound_call", "register_call"})


class RecordedRequests:
    """Answers that calls were started and ended, and that the call logs are empty."""

    def __init__(self, record: Callable[[MillisRequest], None]) -> None:
        """Hand each request to `record`."""
        self._record = record

    async def __call__(self, request: MillisRequest) -> tuple[int, bytes]:
        """Record a request and answer it."""
        self._record(request)
        if request.path in _STARTS:
            started = {"session_id": push_id(_now()), "call_id": push_id(_now())}
            return 200, json.dumps(started).encode()
        if request.method == "GET":
            return (200, b'{"histories":[]}') if request.path == "call-logs" else _UNKNOWN
        return 200, b'{"success":true}'


def log_request(request: MillisRequest) -> None:
    """Say in the log that a request was not sent."""
    logger.info(
        "not sent to Millis, for a call that was made up: %s %s", request.method, request.path
    )


def _now() -> datetime:
    return datetime.now(UTC)
