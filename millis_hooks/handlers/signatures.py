"""What can be told of a function before it is called: its name, its place, what it takes."""

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
from ..protocol.events import EndOfCall, PrefetchRequest
from .failed_runs import ParkedRun

#: What handlers take; known by name also where it is imported for type checkers alone.
_OUR_OWN: Mapping[str, type] = {
    "EndOfCall": EndOfCall, "ParkedRun": ParkedRun, "PrefetchRequest": PrefetchRequest
}  # fmt: skip


def check_signature(function: Callable[..., Any], takes: type, *, decorator: str) -> None:
    """Raise `RegistrationError` unless `function` can be called with one `takes` and returns."""
    where = f"{place_of(function)}: {name_of(function)}"
    _check_parameters(function, takes, where)
    target = inspect.unwrap(_target(function))
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise RegistrationError(f"{where} yields; a handler must return.")
    options = [typing.get_origin(each) or each for each in _options(_annotation_of(function))]
    _check_options(options, where)
    ours = [option for option in options if option in _OUR_OWN.values()]
    if ours and takes not in ours:
        raise RegistrationError(
            f"{where} takes {ours[0].__name__}, but {decorator} calls it with {takes.__name__}."
        )


def _check_options(options: list[Any], where: str) -> None:
    """Raise `RegistrationError` for what no handler is given, or what cannot be read."""
    for option in options:
        if isinstance(option, typing.ForwardRef):
            raise RegistrationError(
                f"{where} takes {option.__forward_arg__!r}, a name as text within another type, "
                "which cannot be read: write the type itself."
            )
        base = _our_base_of(option)
        if base is not None and base is not option:
            raise RegistrationError(
                f"{where} takes {option.__name__}, but a handler is given {base.__name__} itself, "
                f"never a subclass of it: write {base.__name__}."
            )


def _our_base_of(option: Any) -> type | None:
    if not isinstance(option, type):
        return None
    return next((ours for ours in _OUR_OWN.values() if issubclass(option, ours)), None)


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
    """Return `Model` for a function that takes a `PrefetchRequest[Model]`, or one or `None`.

    Raises `RegistrationError` for metadata that is neither a model nor a dict.
    """
    for option in _options(_annotation_of(function)):
        if typing.get_origin(option) is PrefetchRequest:
            for metadata in _options(typing.get_args(option)[0]):
                if isinstance(metadata, type) and issubclass(metadata, BaseModel):
                    return metadata
                if not _is_mapping(metadata):
                    raise RegistrationError(
                        f"{place_of(function)}: {name_of(function)} takes metadata as "
                        f"{inspect.formatannotation(metadata)}; it is a dict of text, or read into "
                        "a model of pydantic: PrefetchRequest[YourModel]."
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
    behind = function.func if isinstance(function, functools.partial) else function
    return str(getattr(behind, "__name__", type(behind).__name__))


def place_of(function: Callable[..., Any]) -> str:
    """Return the file and line where a function is written, or what can be said instead."""
    code = getattr(inspect.unwrap(_target(function)), "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(function)


def _annotation_of(function: Callable[..., Any]) -> Any:
    """Return what the first parameter is annotated with, or None if it is not.

    Only this one annotation is read: what the function returns may stand for nothing at run time.
    Raises `RegistrationError` for one that cannot be read.
    """
    parameter = next(iter(inspect.signature(function).parameters.values()), None)
    if parameter is None or parameter.annotation is parameter.empty:
        return None
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        return None
    try:
        return _resolved(parameter.annotation, inspect.unwrap(_target(function)))
    except Exception as error:
        written = inspect.formatannotation(parameter.annotation)
        raise RegistrationError(
            f"{place_of(function)}: {name_of(function)} takes {parameter.name}: {written}, which "
            f"cannot be read: {error}. Correct the name, or import it where the program runs and "
            "not only `if TYPE_CHECKING:`; a model of a function stands before its handler."
        ) from None


def _resolved(annotation: Any, target: Callable[..., Any]) -> Any:
    """Return an annotation with the names in it looked up where the function was written."""
    names = getattr(target, "__globals__", {})
    # `get_type_hints` also finds names that are written as text inside of `PrefetchRequest[...]`.
    holder = type("Holder", (), {"__annotations__": {"call": annotation}})
    local = {**_OUR_OWN, **vars(builtins), **names, **_names_around(target)}
    return typing.get_type_hints(holder, globalns=names, localns=local)["call"]


def _names_around(target: Callable[..., Any]) -> dict[str, Any]:
    """Return the names of the functions and classes that a function is written in.

    They are at work while it is registered; what the function itself mentions, it has kept.
    """
    code = getattr(target, "__code__", None)
    if code is None:
        return {}
    names: dict[str, Any] = {}
    frame: types.FrameType | None = sys._getframe()
    around = [code.co_qualname.rpartition(".")[0].removesuffix(".<locals>")]
    while "." in around[-1]:
        around.append(around[-1].rpartition(".")[0].removesuffix(".<locals>"))
    while frame is not None:
        if frame.f_code.co_filename == code.co_filename and frame.f_code.co_qualname in around:
            names = {**frame.f_locals, **names}
        frame = frame.f_back
    kept = zip(code.co_freevars, getattr(target, "__closure__", None) or (), strict=False)
    return names | {name: cell.cell_contents for name, cell in kept if _is_set(cell)}


def _is_set(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018 - it raises where there is nothing yet
    except ValueError:
        return False
    return True


def _options(annotation: Any) -> Iterator[Any]:
    """Yield what an annotation lets through: `X` of `X | None`, and of whatever stands for `X`."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        behind: tuple[Any, ...] = typing.get_args(annotation)[:1]
    elif origin in (typing.Union, types.UnionType):
        behind = typing.get_args(annotation)
    else:
        behind = _stands_for(annotation)
    for option in behind:
        yield from _options(option)
    if not behind and annotation not in (None, types.NoneType):
        yield annotation


def _stands_for(annotation: Any) -> tuple[Any, ...]:
    """Return what an alias, a new type or a type variable stands for; nothing for other types."""
    constraints = getattr(annotation, "__constraints__", None)
    if constraints:
        return tuple(constraints)
    names = ("__value__", "__supertype__", "__bound__")
    found = (getattr(annotation, name, None) for name in names)
    return tuple(each for each in found if each is not None)[:1]


def _target(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function behind a partial or behind an object that can be called."""
    if isinstance(function, functools.partial):
        return _target(function.func)
    return function if inspect.isroutine(function) else type(function).__call__
