"""Reads the signature of a function as the schema that Millis gives to the model of an agent."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ..exceptions import RegistrationError
from ..protocol.functions import (
    NAME,
    RESERVED,
    FunctionRequest,
    Method,
    Parameter,
    Tool,
    parameter,
)
from ..protocol.reading import Json
from .signatures import (
    alternatives,
    evaluated_annotation,
    name_of,
    place_of,
    require_return,
    signature_of,
)

_NAMES = "Millis takes a letter, then up to 63 letters, digits and _."


def tool_of(
    function: Callable[..., Any],
    name: str,
    *,
    timeout_s: float,
    method: Method = "POST",
    switches: Mapping[str, Json],
) -> Tool:
    """Return a function as Millis knows it.

    Raises `RegistrationError` for what Millis would not take, or no model could fill.
    """
    require_return(function)
    if not NAME.fullmatch(name):
        raise _error(function, f"cannot be called {name!r}. {_NAMES} Pass name=... to function().")
    requests = _requests(function)
    if len(requests) > 1:
        raise _error(function, f"takes the request twice: {', '.join(requests)}. Remove one.")
    return Tool(
        name=name,
        description=inspect.getdoc(function) or f"{name.replace('_', ' ').capitalize()}.",
        parameters=tuple(_parameters(function, besides=requests)),
        takes_request=next(iter(requests), None),
        timeout_s=timeout_s,
        method=method,
        switches=switches,
    )


def _error(function: Callable[..., Any], what: str) -> RegistrationError:
    return RegistrationError(f"{place_of(function)}: {name_of(function)} {what}")


def _requests(function: Callable[..., Any]) -> list[str]:
    """Return the names of the parameters that take the request: `call` may have no annotation."""
    return [
        each.name
        for each in signature_of(function).parameters.values()
        if (each.annotation is each.empty and each.name == "call") or _takes_request(function, each)
    ]


def _takes_request(function: Callable[..., Any], each: inspect.Parameter) -> bool:
    if each.annotation is each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
        return False
    types = alternatives(evaluated_annotation(function, each))
    return any((typing.get_origin(type_) or type_) is FunctionRequest for type_ in types)


def _parameters(function: Callable[..., Any], *, besides: list[str]) -> Iterator[Parameter]:
    for each in signature_of(function).parameters.values():
        if each.kind is each.POSITIONAL_ONLY:
            raise _error(function, f"takes {each.name} by its place alone. Remove the `/`.")
        if each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
            raise _error(function, f"takes {each}. Name each parameter: the model has to know it.")
        if each.name not in besides:
            yield _parameter(function, each)


def _parameter(function: Callable[..., Any], each: inspect.Parameter) -> Parameter:
    if each.annotation is each.empty:
        raise _error(function, f"does not say what {each.name} is. Write {each.name}: str, say.")
    if not NAME.fullmatch(each.name):
        raise _error(function, f"cannot have the parameter {each.name!r}. {_NAMES} Rename it.")
    if each.name in RESERVED:
        raise _error(
            function,
            f"cannot have the parameter {each.name}: Millis adds it by itself. Take it from the "
            f"request: call: FunctionRequest, then call.{each.name}.",
        )
    annotation = evaluated_annotation(function, each)
    try:
        if each.default is each.empty:
            return parameter(each.name, annotation)
        return parameter(each.name, annotation, each.default)
    except Exception as error:  # pydantic's own, for an annotation that it cannot use
        written = inspect.formatannotation(each.annotation)
        raise _error(function, f"takes {each.name}: {written}, but {error}.") from None
