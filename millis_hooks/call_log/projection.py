"""Projects a delivery to rows: columns of its call, costs, search text and runs.

Pure: bytes in, rows out. All of it can be derived again from the stored delivery.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any

from sqlalchemy import Row

from ..exceptions import AnotherAgentError, PayloadError
from ..protocol.events import EndOfCall, Message, PrefetchRequest
from ..protocol.test_marks import MADE_UP_SOURCES
from .call_ends import End, RunsFor, outermost, put_together
from .deliveries import content_hash
from .drift import drift_rows
from .sanitize import clean_float, clean_id, clean_int, clean_text, clean_time

_SNIPPET_CHARS = 300
_SEARCHED_CHARS = 200_000
_METADATA_KEYS = 50
_METADATA_CHARS = 200

Columns = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Digest:
    """One processed delivery; `call` holds columns of `calls`, `session_id` among them.

    It is empty where a prefetch names no session; then all there is to say is what was wrong.
    """

    delivery_id: int
    call: Columns
    ends_call: bool = False
    cost_items: list[Columns] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    search_text: str = ""
    handlers: list[str] = field(default_factory=list)
    drift: list[Columns] = field(default_factory=list)
    #: The agent of the delivery's secret, if that is bound to one.
    secret_agent: str | None = None
    end: End | None = None


def of_session(digests: Sequence[Digest]) -> list[Digest]:
    """Return what all deliveries of a session tell: the same whatever order they come in.

    Prefetches come in the order in which they were received, then its ends as one.
    """
    in_order = sorted(digests, key=lambda digest: digest.delivery_id)
    if len(in_order) < 2:
        return in_order
    # The writer refuses what comes after the call is known to be another agent's.
    refused = _of_another_agent(in_order)
    in_order = [digest for digest in in_order if digest not in refused]
    ends = outermost([digest for digest in in_order if digest.end is not None])
    asked = sorted(outermost([digest for digest in in_order if digest.end is None]), key=_received)
    chosen = {digest.delivery_id for digest in [*asked, *ends]}
    left = _drift_alone(each for each in in_order if each.delivery_id not in chosen)
    if len(ends) < 2:
        return [*asked, *left, *ends, *refused]
    whole = put_together(digest.end for digest in ends if digest.end is not None)
    told = digest_end_of_call(whole.delivery_id, whole.received_at, whole.call, whole.runs_for)
    first = min(ends, key=_received)
    of_millis = min(ends, key=lambda end: (end.call["source"] in MADE_UP_SOURCES, _received(end)))
    told.call.update(
        source=of_millis.call["source"], received_at=first.call["received_at"], repeated=True
    )
    return [*asked, *left, *_drift_alone(ends), replace(told, drift=[]), *refused]


def _of_another_agent(in_order: Sequence[Digest]) -> list[Digest]:
    told = (digest.call.get("agent_id") for digest in in_order)
    agent_id = next(filter(None, told), None)
    return [
        digest
        for digest in in_order
        if digest.secret_agent is not None and agent_id not in (None, digest.secret_agent)
    ]


def _received(digest: Digest) -> tuple[datetime, int]:
    return digest.call["received_at"], digest.delivery_id


def _drift_alone(digests: Iterable[Digest]) -> list[Digest]:
    return [Digest(digest.delivery_id, {}, drift=digest.drift) for digest in digests]


def digest_delivery(
    row: Row[Any], *, own_numbers: frozenset[str], runs_for: RunsFor
) -> Digest | None:
    """Say what a row of `deliveries` tells; None for one that cannot be read.

    Nobody is asked whether they want to handle what was imported. Raises `AnotherAgentError` if the
    call is another agent's than the secret that brought it.
    """
    if row.kind == "prefetch":
        digest = _digest_query(row, own_numbers)
    else:
        try:
            call = EndOfCall.parse(row.body, own_numbers=own_numbers)
        except PayloadError:
            return None  # known since it was stored, and shown as unparsed
        wanted_by = (lambda _call: ()) if row.imported else runs_for
        digest = digest_end_of_call(row.id, row.received_at, call, wanted_by)
        end = End(row.id, row.received_at, content_hash(row.body), call, wanted_by)
        digest = replace(digest, end=end)
    if row.secret_agent is not None:
        if digest.call.get("agent_id") != row.secret_agent:
            raise AnotherAgentError
        digest = replace(digest, secret_agent=row.secret_agent)
    if digest.call:
        digest.call["source"] = row.source
    if row.source in MADE_UP_SOURCES:
        digest.drift.clear()  # drift is what Millis sends
    return digest


def _digest_query(row: Row[Any], own_numbers: frozenset[str]) -> Digest:
    call = PrefetchRequest.parse((row.query or "").encode(), own_numbers=own_numbers)
    if not call.session_id:
        return Digest(row.id, {}, drift=drift_rows(call, row.received_at))
    return digest_prefetch(
        row.id, row.received_at, call, outcome=row.outcome, latency_ms=row.latency_ms
    )


def digest_prefetch(
    delivery_id: int,
    received_at: datetime,
    call: PrefetchRequest,
    *,
    outcome: str,
    latency_ms: float | None,
) -> Digest:
    """Say what a prefetch tells about its call."""
    columns = {
        "session_id": clean_id(call.session_id),
        "received_at": received_at,
        "agent_id": clean_text(call.agent_id),
        "channel": call.channel,
        "direction": call.direction,
        "from_phone": clean_text(call.from_phone),
        "to_phone": clean_text(call.to_phone),
        "customer_phone": clean_text(call.customer_phone),
        "prefetch_ms": latency_ms,
        "prefetch_outcome": outcome,
    }
    searched = [call.from_phone, call.to_phone, call.session_id, call.agent_id]
    return Digest(
        delivery_id,
        columns,
        search_text=_lines(searched),
        drift=drift_rows(call, received_at),
    )


def digest_end_of_call(
    delivery_id: int, received_at: datetime, call: EndOfCall, runs_for: RunsFor
) -> Digest:
    """Say what an end-of-call tells about its call, and who wants to handle it."""
    wanted_by = list(runs_for(call))
    return Digest(
        delivery_id,
        _ended_call(delivery_id, received_at, call) | {"unhandled": not wanted_by},
        ends_call=True,
        cost_items=_cost_items(call),
        metadata=_metadata(call),
        search_text=_search_text(call),
        handlers=wanted_by,
        drift=drift_rows(call, received_at),
    )


def _ended_call(delivery_id: int, received_at: datetime, call: EndOfCall) -> Columns:
    voip = call.voip
    return {
        "session_id": clean_id(call.session_id),
        "received_at": received_at,
        "delivery_id": delivery_id,
        "ended_at": received_at,
        "call_id": clean_text(call.call_id),
        "agent_id": clean_text(call.agent_id),
        "channel": call.channel,
        "direction": call.direction,
        "from_phone": clean_text(voip.from_phone) if voip else None,
        "to_phone": clean_text(voip.to_phone) if voip else None,
        "customer_phone": clean_text(call.customer_phone),
        "provider": clean_text(voip.provider) if voip else None,
        "call_status": clean_text(call.call_status),
        "outcome": call.outcome.value,
        "error_message": clean_text(call.error_message),
        "started_at": clean_time(call.started_at),
        "duration_s": clean_float(call.duration_s),
        "cost_total": clean_float(call.cost_total),
        "chars_used": clean_int(call.chars_used),
        "turns": sum(message.role in {"user", "assistant"} for message in call.chat),
        "snippet": _snippet(call.chat),
        "recording_url": clean_text(call.recording_url),
        "opted_out": call.opted_out,
        "repeated": False,
    }


def _cost_items(call: EndOfCall) -> list[Columns]:
    return [
        {
            "position": position,
            "type": clean_text(item.type),
            "provider": clean_text(item.provider),
            "credit": clean_float(item.credit),
            "prompt_tokens": clean_int(item.prompt_tokens),
            "completion_tokens": clean_int(item.completion_tokens),
        }
        for position, item in enumerate(call.cost_breakdown)
    ]


def _metadata(call: EndOfCall) -> dict[str, str]:
    """Return the first-level keys, and values as text: what is not text as JSON."""
    first = islice(call.metadata.items(), _METADATA_KEYS)
    return {metadata_text(key): metadata_text(value) for key, value in first}


def metadata_text(value: object) -> str:
    """Return a key or a value as it is kept to find calls by: short, and JSON if it is no text."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return clean_text(text, max_chars=_METADATA_CHARS) or ""


def _snippet(chat: Iterable[Message]) -> str | None:
    said = (message.content for message in chat if message.role == "user" and message.content)
    return clean_text(next(said, None), max_chars=_SNIPPET_CHARS)


def _search_text(call: EndOfCall) -> str:
    voip = call.voip
    numbers = [voip.from_phone, voip.to_phone] if voip else []
    spoken = [message.content for message in call.chat]
    return _lines([*spoken, *numbers, call.session_id, call.call_id, call.agent_id])


def _lines(texts: Iterable[str | None]) -> str:
    return clean_text("\n".join(filter(None, texts)), max_chars=_SEARCHED_CHARS) or ""
