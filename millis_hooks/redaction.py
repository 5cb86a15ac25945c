"""Masks deliveries before they are stored: what is not written cannot be read, copied or lost.

What stays is what the call log hangs on: ids, times, statuses, costs and the shape of the payload.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from .call_log.deliveries import Delivery
from .call_log.masked_delivery import masked_delivery
from .masking import MaskPolicy
from .settings import Settings


def policy_of(settings: Settings) -> MaskPolicy:
    """Return what is hidden from the call log: as on the pages, and all where they hide nothing."""
    shown = MaskPolicy.of(settings)
    if shown.numbers == shown.words == "none":
        return replace(shown, numbers="full", words="full")
    return shown


def redacting(settings: Settings) -> Callable[[Delivery], Delivery] | None:
    """Return what is done to deliveries before they are stored, if anything."""
    if not settings.redact_before_store:
        return None
    return partial(redact, mask=policy_of(settings))


class Redaction:
    """Stands in front of the writer."""

    def __init__(
        self,
        mask: MaskPolicy,
        store: Callable[[Delivery], Awaitable[None]],
        record: Callable[[Delivery], None],
    ) -> None:
        self._mask = mask
        self._store = store
        self._record = record

    async def store(self, delivery: Delivery) -> None:
        """Store what may be stored of the delivery; raises what storing it raises."""
        # A long conversation takes its time, and prefetches must not wait for it.
        await self._store(await asyncio.to_thread(redact, delivery, self._mask))

    def record(self, delivery: Delivery) -> None:
        """Record what may be stored of the delivery."""
        self._record(redact(delivery, self._mask))


def redact(delivery: Delivery, mask: MaskPolicy) -> Delivery:
    """Return the delivery without what `mask` hides, and marked as such; never raises."""
    # What was raised has been described by the same policy, and says who it was that raised it.
    reason = delivery.reason and mask.line(delivery.reason)
    return masked_delivery(delivery, mask)._replace(reason=reason, redacted=True)
