"""Results: the names and plain values that an end-of-call handler returns, to be kept of its call.

A mapping, a dataclass or a model of pydantic has results. What cannot be kept is left out one by
one, and noted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from itertools import islice
from typing import NamedTuple, TypeAlias

from .plain_values import as_object, is_object, items_of

#: The value of a result.
Plain: TypeAlias = str | int | float | bool | None

MOST_RESULTS = 50
MAX_NAME_CHARS = 64
MAX_CHARS = 500
#: Every whole number up to here is exact in a database's floating point numbers.
MAX_NUMBER = 10**15


class Results(NamedTuple):
    """What a handler returned: the results by their names, and what was left out, in words."""

    values: Mapping[str, Plain]
    problems: tuple[str, ...] = ()
    is_mapping: bool = True


NO_RESULTS = Results({})


def read_results(returned: object) -> Results:
    """Return the results in what a handler returned; never raises."""
    if returned is None:
        return NO_RESULTS
    kind = type(returned).__name__
    if not is_object(returned):
        return Results({}, (f"it returned {kind}, which is not a mapping of results",), False)
    try:
        items = items_of(returned)
    except Exception:  # a mapping of the team's own may do anything when it is read
        return Results({}, (f"the results could not be read from {kind}",))
    values: dict[str, Plain] = {}
    problems: list[str] = []
    for key, value in islice(items.items(), MOST_RESULTS):
        name, plain, problem = _read(key, value)
        if problem:
            problems.append(f"{name} was left out: {problem}")
        else:
            values[name] = plain
    if len(items) > MOST_RESULTS:
        problems.append(
            f"{len(items) - MOST_RESULTS:,} results were left out: a handler has up to "
            f"{MOST_RESULTS}"
        )
    return Results(values, tuple(problems))


def _read(key: object, value: object) -> tuple[str, Plain, str]:
    """Return the name and the value of a result, and the problem with it if there is one."""
    if isinstance(value, Decimal) and value.is_finite():
        value = float(value)  # as JSON it would be text, which has no sum
    problems: list[str] = []
    read = as_object({key: value}, "", problems)
    name, plain = next(iter(read.items()), (str(key) if isinstance(key, str) else "", None))
    if problem := _problem_of_name(name):
        return repr(name[:MAX_NAME_CHARS]), None, problem
    if problems:
        return name, None, "it has no plain form"
    return name, None if isinstance(plain, dict | list) else plain, _problem_of(value, plain)


def _problem_of_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        return "its name cannot be printed"
    if len(name) > MAX_NAME_CHARS:
        return f"its name has {len(name):,} characters, of {MAX_NAME_CHARS} at most"
    return ""


def _problem_of(value: object, plain: object) -> str:
    if isinstance(plain, dict | list):
        return "it is a collection, and not one plain value"
    if isinstance(value, float) and not math.isfinite(value):
        return "it is not a finite number"
    if isinstance(plain, int | float) and abs(plain) > MAX_NUMBER:
        return f"it is a number beyond {MAX_NUMBER:,}; return it as text"
    if isinstance(plain, str) and len(plain) > MAX_CHARS:
        return f"it has {len(plain):,} characters, of {MAX_CHARS} at most"
    return ""
