"""What an export shows of the columns of a call, by the one masking policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...masking import MaskPolicy

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
