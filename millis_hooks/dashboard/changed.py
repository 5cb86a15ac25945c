"""What later ends of a call changed: which fields, from what to what, as far as it may be seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue

from ..call_log.ends import End, changes
from ..events import EndOfCall
from ..masking import MaskPolicy
from ..payload_places import END_OF_CALL
from .formats import as_text

#: Fields of one end that are listed, and what is shown of a value.
_MOST_FIELDS = 50
_VALUE_CHARS = 200


@dataclass(frozen=True, slots=True)
class ChangedField:
    """A field that is not what it was. Of a value its beginning is shown, as text."""

    name: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Changed:
    """What one end changed when it came in."""

    delivery_id: int
    received_at: datetime
    fields: tuple[ChangedField, ...]
    left_out: int


def changed_by(ends: Sequence[End], mask: MaskPolicy) -> Iterator[Changed]:
    """Yield what each end changed, in the order in which they came."""
    for end, before, after in changes(ends):
        names = [name for name in after.raw if after.raw[name] != before.raw.get(name)]
        fields = tuple(
            ChangedField(mask.line(name), _shown(before, name, mask), _shown(after, name, mask))
            for name in names[:_MOST_FIELDS]
        )
        left_out = max(len(names) - _MOST_FIELDS, 0)
        yield Changed(end.delivery_id, end.received_at, fields, left_out)


def _shown(call: EndOfCall, name: str, mask: MaskPolicy) -> str:
    value: JsonValue = call.raw.get(name)
    if value is None:
        return ""
    if isinstance(value, list):
        return f"{len(value):,} item{'s' if len(value) != 1 else ''}"
    masked = mask.payload({name: value}, END_OF_CALL)
    shown = masked.get(name) if isinstance(masked, dict) else None
    text = as_text(shown)
    return text if len(text) <= _VALUE_CHARS else f"{text[:_VALUE_CHARS]}…"
