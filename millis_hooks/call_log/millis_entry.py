"""An entry of Millis' call logs, as the end-of-call it tells of."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic_core import to_json

from ..events import EndOfCall
from .deliveries import Delivery
from .values import clean_text, clean_time


def delivery_of(
    entry: EndOfCall, now: datetime, *, imported: bool = False, source: str | None = None
) -> Delivery:
    """Return the delivery that `entry` is kept as: compact JSON, as if received when the call
    ended."""
    return Delivery(
        kind="end_of_call",
        received_at=min(ended_at(entry) or now, now),
        outcome="stored",
        status_code=200,
        session_id=clean_text(entry.session_id),
        reason="from Millis' call log",
        content_type="application/json",
        body=to_json(entry.raw),
        imported=imported,
        source=source,
    )


def ended_at(entry: EndOfCall) -> datetime | None:
    """Return when the call was over by Millis' clock; None if that is not known."""
    started_at = clean_time(entry.started_at)
    if started_at is None:
        return None
    try:
        return started_at + timedelta(seconds=entry.duration_s or 0)
    except OverflowError:
        return None
