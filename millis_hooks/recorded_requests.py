"""Answers as Millis does where all goes well, for calls that it is not asked to make."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from .in_place_of_millis import MillisRequest
from .samples import push_id

logger = logging.getLogger("millis_hooks.millis_api")

_UNKNOWN = (404, b'{"detail":"Call history not found"}')
_STARTS = frozenset({"start_outbound_call", "register_call"})


async def all_went_well(request: MillisRequest) -> tuple[int, bytes]:
    """Answer that calls were started and ended, and that the call logs are empty."""
    if request.path in _STARTS:
        started = {"session_id": push_id(_now()), "call_id": push_id(_now())}
        return 200, json.dumps(started).encode()
    if request.method == "GET":
        return (200, b'{"histories":[]}') if request.path == "call-logs" else _UNKNOWN
    return 200, b'{"success":true}'


async def logged(request: MillisRequest) -> tuple[int, bytes]:
    """Say in the log that a request was not sent, and answer it."""
    logger.info(
        "not sent to Millis, for a call that was made up: %s %s", request.method, request.path
    )
    return await all_went_well(request)


def _now() -> datetime:
    return datetime.now(UTC)
