"""The metadata of a call before its prefetch and at its end, key by key."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from ..call_log.records import Delivery
from ..events import EndOfCall, PrefetchRequest
from ..masking import MaskPolicy
from ..payload_places import Place
from .formats import as_text
from .shortened import Room

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
