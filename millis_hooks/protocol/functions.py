"""Functions of an agent: their schema, the requests that call them, and their arguments.

A model writes the arguments, so a number or a boolean may come as text. What does not fit is
refused in words that a model understands. Source: `Function` in Millis' OpenAPI file; how a POST
carries the arguments, and how metadata comes, is not documented: query, JSON and form are read.
"""

from __future__ import annotations

import json
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, time
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError

from ..exceptions import PayloadError
from .memory import Recall, Remembers
from .reading import Json, Problem, describe, identifier, object_in, read_json, read_query
from .test_marks import Received, State

#: Millis adds them to a request: no parameter may have such a name.
RESERVED = frozenset({"session_id", "metadata"})
#: The names of functions and parameters that Millis takes: a letter, then no spaces.
NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")

#: Characters of a value that a model is shown again.
_SHOWN_CHARS = 60
_ABSENT = frozenset({"", "null", "none"})
_MISSING: Any = object()
#: Raised for a value that is of another type, or in another form.
_MISFIT = PydanticCustomError("misfit", "another type or form")


class ArgumentsError(ValueError):
    """The arguments do not fit; the message is for the model that wrote them."""


class _Kind(NamedTuple):
    """How a type is called in Millis' schema, and in words to a model."""

    type: str
    words: str
    hint: str = ""
    #: What a value has to be for pydantic to see it.
    read: Callable[[Any], Any] = lambda value: value


def _text(value: object) -> object:
    return json.dumps(value) if isinstance(value, bool | int | float) else value


def _stripped(value: object) -> object:
    return value.strip() if isinstance(value, str) else value


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise _MISFIT
    return value


def _in_form(form: re.Pattern[str]) -> Callable[[object], object]:
    """Return a check of a time's form: pydantic takes any number for seconds since 1970."""

    def read(value: object) -> object:
        match = form.match(value.strip()) if isinstance(value, str) else None
        if match is None:
            raise _MISFIT
        return match[0]

    return read


_KINDS: Mapping[type, _Kind] = {
    str: _Kind("string", "a text", read=_text),
    bool: _Kind("boolean", "true or false", read=_stripped),
    int: _Kind("number", "a whole number", "A whole number.", _number),
    float: _Kind("number", "a number", read=_number),
    datetime: _Kind(
        "string",
        "a date and time as YYYY-MM-DDTHH:MM, such as 2026-12-31T19:30",
        "As YYYY-MM-DDTHH:MM.",
        _in_form(re.compile(r"\d{4}-\d\d-\d\d.*", re.ASCII)),
    ),
    date: _Kind(
        "string",
        "a date as YYYY-MM-DD, such as 2026-12-31",
        "As YYYY-MM-DD.",
        _in_form(re.compile(r"\d{4}-\d\d-\d\d(?=[T ]\d|\Z)", re.ASCII)),
    ),
    time: _Kind(
        "string",
        "a time as HH:MM, such as 19:30",
        "As HH:MM.",
        _in_form(re.compile(r"\d\d:\d\d.*", re.ASCII)),
    ),
}
_LENIENT = ConfigDict(allow_inf_nan=False)
#: Errors about a value of the right type, which pydantic words; others are told by `_Kind.words`.
_OF_LIMITS = re.compile(
    r"greater_than|less_than|multiple_of|too_(long|short)|pattern|(past|future)$|(value|assertion)_error"
)
_OWN_WORDS = re.compile("(Value error|Assertion failed), ")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A parameter of a function, as Millis and its model know it."""

    name: str
    description: str
    #: What stands for it where it is left out; `_MISSING` where it is required.
    default: Any = _MISSING
    is_nullable: bool = False
    kind: _Kind
    adapter: TypeAdapter[Any]

    @property
    def is_required(self) -> bool:
        """Whether a model has to give it."""
        return self.default is _MISSING

    def entry(self) -> dict[str, Json]:
        """Return it as an entry of `params`."""
        return {
            "name": self.name,
            "type": self.kind.type,
            "description": self.description,
            "required": self.is_required,
        }

    def read(self, sent: Mapping[str, Json]) -> Any:
        """Return its value; raises `ValueError` in words for a model."""
        value = sent.get(self.name)
        if self._is_absent(value):
            if not self.is_required:
                return self.default
            raise ValueError(f"{self.name} is missing, it should be {self.kind.words}")
        try:
            return self.adapter.validate_python(value)
        except ValidationError as error:
            detail = error.errors(include_url=False, include_input=False)[0]
            raise ValueError(f"{self.name}{self._why(detail)}, not {_shown(value)}") from None

    def _why(self, detail: ErrorDetails) -> str:
        message, is_own = _OWN_WORDS.subn("", detail["msg"])
        if not _OF_LIMITS.search(detail["type"]):
            return f" should be {self.kind.words}"
        return f": {message}" if is_own else f" {message.partition(' ')[2]}"

    def _is_absent(self, value: Json) -> bool:
        if not isinstance(value, str):
            return value is None
        if self.kind is not _KINDS[str]:
            return value.strip().lower() in _ABSENT
        return self.is_nullable and value == "null"


def _shown(value: Json) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    short = text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"
    return f'"{short}"' if isinstance(value, str) else short


def parameter(name: str, annotation: Any, default: Any = _MISSING) -> Parameter:
    """Return a parameter by its annotation; raises `ValueError` for one that no model can fill."""
    type_, notes = _unwrapped(annotation)
    is_nullable = _is_nullable(annotation)
    kind, choices = _kind_of(type_)
    whole: Any = Annotated[(type_, *notes, BeforeValidator(choices or kind.read))]
    adapter: TypeAdapter[Any] = TypeAdapter(whole, config=_LENIENT)
    if is_nullable and default is _MISSING:
        default = None
    if default is not _MISSING and default is not None:
        try:
            TypeAdapter(type_).validate_python(default, strict=True)
        except ValidationError:
            raise ValueError(f"its default {default!r} is of another type") from None
    return Parameter(
        name=name,
        description=_description(name, notes, kind, default),
        default=default,
        is_nullable=is_nullable or default is None,
        kind=kind,
        adapter=adapter,
    )


def _unwrapped(annotation: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return the one type of an annotation, without None, and what `Annotated` says beside it."""
    notes: tuple[Any, ...] = ()
    while True:
        origin = typing.get_origin(annotation)
        if origin is Annotated:
            annotation, *more = typing.get_args(annotation)
            notes = (*notes, *more)
        elif origin in (typing.Union, types.UnionType):
            others = [each for each in typing.get_args(annotation) if each is not types.NoneType]
            if len(others) != 1:
                raise ValueError("give it one type, or one type and None")
            annotation = others[0]
        elif hasattr(annotation, "__value__") or hasattr(annotation, "__supertype__"):
            annotation = getattr(annotation, "__value__", None) or annotation.__supertype__
        else:
            return annotation, notes


def _is_nullable(annotation: Any) -> bool:
    args = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return _is_nullable(args[0])
    if hasattr(annotation, "__value__"):
        return _is_nullable(annotation.__value__)
    return types.NoneType in args or None in args


def _kind_of(type_: Any) -> tuple[_Kind, Callable[[object], object] | None]:
    """Return the kind of a type, and what reads one of its choices if these are all there are."""
    if typing.get_origin(type_) is Literal:
        values = [value for value in typing.get_args(type_) if value is not None]
        return _choice({_as_text(value): value for value in values})
    if isinstance(type_, type) and issubclass(type_, Enum):
        names = {member.name: member for member in type_}
        return _choice({_as_text(member): member for member in type_}, also=names)
    if isinstance(type_, type) and type_ in _KINDS:
        return _KINDS[type_], None
    known = ", ".join(each.__name__ for each in _KINDS)
    raise ValueError(f"a model can fill {known}, Literal, an Enum, and one of these or None")


def _choice(
    choices: Mapping[str, object], *, also: Mapping[str, object] | None = None
) -> tuple[_Kind, Callable[[object], object]]:
    if not choices:
        raise ValueError("it has no value to choose")
    by_text = {_folded(text): value for text, value in {**(also or {}), **choices}.items()}

    def read(value: object) -> object:
        text = _as_text(value)
        choice = choices.get(text, by_text.get(_folded(text), _MISSING))
        if choice is _MISSING:
            raise _MISFIT
        return choice

    listed = ", ".join(choices)
    return _Kind("string", f"one of {listed}", f"One of: {listed}."), read


def _as_text(value: object) -> str:
    value = value.value if isinstance(value, Enum) else value
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # JSON has one kind of number
    return value if isinstance(value, str) else str(_text(value))


def _folded(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


def _description(name: str, notes: tuple[Any, ...], kind: _Kind, default: Any) -> str:
    """Return what the model is told: the team's words, the form of a value, and its default."""
    words = next(filter(None, map(_words_of, notes)), name.replace("_", " ").capitalize())
    has_default = default is not _MISSING and default is not None
    ending = f"{_as_text(default)} by default." if has_default else ""
    more = [each for each in (kind.hint, ending) if each]
    return " ".join([words.rstrip(".") + ".", *more]) if more else words


def _words_of(note: Any) -> str | None:
    if isinstance(note, str):
        return note.strip()
    described = note.description if isinstance(note, FieldInfo) else None
    return described or getattr(note, "documentation", None)


Method = Literal["POST", "GET"]
ResponseMode = Literal["strict", "flexible"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A function as Millis knows it: an entry of an agent's `tools`, without address and header."""

    name: str
    description: str
    parameters: tuple[Parameter, ...] = ()
    #: The function's parameter that takes the request, if it has one.
    takes_request: str | None = None
    timeout_s: float
    method: Method = "POST"
    #: Millis' own switches, under its names, as far as they are set.
    switches: Mapping[str, Json] = field(default_factory=dict)

    @property
    def names(self) -> frozenset[str]:
        """The names of its parameters."""
        return frozenset(each.name for each in self.parameters)

    def entry(self) -> dict[str, Json]:
        """Return the entry. Millis waits a second longer than the function may take."""
        return {
            "name": self.name,
            "description": self.description,
            "params": [each.entry() for each in self.parameters],
            "method": self.method,
            "timeout": math.ceil(self.timeout_s) + 1,
            **self.switches,
        }

    def read(self, sent: Mapping[str, Json]) -> dict[str, Any]:
        """Return the arguments by name; raises `ArgumentsError`, which names all that is wrong."""
        arguments, wrong = {}, []
        for each in self.parameters:
            try:
                arguments[each.name] = each.read(sent)
            except ValueError as error:
                wrong.append(str(error))
        if wrong:
            raise ArgumentsError(f"{'; '.join(wrong)}. Correct this and call {self.name} again.")
        return arguments


@dataclass(kw_only=True, slots=True)
class FunctionRequest(Received[State], Remembers, Generic[State]):
    """A call of a function by an agent, while it talks.

    `arguments` are read, `metadata` is whatever else came: that of the session, if Millis sends it.
    """

    name: str
    session_id: str | None = None
    agent_id: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Json] = field(default_factory=dict)
    #: What could not be read.
    problems: list[Problem] = field(default_factory=list)
    #: Every field as it was sent.
    raw: dict[str, Json] = field(default_factory=dict)
    _state: Any = field(default=None, repr=False, compare=False)
    _source: str | None = field(default=None, repr=False)
    _dry_run: bool = field(default=False, repr=False)
    _recall: Recall | None = field(default=None, repr=False, compare=False)

    @classmethod
    def parse(
        cls,
        name: str,
        query: bytes,
        body: bytes = b"",
        content_type: str | None = None,
        *,
        parameters: typing.Container[str] = (),
        agent_id: str | None = None,
    ) -> FunctionRequest[Any]:
        """Read a request; never raises.

        A field of the body counts before one of the query, the first of those that repeat before
        the others, and a parameter before metadata of its name. `agent_id` is that of the secret,
        if it is bound to one.
        """
        problems: list[Problem] = []
        raw = _first_of(read_query(query, problems)) | read_body(body, content_type, problems)
        metadata = {
            key: value
            for key, value in (object_in(raw.get("metadata")) | raw).items()
            if key not in RESERVED and key != "agent_id" and key not in parameters
        }
        return cls(
            name=name,
            session_id=identifier(raw.get("session_id")),
            agent_id=agent_id or identifier(raw.get("agent_id")),
            metadata=metadata,
            problems=problems,
            raw=raw,
        )


def _first_of(pairs: list[tuple[str, str]]) -> dict[str, Json]:
    fields: dict[str, Json] = {}
    for name, value in pairs:
        fields.setdefault(name, value)
    return fields


def read_body(body: bytes, content_type: str | None, problems: list[Problem]) -> dict[str, Json]:
    """Return the fields of a body by what it is: JSON, or else a form."""
    if not body.strip():
        return {}
    try:
        value = read_json(body)
        value = read_json(value) if isinstance(value, str) else value
    except PayloadError as error:
        if "form-urlencoded" in (content_type or "").lower() or _FORM.match(body):
            return _first_of(read_query(body.strip(), problems))
        problems.append(Problem("body", str(error), "send JSON, or a form"))
        return {}
    if isinstance(value, dict):
        return value
    problems.append(Problem("body", describe(value), "an object of names and values is due"))
    return {}


_FORM = re.compile(rb"\s*[\w.%+-]+=")
