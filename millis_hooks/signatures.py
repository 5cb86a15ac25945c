"""What can be told of a function before it is called: its name, its place, what it takes."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel

from .events import EndOfCall, PrefetchRequest
from .exceptions import RegistrationError
from .parked import ParkedRun


def check_signature(function: Callable[..., Any], takes: type, *, decorator: str) -> None:
    """Raise `RegistrationError` unless `function` can be called with one `takes` and returns."""
    where = f"{place_of(function)}: {name_of(function)}"
    _check_parameters(function, takes, where)
    target = inspect.unwrap(_target(function))
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise RegistrationError(f"{where} yields; a handler must return.")
    annotation = _annotation_of(function)
    origin = typing.get_origin(annotation) or annotation
    if origin in (EndOfCall, ParkedRun, PrefetchRequest) and origin is not takes:
        raise RegistrationError(
            f"{where} takes {origin.__name__}, but {decorator} calls it with {takes.__name__}."
        )


def _check_parameters(function: Callable[..., Any], takes: type, where: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # as of some built-in functions
        raise RegistrationError(
            f"{where} does not tell what it takes; wrap it in a function."
        ) from None
    try:
        signature.bind(object())
    except TypeError:
        names = ", ".join(map(str, signature.parameters.values()))
        raise RegistrationError(
            f"{where}({names}) cannot be called with one {takes.__name__}. "
            f"Write it as {name_of(function)}(call: {takes.__name__})."
        ) from None


def metadata_model(function: Callable[..., Any]) -> type[BaseModel] | None:
    """Return `Model` for a function that takes a `PrefetchRequest[Model]`."""
    for argument in typing.get_args(_annotation_of(function)):
        if isinstance(argument, type) and issubclass(argument, BaseModel):
            return argument
    return None


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether calling `function` gives something to await."""
    return inspect.iscoroutinefunction(_target(function))


def name_of(function: Callable[..., Any]) -> str:
    """Return the name a function was written under."""
    behind = function.func if isinstance(function, functools.partial) else function
    return str(getattr(behind, "__name__", type(behind).__name__))


def place_of(function: Callable[..., Any]) -> str:
    """Return the file and line where a function is written, or what can be said instead."""
    code = getattr(inspect.unwrap(_target(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _annotation_of(function: Callable[..., Any]) -> Any:
    """Return what the first parameter is annotated with, or None if that cannot be told."""
    try:
        hints = typing.get_type_hints(_target(function))
        first = next(iter(inspect.signature(function).parameters))
    except (NameError, TypeError, StopIteration):
        return None
    return hints.get(first)


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind a partial or behind an object that can be called."""
    if isinstance(function, functools.partial):
        return _target(function.func)
    return function if inspect.isroutine(function) else type(function).__call__
