"""Payloads on a page: the beginning of each delivery and answer, masked, and metadata key by key.

What is too large for a page is cut before it is masked, as masking takes time too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import JsonValue

from ..call_log.queries.records import Call, Delivery
from ..call_log.redaction import masked_reason
from ..call_log.tables import KEPT
from ..exceptions import PayloadError
from ..masking.places import END_OF_CALL, PREFETCH_ANSWER, PREFETCH_QUERY, Place, Places
from ..masking.policy import MaskPolicy
from ..protocol.events import EndOfCall
from ..protocol.functions import FunctionRequest
from ..protocol.prefetch import PrefetchRequest
from ..protocol.reading import read_json
from .formats import as_text

#: What a page shows of the payloads of one call: characters of strings, and values.
_MOST_CHARS = 500_000
_MOST_VALUES = 10_000
_MOST_STRING_CHARS = 100_000
_MOST_DEPTH = 200
#: Longer values lead to no list: addresses of pages have an end.
_MOST_FILTER_CHARS = 200
#: Metadata keys that a page shows.
MOST_KEYS = 500


#: Of each kind of delivery, the places in what came and in what was answered.
_PLACES: Mapping[str, tuple[Places, Places]] = {
    "prefetch": (PREFETCH_QUERY, PREFETCH_ANSWER),
    "function": (PREFETCH_QUERY, Place.WORDS),
    "end_of_call": (END_OF_CALL, Place.OPEN),
}


class Room:
    """The room that is left on a page for payloads."""

    def __init__(self) -> None:
        self._chars = _MOST_CHARS
        self._values = _MOST_VALUES

    def beginning(self, value: JsonValue, depth: int = 0) -> JsonValue:
        """Return as much of a value as there is room for, with a note where it is cut."""
        self._values -= 1
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            items = [self.beginning(each, depth + 1) for each in value if self._has_room(depth)]
            left_out = len(value) - len(items)
            return [*items, f"… {left_out:,} more"] if left_out else items
        if isinstance(value, dict):
            fields = {
                name: self.beginning(each, depth + 1)
                for name, each in value.items()
                if self._has_room(depth)
            }
            left_out = len(value) - len(fields)
            return fields | ({"…": f"{left_out:,} more"} if left_out else {})
        return value

    def text(self, text: str) -> str:
        """Return as much of a text as there is room for."""
        room = min(self._chars, _MOST_STRING_CHARS)
        self._chars -= min(len(text), room)
        if len(text) <= room:
            return text
        # Cut between words: masking recognizes a number or a secret only if it is whole.
        words = text[:room].rsplit(None, 1)
        beginning = words[0] if len(words) == 2 else ""
        return f"{beginning} … {len(text) - len(beginning):,} more characters"

    def _has_room(self, depth: int) -> bool:
        return self._values > 0 and depth < _MOST_DEPTH


@dataclass(frozen=True, slots=True)
class Payload:
    """A delivery, masked, and as JSON what it carried and was answered with.

    `content` is text if the body is not JSON; None if it `repeats` the bytes of another delivery.
    """

    delivery: Delivery
    content: JsonValue
    answer: JsonValue
    repeats: bool
    secrets_masked: int
    #: What the handlers keep of a prefetch.
    kept: JsonValue = None


def payload_of(delivery: Delivery, mask: MaskPolicy, room: Room | None = None) -> Payload:
    """Return a delivery that was read with its body, as far as there is room for it."""
    room = room or Room()
    places, of_answer = _PLACES[delivery.kind]
    content = mask.masked(room.beginning(_content(delivery)), places)
    answer_json = read_bytes(delivery.answer) if delivery.answer else None
    answer = mask.masked(room.beginning(answer_json), of_answer)
    masked = replace(
        delivery,
        query=None,
        body=None,
        body_bytes=delivery.body_bytes or len(delivery.query or ""),
        answer=None,
        kept=None,
        reason=masked_reason(delivery.reason, delivery.kind, mask),
    )
    repeats = delivery.kind == "end_of_call" and delivery.body is None
    kept_json = read_bytes(delivery.kept.encode()) if delivery.kept else None
    kept = mask.masked(room.beginning(kept_json), Place.WORDS)
    secrets = content.count + answer.count + kept.count
    return Payload(masked, content.value, answer.value, repeats, secrets, kept.value)


def prefetch_in(payloads: Sequence[Payload]) -> Payload | None:
    """Return the first prefetch."""
    return next((each for each in payloads if each.delivery.kind == "prefetch"), None)


def end_in(payloads: Sequence[Payload], call: Call) -> Payload | None:
    """Return the end-of-call that counts for most."""
    ends = [each for each in payloads if each.delivery.kind == "end_of_call"]
    chosen = (each for each in ends if each.delivery.id == call.delivery_id)
    return next(chosen, ends[0] if ends else None)


def read_bytes(body: bytes) -> JsonValue:
    """Read bytes as JSON, or else as text, with bytes that are not UTF-8 escaped."""
    try:
        return read_json(body)
    except PayloadError:
        return body.decode("utf-8", "backslashreplace")


def query_of(query: str) -> JsonValue:
    """Return the fields of a query string; a repeated name has a list of values."""
    values: dict[str, list[JsonValue]] = {}
    for name, value in PrefetchRequest.parse(query.encode("utf-8", "replace")).raw:
        values.setdefault(name, []).append(value)
    return {name: each[0] if len(each) == 1 else each for name, each in values.items()}


def request_of(delivery: Delivery) -> FunctionRequest:
    """Return the request of a delivery that called a function."""
    query = (delivery.query or "").encode("utf-8", "replace")
    name, body = delivery.function or "", delivery.body or b""
    return FunctionRequest.parse(name, query, body, delivery.content_type)


def _content(delivery: Delivery) -> JsonValue:
    if delivery.kind == "prefetch":
        return query_of(delivery.query or "")
    if delivery.kind == "function":
        return request_of(delivery).raw
    return read_bytes(delivery.body) if delivery.body is not None else None


#: `gone`: the call began with the key, and its end does not have it.
Change = Literal["added", "changed", "gone"]


@dataclass(frozen=True, slots=True)
class Entry:
    """A metadata key, masked, and its change since the prefetch.

    The change was made `by` the answer to the prefetch, or by something in the call.
    """

    key: str
    value: JsonValue
    before: JsonValue = None
    change: Change | None = None
    by: Literal["prefetch", "call"] | None = None
    #: `key=value` as the filter of a list takes it; None where that is masked or too long.
    meta: str | None = None


def entries_of(
    event: EndOfCall | None, prefetch: Delivery | None, mask: MaskPolicy
) -> Iterator[Entry]:
    """Compare the metadata of a call's end to that of its prefetch.

    Until the end arrives, the metadata of the prefetch with that of its answer takes its place.
    """
    room = Room()
    before, answered = _metadata_of(prefetch), _answered(prefetch)
    ended = event.metadata if event else before | answered
    after = {key: room.beginning(value) for key, value in ended.items()}
    masked_before = dict(masked_metadata(before, mask))
    for key, (name, value) in masked_metadata(after, mask):
        text = as_text(after[key])
        meta = f"{key}={text}" if (name, value) == (key, after[key]) else None
        meta = meta if meta and len(meta) <= _MOST_FILTER_CHARS else None
        if prefetch is None or (key in before and text == as_text(before[key])):
            yield Entry(name, value, meta=meta)
            continue
        is_answer = key in answered and text == as_text(answered[key])
        _, was = masked_before.get(key, ("", None))
        change: Change = "changed" if key in before else "added"
        yield Entry(name, value, was, change, "prefetch" if is_answer else "call", meta)
    for key, (name, value) in masked_before.items():
        if key not in after:
            yield Entry(name, None, value, "gone", "call")


def kept_of(prefetch: Delivery, mask: MaskPolicy) -> Iterator[Entry]:
    """Yield what handlers keep of a prefetch, masked."""
    kept = read_bytes(prefetch.kept.encode()) if prefetch.kept else None
    values = kept if isinstance(kept, dict) else {}
    for key, (name, value) in masked_metadata(values, mask):
        meta = f"{KEPT}{key}={as_text(value)}"
        is_plain = (name, value) == (key, values[key]) and len(meta) <= _MOST_FILTER_CHARS
        yield Entry(name, value, meta=meta if is_plain else None)


def _metadata_of(prefetch: Delivery | None) -> dict[str, JsonValue]:
    query = (prefetch.query or "").encode("utf-8", "replace") if prefetch else b""
    return {**PrefetchRequest.parse(query).metadata}


def _answered(prefetch: Delivery | None) -> dict[str, JsonValue]:
    answer = read_bytes(prefetch.answer) if prefetch and prefetch.answer else None
    metadata = answer.get("metadata") if isinstance(answer, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def masked_metadata(
    metadata: Mapping[str, JsonValue], mask: MaskPolicy
) -> Iterable[tuple[str, tuple[str, JsonValue]]]:
    """Pair each key with its masked name and value."""
    masked = mask.payload({**metadata}, Place.WORDS)
    assert isinstance(masked, dict)  # noqa: S101 - masking keeps the shape
    return zip(metadata, masked.items(), strict=True)
