"""Substitution of `{name}` as Millis documents it, by lookup only.

Millis documents neither unknown names, nor other braces, nor values that are not text. Here an
unknown name stays as written and is reported, and nothing is evaluated. Source: docs.millis.ai,
core-concepts/variables.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

#: A name between single braces: `{{name}}` is another tool's, and JSON does not look so.
_VARIABLE = re.compile(r"(?!(?<=\{)\{[^{}]*\}\})\{([A-Za-z_][\w.-]{0,127})\}")


_NAME = re.compile(r"[A-Za-z_][\w.-]{0,127}")
#: Names that Millis fills in, and those of a prefetch request.
_TAKEN = frozenset({"FromPhone", "ToPhone", "session_id", "agent_id", "from", "to"})


def check_variables(defaults: Mapping[Any, object]) -> dict[str, object]:
    """Return declared variables; raises `ValueError` for a name or default that none can have."""
    for name, default in defaults.items():
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} is no name of a variable: letters, digits, _, - and . after a letter"
            )
        if name in _TAKEN:
            raise ValueError(f"{name} is a name that Millis gives")
        is_finite = not isinstance(default, float) or math.isfinite(default)
        if not isinstance(default, str | int | float) or not is_finite:
            raise ValueError(f"the default of {name} has to be a text or a number")
    return dict(defaults)


class Filled(NamedTuple):
    """A text with its variables filled in, and the names nothing was known about."""

    text: str
    #: Each name once, in the order of its first use.
    unknown: tuple[str, ...]


class Piece(NamedTuple):
    """A part of a filled text. `name` is that of the variable which stood there, if one did."""

    text: str
    name: str | None = None
    is_known: bool = True


def pieces(template: str, variables: Mapping[str, object]) -> Iterator[Piece]:
    """Yield the parts of the template with its variables filled in.

    Names are case-sensitive. A value's own braces are left alone: substitution happens once.
    """
    end = 0
    for match in _VARIABLE.finditer(template):
        if before := template[end : match.start()]:
            yield Piece(before)
        name, end = match[1], match.end()
        is_known = name in variables
        yield Piece(_spelled(variables[name]) if is_known else match[0], name, is_known)
    if rest := template[end:]:
        yield Piece(rest)


def fill(template: str, variables: Mapping[str, object]) -> Filled:
    """Replace every known `{name}` in the template."""
    parts = tuple(pieces(template, variables))
    unknown = dict.fromkeys(part.name for part in parts if part.name and not part.is_known)
    return Filled("".join(part.text for part in parts), tuple(unknown))


def variables_of(
    metadata: Mapping[str, object], *, from_phone: str | None = None, to_phone: str | None = None
) -> dict[str, object]:
    """Return what a call's texts may refer to: its metadata, and `FromPhone` and `ToPhone`.

    The two are set only when the call runs over a phone network, and then win over metadata of
    the same name.
    """
    variables = dict(metadata)
    if from_phone is not None:
        variables["FromPhone"] = from_phone
    if to_phone is not None:
        variables["ToPhone"] = to_phone
    return variables


def _spelled(value: object) -> str:
    """Return a value as it reads in a prompt: text as it is, anything else as JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return str(value)
