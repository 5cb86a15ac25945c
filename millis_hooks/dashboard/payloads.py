"""Deliveries as they came and as they were answered, as far as they may be seen.

The beginning of what is too large for a page. It is cut before it is masked: that takes time,
too.

The metadata of a call before its prefetch and at its end, key by key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from pydantic import JsonValue

from ..call_log.queries.records import Delivery
from ..exceptions import PayloadError
from ..masking.places import END_OF_CALL, PREFETCH_ANSWER, PREFETCH_QUERY, Place
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall, PrefetchRequest
from ..protocol.reading import read_json
from .formats import as_text

#: What a page shows of the contents of one call: characters of texts, and parts.
_CHARS = 500_000
_PARTS = 10_000
#: What it shows of one text.
_TEXT_CHARS = 100_000
_MAX_DEPTH = 200


class Room:
    """How much more may be shown on a page."""

    def __init__(self) -> None:
        self._chars = _CHARS
        self._parts = _PARTS

    def beginning(self, value: JsonValue, depth: int = 0) -> JsonValue:
        """Return as much of a value as there is room for, and say where there is more."""
        self._parts -= 1
        if isinstance(value, str):
            return self._text(value)
        if isinstance(value, list):
            items = [
                self.beginning(item, depth + 1)
                for item in value
                if self._parts > 0 and depth < _MAX_DEPTH
            ]
            left_out = len(value) - len(items)
            return [*items, f"… {left_out:,} more"] if left_out else items
        if isinstance(value, dict):
            return self._object(value, depth)
        return value

    def _object(self, value: dict[str, JsonValue], depth: int) -> JsonValue:
        shown: dict[str, JsonValue] = {}
        for name, item in value.items():
            if self._parts <= 0 or depth >= _MAX_DEPTH:
                shown["…"] = f"{len(value) - len(shown):,} more"
                break
            shown[name] = self.beginning(item, depth + 1)
        return shown

    def _text(self, text: str) -> str:
        room = min(self._chars, _TEXT_CHARS)
        self._chars -= min(len(text), room)
        if len(text) <= room:
            return text
        # Never half a word: what is masked by its shape would not be known by its half.
        words = text[:room].rsplit(None, 1)
        beginning = words[0] if len(words) == 2 else ""
        return f"{beginning} … {len(text) - len(beginning):,} more characters"


@dataclass(frozen=True, slots=True)
class Payload:
    """One delivery. `content` is JSON, or text where the bytes are not; None if it repeats."""

    delivery_id: int
    kind: str
    session_id: str | None
    received_at: datetime
    outcome: str
    reason: str | None
    content_type: str | None
    content: JsonValue
    repeats: bool
    body_bytes: int
    status_code: int
    answer: JsonValue
    latency_ms: float | None
    secrets_masked: int
    redacted: bool
    source: str | None


def payload_of(delivery: Delivery, mask: MaskPolicy, room: Room | None = None) -> Payload:
    """Return what a page may show of a delivery that was read with its body, as far as there is
    room for it."""
    room = room or Room()
    is_prefetch = delivery.kind == "prefetch"
    received = room.beginning(_content(delivery))
    content = mask.masked(received, PREFETCH_QUERY if is_prefetch else END_OF_CALL)
    answered = room.beginning(read_bytes(delivery.answer)) if delivery.answer else None
    answer = mask.masked(answered, PREFETCH_ANSWER if is_prefetch else Place.OPEN)
    return Payload(
        delivery_id=delivery.id,
        kind=delivery.kind,
        session_id=delivery.session_id,
        received_at=delivery.received_at,
        outcome=delivery.outcome,
        reason=reason_of(delivery, mask),
        content_type=delivery.content_type,
        content=content.value,
        repeats=delivery.kind == "end_of_call" and delivery.body is None,
        body_bytes=delivery.body_bytes or len(delivery.query or ""),
        status_code=delivery.status_code,
        answer=answer.value,
        latency_ms=delivery.latency_ms,
        secrets_masked=content.count + answer.count,
        redacted=delivery.redacted,
        source=delivery.source,
    )


def reason_of(delivery: Delivery, mask: MaskPolicy) -> str | None:
    """Return why a delivery has not the best outcome; a prefetch's handler may quote the call."""
    if delivery.reason is None:
        return None
    hide = mask.text if delivery.kind == "prefetch" else mask.line
    return hide(delivery.reason)


def read_bytes(body: bytes) -> JsonValue:
    """Read bytes as JSON if they are, else as text in which nothing is lost."""
    try:
        return read_json(body)
    except PayloadError:
        return body.decode("utf-8", "backslashreplace")


def query_of(query: str) -> JsonValue:
    """Name the fields of a query string; a name that repeats has the list of its values."""
    values: dict[str, list[JsonValue]] = {}
    for name, value in PrefetchRequest.parse(query.encode("utf-8", "replace")).raw:
        values.setdefault(name, []).append(value)
    return {name: each[0] if len(each) == 1 else each for name, each in values.items()}


def _content(delivery: Delivery) -> JsonValue:
    if delivery.kind == "prefetch":
        return query_of(delivery.query or "")
    return read_bytes(delivery.body) if delivery.body is not None else None


#: Keys that a page shows.
MOST_SHOWN = 500

#: `gone`: the call began with it, and its end does not mention it.
Change = Literal["added", "changed", "gone"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A metadata key. `change` says what became of it since the prefetch asked, where known.

    `by` says who did: the answer to the prefetch, or something in the call.
    """

    key: str
    value: JsonValue
    before: JsonValue = None
    change: Change | None = None
    by: Literal["prefetch", "call"] | None = None


def entries_of(
    event: EndOfCall | None,
    prefetch: Delivery | None,
    answer: Mapping[str, JsonValue],
    mask: MaskPolicy,
) -> Iterator[Entry]:
    """Compare the metadata a call ended with to what its prefetch was asked with.

    Until the end is here, the answer merged over the question stands for it.
    """
    room = Room()
    before, told = _asked(prefetch), answer.get("metadata")
    answered = told if isinstance(told, dict) else {}
    ended = event.metadata if event else before | answered
    after = {key: room.beginning(value) for key, value in ended.items()}
    shown_before = dict(shown_metadata(before, mask))
    for key, (name, value) in shown_metadata(after, mask):
        entry = Entry(name, value)
        if prefetch is not None:
            entry = _compared(entry, key, before, answered, after, shown_before)
        yield entry
    for key, (name, value) in shown_before.items():
        if key not in after:
            yield Entry(name, None, value, "gone", "call")


def _compared(
    entry: Entry,
    key: str,
    before: Mapping[str, JsonValue],
    answered: Mapping[str, JsonValue],
    after: Mapping[str, JsonValue],
    shown_before: Mapping[str, tuple[str, JsonValue]],
) -> Entry:
    text = as_text(after[key])
    if key in before and text == as_text(before[key]):
        return entry
    is_answer = key in answered and text == as_text(answered[key])
    _, was = shown_before.get(key, ("", None))
    change: Change = "changed" if key in before else "added"
    return Entry(entry.key, entry.value, was, change, "prefetch" if is_answer else "call")


def _asked(prefetch: Delivery | None) -> dict[str, JsonValue]:
    query = (prefetch.query or "").encode("utf-8", "replace") if prefetch else b""
    return {**PrefetchRequest.parse(query).metadata}


def shown_metadata(
    metadata: Mapping[str, JsonValue], mask: MaskPolicy
) -> Iterable[tuple[str, tuple[str, JsonValue]]]:
    """Pair each key with its name and value as they may be seen."""
    seen = mask.payload({**metadata}, Place.WORDS)
    assert isinstance(seen, dict)  # noqa: S101 - masking keeps the shape
    return zip(metadata, seen.items(), strict=True)
