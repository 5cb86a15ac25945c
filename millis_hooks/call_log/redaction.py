"""Applies the mask policy to what the call log keeps: deliveries, records and rows of exports.

Deliveries can be masked before they are stored: what is not written cannot be read, copied or
lost. Ids, times, statuses, costs and the shape of the payload stay.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlencode

from pydantic import JsonValue
from pydantic_core import to_json

from ..exceptions import PayloadError
from ..masking.places import (
    CALL,
    DELIVERY_REASON,
    END_OF_CALL,
    PREFETCH_ANSWER,
    PREFETCH_QUERY,
    RUN,
    Place,
)
from ..masking.policy import HIDDEN, MaskPolicy
from ..protocol.functions import read_body
from ..protocol.phones import repair_phone
from ..protocol.reading import read_json, read_query, web_url
from ..protocol.results import Plain, Result
from ..settings import Settings
from .deliveries import Delivery
from .queries.followed import Happening
from .queries.records import Call, ListedCall, Run
from .queries.runs import ListedRun
from .search import Excerpt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Record = TypeVar("Record", bound="DataclassInstance")

#: A JSON string, also one that was cut off; the group is set if it is the name of a field.
#: It matches at every quote, so no match begins inside another.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*(?:"(\s*:)?|\\?\Z)', re.DOTALL)


def masked_delivery(delivery: Delivery, mask: MaskPolicy) -> Delivery:
    """Return a delivery without what `mask` hides; never raises.

    A body that cannot be read loses what is shaped like a secret or a number, and what stands in
    quotes where words are hidden whole; one that is not a text at all is left out.
    """
    return delivery._replace(
        query=_masked_query(delivery.query, mask),
        answer=_masked_answer(delivery, mask),
        body=_masked_body(delivery, mask),
        kept=delivery.kept and masked_json(delivery.kept, mask),
        reason=masked_reason(delivery.reason, delivery.kind, mask),
    )


def masked_reason(reason: str | None, kind: str, mask: MaskPolicy) -> str | None:
    """Return why a delivery of a kind, or a rejection, was answered as it was."""
    return reason and mask.shown(reason, DELIVERY_REASON.get(kind, Place.LINE))


def _masked_query(query: str | None, mask: MaskPolicy) -> str | None:
    if not query:
        return query
    fields: list[tuple[str, Any]] = []
    for name, value in read_query(query.encode("utf-8", "replace"), []):
        if PREFETCH_QUERY.get(name) is Place.NUMBER:
            value = repair_phone(value) or ""  # a masked number cannot get its lost plus back
        masked = mask.payload({name: value}, PREFETCH_QUERY)
        fields += masked.items() if isinstance(masked, dict) else []
    return urlencode(fields)


def masked_json(text: str, mask: MaskPolicy) -> str:
    """Return JSON of our own without what `mask` hides; its values are words."""
    return to_json(mask.payload(read_json(text), Place.WORDS)).decode()


def _masked_answer(delivery: Delivery, mask: MaskPolicy) -> bytes | None:
    if delivery.kind == "end_of_call" or delivery.answer is None:
        return delivery.answer
    places = PREFETCH_ANSWER if delivery.kind == "prefetch" else Place.WORDS
    try:
        return to_json(mask.payload(read_json(delivery.answer), places))
    except PayloadError:  # the text of a function
        return mask.text(delivery.answer.decode("utf-8", "replace")).encode()


def _masked_body(delivery: Delivery, mask: MaskPolicy) -> bytes:
    body = delivery.body
    if not body:
        return body
    if delivery.kind == "function" and (fields := read_body(body, delivery.content_type, [])):
        return to_json(mask.payload(fields, PREFETCH_QUERY))  # also of a form
    try:
        # Serialized again in any case: of a name that repeats only the last value was masked.
        return to_json(mask.payload(read_json(body), END_OF_CALL))
    except PayloadError:
        return _masked_text(body, mask)


def _masked_text(body: bytes, mask: MaskPolicy) -> bytes:
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return HIDDEN.encode()
    if mask.words == "full":
        text = _STRING.sub(lambda match: match[0] if match[1] else f'"{HIDDEN}"', text)
    return mask.line(text).encode()


def storage_policy(settings: Settings) -> MaskPolicy:
    """Return the policy of redaction: that of the pages, or all hidden where they hide nothing."""
    policy = MaskPolicy.of(settings)
    if policy.numbers == policy.words == "none":
        return replace(policy, numbers="full", words="full")
    return policy


def redact(delivery: Delivery, mask: MaskPolicy) -> Delivery:
    """Return the delivery without what `mask` hides, marked as redacted; never raises."""
    # The reason was described by the same policy, and names the handler that raised.
    reason = delivery.reason and mask.line(delivery.reason)
    return masked_delivery(delivery, mask)._replace(reason=reason, redacted=True)


def redaction_of(settings: Settings) -> Callable[[Delivery], Delivery] | None:
    """Return what redacts deliveries before they are stored; None if the settings do not ask."""
    if not settings.redact_before_store:
        return None
    return partial(redact, mask=storage_policy(settings))


def results_redaction(
    settings: Settings,
) -> Callable[[Mapping[str, Plain]], Mapping[str, Plain]]:
    """Return what redacts results before they are stored, if the settings ask for it."""
    if not settings.redact_before_store:
        return dict
    return partial(masked_values, mask=storage_policy(settings))


async def store_redacted(
    store: Callable[[Delivery], Awaitable[None]], mask: MaskPolicy, delivery: Delivery
) -> None:
    """Redact a delivery and `store` it; raises what `store` raises."""
    # Off the serving loop: a long conversation takes time, and prefetches must not wait.
    await store(await asyncio.to_thread(redact, delivery, mask))


def record_redacted(
    record: Callable[[Delivery], None], mask: MaskPolicy, delivery: Delivery
) -> None:
    """Redact a delivery and `record` it."""
    record(redact(delivery, mask))


def masked_columns(columns: Mapping[str, Any], mask: MaskPolicy) -> dict[str, Any]:
    """Return the columns of a call; texts of columns that the table does not name are words."""
    return {
        name: mask.shown(value, CALL.get(name, Place.WORDS)) if isinstance(value, str) else value
        for name, value in columns.items()
    }


def masked_call(call: Call, mask: MaskPolicy) -> Call:
    """Return a call without what `mask` hides, and without an unsafe recording address."""
    url = web_url(call.recording_url or "")
    return _masked(
        call if url == call.recording_url else replace(call, recording_url=url), CALL, mask
    )


def masked_listing(listed: ListedCall, mask: MaskPolicy) -> ListedCall:
    """Return a listed call and its excerpts without what `mask` hides."""
    excerpt = masked_excerpt(listed.excerpt, mask) if listed.excerpt else None
    more = filter(None, (masked_excerpt(each, mask) for each in listed.more_excerpts))
    call = masked_call(listed.call, mask)
    return replace(
        listed,
        call=call,
        excerpt=excerpt,
        more_excerpts=tuple(more),
        results=masked_results(listed.results, mask),
        kept=masked_values(listed.kept, mask),
    )


def masked_excerpt(excerpt: Excerpt, mask: MaskPolicy) -> Excerpt | None:
    """Return an excerpt without what `mask` hides, None if that is all.

    The hit is not marked if masking changed the length: it may be part of what is hidden.
    """
    whole = excerpt.before + excerpt.hit + excerpt.after
    excerpt = replace(excerpt, name=mask.line(excerpt.name))
    if mask.words == "full":
        return None
    masked = mask.cut_text(whole)
    if len(masked) != len(whole):
        return replace(excerpt, before=masked, hit="", after="")
    begin, end = len(excerpt.before), len(excerpt.before) + len(excerpt.hit)
    return replace(excerpt, before=masked[:begin], hit=masked[begin:end], after=masked[end:])


def masked_run(run: Run, mask: MaskPolicy) -> Run:
    """Return a run and its attempts without what `mask` hides."""
    attempts = tuple(_masked(attempt, RUN, mask) for attempt in run.attempts)
    results = masked_results(run.results, mask)
    return replace(_masked(run, RUN, mask), attempts=attempts, results=results)


def masked_listed_run(run: ListedRun, mask: MaskPolicy) -> ListedRun:
    """Return a run of a list without what `mask` hides."""
    return _masked(run, RUN, mask)


def masked_happening(happening: Happening, mask: MaskPolicy) -> Happening:
    """Return what happened to a call without what `mask` hides."""
    return _masked(happening, RUN, mask)


def _masked(record: Record, places: Mapping[str, Place], mask: MaskPolicy) -> Record:
    """Return a record, or where that changes it a copy, with the fields of `places` masked."""
    masked = {
        name: allowed
        for name, place in places.items()
        if (value := getattr(record, name, None)) is not None
        and (allowed := mask.shown(value, place)) != value
    }
    return replace(record, **masked) if masked else record


def masked_values(values: Mapping[str, Plain], mask: MaskPolicy) -> dict[str, Plain]:
    """Return results without what `mask` hides: of texts as of metadata, of other values only
    secrets and phone numbers."""
    by_kind = replace(mask, words="none")
    masked: dict[str, Plain] = {}
    for name, value in values.items():
        policy = mask if isinstance(value, str) else by_kind
        pair: JsonValue = policy.payload({name: value}, Place.WORDS)
        for shown, plain in pair.items() if isinstance(pair, dict) else ():
            masked[shown] = plain if not isinstance(plain, dict | list) else None
    return masked


def masked_results(results: Iterable[Result], mask: MaskPolicy) -> tuple[Result, ...]:
    """Return results without what `mask` hides."""
    return tuple(
        replace(each, name=name, value=value)
        for each in results
        for name, value in masked_values({each.name: each.value}, mask).items()
    )
