"""The row of a run that is yet to be done."""

from __future__ import annotations

from datetime import datetime
from typing import Any


def pending_run(
    call_id: int,
    handler: str,
    at: datetime,
    *,
    hook: str = "end_of_call",
    is_replay: bool = False,
    parked_run_id: int | None = None,
    change: str | None = None,
) -> dict[str, Any]:
    """Return the columns of `handler_runs` for a handler that is to be called for a call."""
    return {
        "call_id": call_id,
        "hook": hook,
        "handler": handler,
        "state": "pending",
        "created_at": at,
        "state_since": at,
        "is_latest": True,
        "is_replay": is_replay,
        "parked_run_id": parked_run_id,
        "spent": 0,
        "change": change,
    }
