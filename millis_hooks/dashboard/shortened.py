"""The beginning of what is too large for a page. It is cut before it is masked: that takes time,
too."""

from __future__ import annotations

from pydantic import JsonValue

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
