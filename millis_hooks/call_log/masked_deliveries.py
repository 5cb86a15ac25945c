"""A delivery as a mask policy lets it be seen: its bytes written anew, and still to be read.

Masks deliveries before they are stored: what is not written cannot be read, copied or lost.

What stays is what the call log hangs on: ids, times, statuses, costs and the shape of the payload.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from urllib.parse import urlencode

from pydantic_core import to_json

from ..exceptions import PayloadError
from ..masking.places import END_OF_CALL, PREFETCH_ANSWER, PREFETCH_QUERY
from ..masking.policy import HIDDEN, MaskPolicy
from ..protocol.phones import repair_phone
from ..protocol.reading import read_json, read_query
from ..settings import Settings
from .deliveries import Delivery

#: A string of JSON, also one that was cut off, and what makes it the name of a field.
#: It matches from every quote on, and so never starts anew inside of what it has read.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"(\s*:)?|\\?\Z)', re.DOTALL)


def masked_delivery(delivery: Delivery, mask: MaskPolicy) -> Delivery:
    """Return a delivery without what `mask` hides; never raises.

    A body that cannot be read loses what is shaped like a secret or a number, and what stands in
    quotes where words are hidden whole; one that is no text at all is left out.
    """
    # The reason of a prefetch may quote what a handler raised.
    hide = mask.text if delivery.kind == "prefetch" else mask.line
    return delivery._replace(
        query=_query(delivery.query, mask),
        answer=_answer(delivery, mask),
        body=_body(delivery.body, mask),
        reason=delivery.reason and hide(delivery.reason),
    )


def _query(query: str | None, mask: MaskPolicy) -> str | None:
    if not query:
        return query
    shown = []
    for name, value in read_query(query.encode("utf-8", "replace"), []):
        if name in ("from", "to"):
            value = repair_phone(value) or ""  # a plus that was lost cannot be put back later
        masked = mask.payload({name: value}, PREFETCH_QUERY)
        shown += list(masked.items()) if isinstance(masked, dict) else []
    return urlencode(shown)


def _answer(delivery: Delivery, mask: MaskPolicy) -> bytes | None:
    if delivery.kind != "prefetch" or delivery.answer is None:
        return delivery.answer
    return to_json(mask.payload(read_json(delivery.answer), PREFETCH_ANSWER))


def _body(body: bytes, mask: MaskPolicy) -> bytes:
    if not body:
        return body
    try:
        # Written anew in any case: of a name that repeats only the last value was looked at.
        return to_json(mask.payload(read_json(body), END_OF_CALL))
    except PayloadError:
        return _unreadable(body, mask)


def _unreadable(body: bytes, mask: MaskPolicy) -> bytes:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return HIDDEN.encode()
    if mask.words == "full":
        text = _STRING.sub(lambda match: match[0] if match[1] else f'"{HIDDEN}"', text)
    return mask.line(text).encode()


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
