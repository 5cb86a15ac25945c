"""Signatures of handlers: name and place of a function, whether it is async, what it takes, and the
schema that Millis gives to the model of an agent.
"""

from __future__ import annotations

import builtins
import functools
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from ..exceptions import RegistrationError
from ..protocol.events import EndOfCall
from ..protocol.functions import (
    NAME,
    RESERVED,
    FunctionRequest,
    Method,
    Parameter,
    Tool,
    parameter,
)
from ..protocol.prefetch import PrefetchRequest
from ..protocol.reading import Json
from .retries import FailedRun

#: What handlers take; known by name also where it is imported only for type checkers.
_EVENTS: Mapping[str, type] = {
    "EndOfCall": EndOfCall,
    "FailedRun": FailedRun,
    "FunctionRequest": FunctionRequest,
    "ParkedRun": FailedRun,
    "PrefetchRequest": PrefetchRequest,
}


def check_signature(function: Callable[..., Any], takes: type, *, decorator: str) -> None:
    """Raise `RegistrationError` unless `function` can be called with one `takes` and returns."""
    where = f"{place_of(function)}: {name_of(function)}"
    _check_parameters(function, takes, where)
    _require_return(function)
    events = [type_ for type_ in _types_of(function) if _is_event(type_)]
    if events and takes not in events:
        raise RegistrationError(
            f"{where} takes {events[0].__name__}, but {decorator} calls it with {takes.__name__}."
        )


def _require_return(function: Callable[..., Any]) -> None:
    """Raise `RegistrationError` for a generator."""
    target = inspect.unwrap(_target(function))
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise RegistrationError(
            f"{place_of(function)}: {name_of(function)} yields; a handler must return."
        )


def _types_of(function: Callable[..., Any]) -> list[Any]:
    return [typing.get_origin(each) or each for each in _alternatives(_annotation_of(function))]


def _is_event(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, tuple(_EVENTS.values()))


def _check_parameters(function: Callable[..., Any], takes: type, where: str) -> None:
    signature = _signature_of(function)
    try:
        signature.bind(object())
    except TypeError:
        names = ", ".join(map(str, signature.parameters.values()))
        raise RegistrationError(
            f"{where}({names}) cannot be called with one {takes.__name__}. "
            f"Write it as {name_of(function)}(call: {takes.__name__})."
        ) from None


def _signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of a function; raises `RegistrationError` where it has none."""
    try:
        return inspect.signature(function)
    except ValueError:  # as of some built-in functions
        raise RegistrationError(
            f"{place_of(function)}: {name_of(function)} does not tell what it takes; wrap it in a "
            "function."
        ) from None


def metadata_model(function: Callable[..., Any], takes: type) -> type[BaseModel] | None:
    """Return `Model` for a function that takes a `PrefetchRequest[Model]`, or one or `None`.

    `takes` is the event of its decorator. Raises `RegistrationError` for metadata that is neither a
    model nor a dict.
    """
    for type_ in _alternatives(_annotation_of(function)):
        if typing.get_origin(type_) is takes:
            for metadata in _alternatives(typing.get_args(type_)[0]):
                if isinstance(metadata, type) and issubclass(metadata, BaseModel):
                    return metadata
                if not _is_mapping(metadata):
                    raise RegistrationError(
                        f"{place_of(function)}: {name_of(function)} takes metadata as "
                        f"{inspect.formatannotation(metadata)}; it is a dict of text, or read into "
                        f"a model of pydantic: {takes.__name__}[YourModel]."
                    )
    return None


def _is_mapping(metadata: Any) -> bool:
    origin = typing.get_origin(metadata) or metadata
    if origin is Any or typing.is_typeddict(origin) or not isinstance(origin, type):
        return True  # a dict with known names; any type; a type variable
    return issubclass(dict, origin)


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether calling `function` gives something to await."""
    return inspect.iscoroutinefunction(_target(function))


def name_of(function: Callable[..., Any]) -> str:
    """Return the name a function was written under."""
    inner = function.func if isinstance(function, functools.partial) else function
    return str(getattr(inner, "__name__", type(inner).__name__))


def place_of(function: Callable[..., Any]) -> str:
    """Return the file and line where a function is written, or its representation."""
    code = getattr(inspect.unwrap(_target(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function inside a partial or a callable object."""
    if isinstance(function, functools.partial):
        return _target(function.func)
    return function if inspect.isroutine(function) else type(function).__call__


def _annotation_of(function: Callable[..., Any]) -> Any:
    """Return the annotation of the first parameter, or None if it has none.

    Only this one is evaluated: the others may name what is imported only for type checkers. Raises
    `RegistrationError` for one that cannot be evaluated.
    """
    parameter = next(iter(inspect.signature(function).parameters.values()), None)
    if parameter is None or parameter.annotation is parameter.empty:
        return None
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return None
    return _evaluated_annotation(function, parameter)


def _evaluated_annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return the annotation of a parameter, also where it was written as text.

    Raises `RegistrationError` for one that cannot be evaluated.
    """
    try:
        return _evaluated(parameter.annotation, inspect.unwrap(_target(function)))
    except Exception as error:
        written = inspect.formatannotation(parameter.annotation)
        raise RegistrationError(
            f"{place_of(function)}: {name_of(function)} takes {parameter.name}: {written}, which "
            f"cannot be read: {error}. Correct the name, or import it where the program runs and "
            "not only `if TYPE_CHECKING:`; a model of a function stands before its handler."
        ) from None


def _evaluated(annotation: Any, target: Callable[..., Any]) -> Any:
    """Return an annotation with its names looked up where the function is written."""
    names = getattr(target, "__globals__", {})
    # `get_type_hints` also evaluates names that are text inside of `PrefetchRequest[...]`.
    holder = type("Holder", (), {"__annotations__": {"call": annotation}})
    local = {**_EVENTS, **vars(builtins), **names, **_enclosing_names(target)}
    hints = typing.get_type_hints(holder, globalns=names, localns=local, include_extras=True)
    return hints["call"]


def _enclosing_names(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the local names of the functions in the file of `target` that run at this moment.

    Those that enclose it are among them while it is registered.
    """
    code = getattr(target, "__code__", None)
    names: dict[str, Any] = {}
    frame: types.FrameType | None = sys._getframe()
    while frame is not None:
        if code is not None and frame.f_code.co_filename == code.co_filename:
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    return names


def _alternatives(annotation: Any) -> Iterator[Any]:
    """Yield the types that an annotation allows, except None: `X` of `X | None`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    elif origin in (typing.Union, types.UnionType):
        for each in typing.get_args(annotation):
            yield from _alternatives(each)
    elif annotation not in (None, types.NoneType):
        yield annotation


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
    _require_return(function)
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
        for each in _signature_of(function).parameters.values()
        if (each.annotation is each.empty and each.name == "call") or _takes_request(function, each)
    ]


def _takes_request(function: Callable[..., Any], each: inspect.Parameter) -> bool:
    if each.annotation is each.empty or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD):
        return False
    taken = _alternatives(_evaluated_annotation(function, each))
    return any((typing.get_origin(type_) or type_) is FunctionRequest for type_ in taken)


def _parameters(function: Callable[..., Any], *, besides: list[str]) -> Iterator[Parameter]:
    for each in _signature_of(function).parameters.values():
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
    annotation = _evaluated_annotation(function, each)
    try:
        if each.default is each.empty:
            return parameter(each.name, annotation)
        return parameter(each.name, annotation, each.default)
    except Exception as error:  # pydantic's own, for an annotation that it cannot use
        written = inspect.formatannotation(each.annotation)
        raise _error(function, f"takes {each.name}: {written}, but {error}.") from None
