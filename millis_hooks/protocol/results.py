"""What handlers return, made plain: answers as JSON, and the results of a call.

A row of a database holds times, decimals and ids. A value that cannot be converted is left out and
noted, and the others are kept.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, NamedTuple, TypeAlias, TypeGuard, cast

from pydantic import BaseModel, JsonValue
from pydantic_core import from_json, to_json

#: A value that holds itself has no end.
_MAX_DEPTH = 100
#: More items, or more values left out, are not looked at: an iterator may have no end.
_MOST_ITEMS = 10_000
_MOST_REASONS = 20
#: Values below one name: a list that holds another twice, and so on twenty times, has a million.
_MOST_VALUES = 20_000
#: Beyond it a reader that makes floating point numbers has infinity, or gives the answer up.
_MOST_BITS = 1_023


class _NotPlainError(Exception):
    """A value has no form that could be sent."""


def as_object(value: object, name: str, left_out: list[str]) -> dict[str, JsonValue]:
    """Return what stands for an object of JSON, or {}.

    A mapping, a dataclass and a model of pydantic do; texts, numbers, `None`, times, `Decimal`,
    `UUID`, `Enum`, paths, bytes in UTF-8 and collections of these are its values. Any other value,
    at any depth, is left out and noted in `left_out` by its path below `name`.
    """
    if _is_plain(value):
        return dict(value)
    plain = _Plain(left_out).value(value, name, 0)
    if plain is _NOTHING:
        return {}
    if not isinstance(plain, dict):
        left_out.append(f"{name}: {_kind(value)} is not an object of names and values")
        return {}
    return plain


def _is_plain(value: object) -> TypeGuard[dict[str, str]]:
    """Tell whether a value is what most handlers return: texts by their names, ready to be sent.

    A caller is waiting, and this takes a tenth of the time of looking at each value.
    """
    if type(value) is not dict:
        return False
    texts = [*value, *value.values()]
    return {*map(type, texts)} <= {str} and _has_no_surrogates("".join(texts))


def _has_no_surrogates(text: str) -> bool:
    with suppress(UnicodeEncodeError):
        text.encode()
        return True
    return False


def as_text(value: object, name: str, left_out: list[str]) -> str | None:
    """Return a value as text; one that is not a single value is left out."""
    if value is None or type(value) is str:
        return value
    plain = _Plain(left_out).value(value, name, 0)
    if plain is None or isinstance(plain, str):
        return plain
    if isinstance(plain, int | float) and not isinstance(plain, bool):
        return str(plain)
    if plain is not _NOTHING:
        left_out.append(f"{name}: {_kind(value)} is not a text")
    return None


#: Stands for a value that was left out.
_NOTHING: Any = object()


class _Plain:
    """Makes values plain, and notes those that cannot be."""

    def __init__(self, left_out: list[str]) -> None:
        self._left_out = left_out
        #: The collections that the value at hand is in.
        self._open: set[int] = set()
        self._values = 0

    def value(self, value: object, path: str, depth: int) -> Any:
        """Return the plain form of a value, or `_NOTHING` once it is noted."""
        try:
            return self._form(value, path, depth)
        except Exception as error:  # values of the team's own may do anything when they are read
            known = isinstance(error, _NotPlainError)
            why = str(error) if known else f"{_kind(value)} cannot be sent as JSON"
            self._note(f"{path}: {why}" if path else why)
            return _NOTHING

    def _note(self, reason: str) -> None:
        if len(self._left_out) < _MOST_REASONS:
            self._left_out.append(reason)
        elif len(self._left_out) == _MOST_REASONS:
            self._left_out.append("what else cannot be sent")

    def _form(self, value: object, path: str, depth: int) -> Any:
        if isinstance(value, int) and value.bit_length() > _MOST_BITS:
            raise _NotPlainError("it is a number that few programs can read")
        if value is None or type(value) in (bool, int):
            return value
        self._values = 1 if depth <= 1 else self._values + 1
        if self._values > _MOST_VALUES:
            raise _NotPlainError(f"it is beyond the first {_MOST_VALUES:,} values")
        shown = _written(value) if isinstance(value, BaseModel) else value
        if not is_object(shown) and not _is_list(shown):
            return _single(shown)
        if depth > _MAX_DEPTH or id(value) in self._open:
            raise _NotPlainError("it is nested too deeply, or in itself")
        self._open.add(id(value))
        try:
            make: Any = self._object if is_object(shown) else self._list
            return make(shown, path, depth)
        finally:
            self._open.remove(id(value))

    def _object(self, value: Any, path: str, depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for key, item in items_of(value).items():
            name = _name(key if type(key) is str else self.value(key, f"{path}, a name", depth))
            if name is None:
                continue
            where = f"{path}.{name}" if path else name
            form = self.value(item, where, depth + 1)
            # Of a name that comes twice, as 1 and "1" do, the text is the one that was meant.
            if form is not _NOTHING and (type(key) is str or name not in plain):
                plain[name] = form
        return plain

    def _list(self, value: Iterable[Any], path: str, depth: int) -> list[Any]:
        items = list(islice(value, _MOST_ITEMS + 1))
        if len(items) > _MOST_ITEMS:
            raise _NotPlainError(f"it has over {_MOST_ITEMS:,} items")
        if isinstance(value, set | frozenset):
            items.sort(key=str)
        forms = [self.value(item, f"{path}[{at}]", depth + 1) for at, item in enumerate(items)]
        return [form for form in forms if form is not _NOTHING]


def is_object(value: object) -> bool:
    """Tell whether a value is one of names and values: a mapping, a dataclass or a model."""
    is_dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return is_dataclass or isinstance(value, Mapping | BaseModel)


def items_of(value: Any) -> dict[Any, Any]:
    """Return the names and values of what `is_object`, as they are."""
    if isinstance(value, Mapping):
        return dict(value.items())
    if isinstance(value, BaseModel):
        return dict(value)
    return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}


def plain_metadata(metadata: object) -> dict[str, Any]:
    """Return metadata as a dict of plain values, also where it is a model."""
    if isinstance(metadata, BaseModel):
        return metadata.model_dump(mode="json")
    return cast("dict[str, Any]", metadata)


def _is_list(value: object) -> bool:
    single = str | bytes | bytearray | Enum | type
    return isinstance(value, Iterable) and not isinstance(value, single)


def _written(model: BaseModel) -> Any:
    """Return a model as it writes itself, or by its fields where that fails."""
    try:
        return from_json(to_json(model, inf_nan_mode="null"))
    except Exception:  # one of its fields cannot be written: the others can
        return dict(model)


def _single(value: object) -> JsonValue:
    """Return a value that is not a collection; raises what `to_json` raises."""
    if isinstance(value, str):
        return _joined(str.__str__(value))
    if isinstance(value, PurePath):
        value = str(value)
    single: JsonValue = from_json(to_json(value, inf_nan_mode="null"))
    return single


def _name(plain: Any) -> str | None:
    """Return a key as the name of a field; None where it has none."""
    if plain is _NOTHING:
        return None
    if isinstance(plain, str):
        return _joined(plain)
    if isinstance(plain, list):
        return ",".join(map(str, plain))
    return str(to_json(plain), "utf-8")


def _joined(text: str) -> str:
    """Join surrogates that pair up, and replace those that do not."""
    if _has_no_surrogates(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _kind(value: object) -> str:
    return f"a value of the type {type(value).__name__}"


#: The value of a result.
Plain: TypeAlias = str | int | float | bool | None


@dataclasses.dataclass(frozen=True, slots=True)
class Result:
    """A result of a call; `run_id` is that of its handler's run, None where it was imported."""

    handler: str
    run_id: int | None
    name: str
    value: Plain


MOST_RESULTS = 50
MAX_NAME_CHARS = 64
MAX_CHARS = 500
#: Every whole number up to here is exact in a database's floating point numbers.
MAX_NUMBER = 10**15
_TOO_LARGE = f"it is a number beyond {MAX_NUMBER:,}; return it as text"


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
    if not isinstance(key, str | Enum):
        return f"the result of a {type(key).__name__}", None, "its name is not a text"
    if isinstance(value, Decimal):  # as JSON it would be text, which has no sum
        value = float(value) if value.is_finite() else math.nan
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        return str(key), None, _TOO_LARGE
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
        return _TOO_LARGE
    if isinstance(plain, str) and len(plain) > MAX_CHARS:
        return f"it has {len(plain):,} characters, of {MAX_CHARS} at most"
    return ""
