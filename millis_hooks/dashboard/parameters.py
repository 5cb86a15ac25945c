"""What the query string of a page may say; declared beside the view that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Parameter:
    """A name in a query string. What its value cannot mean is left out, never refused."""

    name: str
    meaning: str
    choices: Sequence[str] = ()
    kind: Literal["string", "number", "integer"] = "string"
    repeats: bool = False

    def described(self) -> dict[str, Any]:
        """Return this as an OpenAPI parameter object."""
        value: dict[str, Any] = {"type": self.kind}
        if self.choices:
            value["enum"] = list(self.choices)
        return {
            "name": self.name,
            "in": "query",
            "description": self.meaning,
            "schema": {"type": "array", "items": value} if self.repeats else value,
        }
