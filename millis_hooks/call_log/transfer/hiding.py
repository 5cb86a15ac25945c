"""What an export shows of a call, by the one masking policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from pydantic_core import to_json

from ...exceptions import PayloadError
from ...masking import MaskPolicy
from ...payload_places import END_OF_CALL, PREFETCH_ANSWER, PREFETCH_QUERY, Places
from ...query_string import read_query
from ...wire import Json, read_json
from ..deliveries import Delivery

_NUMBERS = frozenset({"from_phone", "to_phone", "customer_phone"})
#: Ids and states. Any other text, and any column to come, is shown as what somebody said.
_KEPT = frozenset(
    {
        "session_id", "call_id", "agent_id", "channel", "direction", "provider", "call_status",
        "outcome", "prefetch_outcome",
    }
)  # fmt: skip


def shown_columns(columns: Mapping[str, Any], policy: MaskPolicy) -> dict[str, Any]:
    """Return the columns of a call as they may be seen."""
    return {name: _shown(name, value, policy) for name, value in columns.items()}


def _shown(name: str, value: object, policy: MaskPolicy) -> object:
    if not isinstance(value, str) or name in _KEPT:
        return value
    if name in _NUMBERS:
        return policy.phone(value)
    if name == "recording_url":
        return policy.url(value)
    return policy.line(value) if name == "error_message" else policy.text(value)


def shown_delivery(delivery: Delivery, policy: MaskPolicy) -> Delivery:
    """Return a delivery as it may be seen: what is hidden in it is a mark, what is not stays."""
    answer, query, reason = delivery.answer, delivery.query, delivery.reason
    # That of a prefetch may quote what a handler raised.
    shown = policy.text if delivery.kind == "prefetch" else policy.line
    return delivery._replace(
        body=_shown_bytes(delivery.body, END_OF_CALL, policy),
        answer=_shown_bytes(answer, PREFETCH_ANSWER, policy) if answer else answer,
        query=_shown_query(query, policy) if query else query,
        reason=shown(reason) if reason else reason,
    )


def _shown_bytes(raw: bytes, places: Places, policy: MaskPolicy) -> bytes:
    if not raw:
        return raw
    try:
        value = read_json(raw)
    except PayloadError:
        return policy.text(raw.decode("utf-8", "replace")).encode()
    shown = policy.payload(value, places)
    return raw if shown == value else to_json(shown)


def _shown_query(query: str, policy: MaskPolicy) -> str:
    fields = [_shown_field({name: value}, policy) for name, value in read_query(query.encode(), [])]
    return urlencode(fields, quote_via=quote)


def _shown_field(field: dict[str, Json], policy: MaskPolicy) -> tuple[str, Json]:
    shown = policy.payload(field, PREFETCH_QUERY)
    assert isinstance(shown, dict)  # noqa: S101 - masking keeps the shape
    return next(iter(shown.items()))
