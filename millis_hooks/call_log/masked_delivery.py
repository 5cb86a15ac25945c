"""A delivery as a mask policy lets it be seen: its bytes written anew, and still to be read."""

from __future__ import annotations

import re
from urllib.parse import urlencode

from pydantic_core import to_json

from ..exceptions import PayloadError
from ..masking import HIDDEN, MaskPolicy
from ..payload_places import END_OF_CALL, PREFETCH_ANSWER, PREFETCH_QUERY
from ..phones import repair_phone
from ..query_string import read_query
from ..wire import read_json
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
