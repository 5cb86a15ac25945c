"""Tolerant reading of JSON, query strings and fields from untrusted senders.

Models lose a field that cannot be read, not the whole message: it becomes its default and a
`Problem`. The fields of Millis are in `events`.
"""

from __future__ import annotations

import gc
import json
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any, ClassVar, TypeAlias, cast, get_args, get_origin
from urllib.parse import unquote_to_bytes, urlsplit

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    create_model,
    field_validator,
)
from pydantic_core import ErrorDetails, PydanticUseDefault, from_json, to_json
from typing_extensions import TypeVar

from ..exceptions import PayloadError
from .parts import MOST, MOST_TOOL_CALLS, PIECE, Note, count_parts, decoded, within_limits

#: Any JSON value.
Json: TypeAlias = JsonValue

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Problem:
    """A field that could not be read, described without its value."""

    field: str  # the wire's name; `chat[].content` for a field of a list's items
    found: str
    why: str

    def __str__(self) -> str:
        return f"{self.field}: {self.found}; {self.why}"


#: Limit of listed problems of one payload; others are counted.
MOST_PROBLEMS = 50
#: The field of a problem that concerns no single field.
_WHOLE = "the whole"
#: Limit of the parts in all JSON texts of one payload.
_PARTS_IN_TEXTS = 100_000


class Reading:
    """The problems found while a payload is read, and how many more parts may become objects."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._unlisted = 0
        self._room = {**MOST, "tool_calls": MOST_TOOL_CALLS}
        self._room_in_texts = _PARTS_IN_TEXTS

    def note(self, field: str, found: str, why: str) -> None:
        """Add a problem, or count it if many are listed already."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(Problem(field[:_FIELD_CHARS] or _WHOLE, found, why[:_WHY_CHARS]))
        else:
            self._unlisted += 1

    def note_left_out(self, field: str, found: str, why: str) -> None:
        """Add, before all others and once for each field, that parts of it are not read."""
        if all((each.field, each.why) != (field, why) for each in self.problems):
            self.problems.insert(0, Problem(field or _WHOLE, found, why))

    def first(self, field: str, items: list[Any]) -> list[Any]:
        """Return as many items of a list as there is room for."""
        room = self._room.get(field, len(items))
        if len(items) > room:
            most = MOST.get(field, MOST_TOOL_CALLS)
            of_all = " of all" if field not in MOST else ""
            self.note_left_out(field, describe(items), f"the first {most:,}{of_all} are read")
        if field in self._room:
            self._room[field] -= min(room, len(items))
        return items[:room]

    def take_text(self, text: str) -> None:
        """Make room for the JSON in a text. Raises `ValueError` where too much came as text."""
        self._room_in_texts -= count_parts(text)
        if self._room_in_texts < 0:
            raise ValueError("Too much JSON came as text")

    def close(self) -> list[Problem]:
        """Return all problems; the last says how many are not listed."""
        if self._unlisted:
            found = f"{self._unlisted:,} more problems"
            self.problems.append(Problem(_WHOLE, found, f"the first {MOST_PROBLEMS} are listed"))
            self._unlisted = 0
        return self.problems


_FIELD_CHARS, _WHY_CHARS = 100, 300


def describe(value: object) -> str:
    """Describe a JSON value by type and size, without its content."""
    match value:
        case None:
            return "null"
        case bool():
            return f"the boolean {str(value).lower()}"
        case int() | float():
            return f"the number {value:.6g}" if abs(value) < 1e6 else "a large number"
        case str():
            return f"a string of {_counted(value, 'character')}" if value else "an empty string"
        case list():
            return f"a list of {_counted(value, 'item')}"
        case dict():
            return f"an object with {_counted(value, 'key')}"
    return "no JSON value"


def _counted(things: str | list[Any] | dict[str, Any], noun: str) -> str:
    return f"{len(things):,} {noun}" + ("" if len(things) == 1 else "s")


def _ignored(field: str, found: str, why: str) -> None:
    """Ignore omitted parts."""


def read_json(body: bytes | str, left_out: Note = _ignored) -> Json:
    """Read any JSON there is a way to read: UTF-16, a byte order mark, bytes of another encoding,
    lone surrogates, NaN.

    What is returned can be written as JSON again: bytes that are not UTF-8 and lone surrogates are
    U+FFFD, numbers that are not finite are null. Of a name that repeats in an object the last value
    counts. Of absurdly many parts the first are read, and `left_out` is told of the others. Raises
    `PayloadError`, and nothing else, for what cannot be read.
    """
    value = read_any_json(body, left_out)
    # 1e999 becomes an infinity all the same; to write and look is faster than to walk.
    return _finite(value) if b"Infinity" in to_json(value, inf_nan_mode="constants") else value


def read_any_json(body: bytes | str, left_out: Note = _ignored) -> Json:
    """Read as `read_json` does, in half the time; infinite numbers stay."""
    with collecting_nothing(if_needed=len(body) > LARGE_BYTES):
        body = within_limits(body, left_out)
        try:
            return cast("Json", from_json(body, allow_inf_nan=False))
        except ValueError:
            return _read_odd_json(body)


#: Larger bodies are read away from the serving loop, in bytes.
LARGE_BYTES = 256 * 1024


@contextmanager
def collecting_nothing(*, if_needed: bool = True) -> Iterator[None]:
    """Pause the garbage collector while much is read: it would traverse what has grown again and
    again, which for a large value takes several times as long as reading."""
    pauses = if_needed and gc.isenabled()
    if pauses:
        gc.disable()
    try:
        yield
    finally:
        if pauses:
            gc.enable()


def _read_odd_json(body: bytes | str) -> Json:
    """Read JSON that breaks the standard, in linear time."""
    try:
        # Written and read again it has no lone surrogates: faster than to look at each text.
        plain = _joined(json.dumps(_loads(body), ensure_ascii=False, check_circular=False))
    except RecursionError:
        raise PayloadError("nested too deeply") from None
    except ValueError as error:
        raise PayloadError(f"not JSON: {error}" if body.strip() else "the body is empty") from None
    try:
        return cast("Json", from_json(plain))
    except ValueError:  # the only thing that `json` has no limit for
        raise PayloadError("nested too deeply") from None


def _loads(body: bytes | str) -> Any:
    text = body if isinstance(body, str) else _decoded(body)
    return json.loads(text, parse_constant=lambda _name: None, parse_int=_whole_number)


def _whole_number(digits: str) -> int | None:
    """Return a number; None, as for one that is not finite, where it has more digits than Python
    reads."""
    return int(digits) if len(digits) <= _MOST_DIGITS else None


_MOST_DIGITS = 4_300


def _decoded(body: bytes) -> str:
    """Return the text; each byte that is none becomes U+FFFD.

    Surrogates that are encoded one by one, as Java does, are kept to be joined: where there may be
    a million of them that takes seconds, so not in a large body.
    """
    encoding = json.detect_encoding(body)
    if len(body) <= LARGE_BYTES:
        with suppress(UnicodeDecodeError):
            return body.decode(encoding, "surrogatepass")
    return decoded(body, encoding)


def _finite(value: Json) -> Json:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return value


def _joined(text: str) -> str:
    """Join surrogates that pair up and replace those that do not."""
    with suppress(UnicodeEncodeError):
        text.encode()
        return text
    return "".join(map(_joined_piece, _pieces(text)))


def _joined_piece(text: str) -> str:
    return _LONE.sub("\ufffd", text).encode("utf-16", "surrogatepass").decode("utf-16")


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces, and no pair of surrogates."""
    at = 0
    while at < len(text):
        end = at + PIECE
        end += _PAIR.match(text, end - 1) is not None
        yield text[at:end]
        at = end


_PAIR = re.compile(r"[\ud800-\udbff][\udc00-\udfff]")

#: Replaced beforehand: a decoder takes four times as long for each.
_LONE = re.compile(r"[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]")


class WireModel(BaseModel):
    """A part of a payload: fields that cannot be read are reported and left out.

    Problems are noted in the `Reading` given as the validation's context, where one is given.
    """

    model_config = ConfigDict(
        extra="allow", populate_by_name=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    _where: ClassVar[str] = ""  # how the path to this part's fields begins

    @field_validator("*", mode="wrap")
    @classmethod
    def _tolerate(
        cls, value: object, handler: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> object:
        try:
            return handler(value)
        except ValidationError as error:
            spec = cls.model_fields[cast("str", info.field_name)]
            if spec.is_required():
                raise
            if value is not None:  # null says that there is nothing to read
                _report(info, f"{cls._where}{spec.alias or info.field_name}", value, _why(error))
            raise PydanticUseDefault from None


def _report(info: ValidationInfo, name: str, value: object, why: str) -> None:
    """Note a problem in the `Reading` that validation was given as its context, if it was."""
    if isinstance(info.context, Reading):
        info.context.note(name, describe(value), why)


def _why(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return first["msg"].removeprefix("Value error, ")


def _unwrap(value: object, info: ValidationInfo) -> object:
    """Read JSON that came inside a JSON string; empty text is null."""
    if not isinstance(value, str):
        return value
    if isinstance(info.context, Reading):
        info.context.take_text(value)
    try:
        return read_json(value) if value.strip() else None
    except PayloadError as error:
        raise ValueError(str(error)) from None


def _objects(value: object, info: ValidationInfo) -> object:
    """Leave out of a list what is not an object, so that it takes nothing else with it, and what is
    too much."""
    items = _unwrap(value, info)
    if items is None:
        return []
    if not isinstance(items, list):
        return items
    if isinstance(info.context, Reading):
        items = info.context.first(str(info.field_name), items)
    for item in items:
        if not isinstance(item, dict):
            _report(info, f"{info.field_name}[]", item, "Input should be an object")
    return [item for item in items if isinstance(item, dict)]


def _object(value: object, info: ValidationInfo) -> object:
    unwrapped = _unwrap(value, info)
    if unwrapped is None:
        return {}
    most = MOST.get(str(info.field_name))
    if most is None or not isinstance(unwrapped, dict) or len(unwrapped) <= most:
        return unwrapped
    if isinstance(info.context, Reading):
        info.context.note_left_out(
            str(info.field_name), describe(unwrapped), f"the first {most:,} are read"
        )
    return dict(islice(unwrapped.items(), most))


def not_bool(value: object) -> object:
    """Refuse a boolean, which Python would take for the number 0 or 1."""
    if isinstance(value, bool):
        raise ValueError("Input should be a number, not a boolean")
    return value


# The types of fields. Where a list or an object is due, its JSON text will do.
Items: TypeAlias = Annotated[list[Item], BeforeValidator(_objects)]
Object: TypeAlias = Annotated[dict[str, SkipValidation[Json]], BeforeValidator(_object)]
MaybeObject: TypeAlias = Annotated[dict[str, SkipValidation[Json]] | None, BeforeValidator(_unwrap)]
#: No figure of a call is larger, and sums of many such ones are still numbers to any database.
MAX_FIGURE = 10**12
Number: TypeAlias = Annotated[
    Annotated[float, Field(ge=-MAX_FIGURE, le=MAX_FIGURE)] | None, BeforeValidator(not_bool)
]
Seconds: TypeAlias = Annotated[
    Annotated[float, Field(ge=0, le=MAX_FIGURE)] | None, BeforeValidator(not_bool)
]
Count: TypeAlias = Annotated[
    Annotated[int, Field(ge=0, le=MAX_FIGURE)] | None, BeforeValidator(not_bool)
]

_MAX_IDENTIFIER_CHARS = 255


def identifier(value: object) -> str | None:
    """Return an id as text; None for what cannot be one."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
        value = str(value)
    if not isinstance(value, str) or len(value) > _MAX_IDENTIFIER_CHARS:
        return None
    return value.strip() or None


def finite(value: object) -> float | None:
    """Return a number as a float; None for what is none, or larger than any figure of a call."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) <= MAX_FIGURE else None


#: 5138-11-16 in seconds and 1973-03-03 in milliseconds: no call is near either.
_MILLISECONDS_FROM = 1e11
_EARLIEST = datetime(2000, 1, 1, tzinfo=UTC)
_LATEST = datetime(2100, 1, 1, tzinfo=UTC)


def utc_time(ts: float | str | None) -> datetime | None:
    """Read Unix seconds, milliseconds or ISO 8601; None for what is not a time a call can have."""
    if ts is None:
        return None
    try:
        seconds = float(ts)
    except ValueError:
        return _iso_time(cast("str", ts))
    if abs(seconds) > _MILLISECONDS_FROM:
        seconds /= 1000
    plausible = _EARLIEST.timestamp() <= seconds < _LATEST.timestamp()
    return datetime.fromtimestamp(seconds, UTC) if plausible else None


def _iso_time(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text.strip())
        moment = moment.replace(tzinfo=moment.tzinfo or UTC).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return moment if _EARLIEST <= moment < _LATEST else None


#: What nearly all addresses are like; to take others apart takes ten times as long.
_PLAIN_URL = re.compile(r"https?://[a-z0-9.-]+/[A-Za-z0-9._~/+=-]*")


def web_url(url: str) -> str | None:
    """Return the address if a page may link to it: `http` or `https`, and nothing hidden in it."""
    if _PLAIN_URL.fullmatch(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    plain = url.isprintable() and " " not in url
    return url if plain and parts.scheme in {"http", "https"} and parts.netloc else None


def takes_list(model: type[BaseModel], name: str) -> bool:
    """Tell whether the field that reads this name is a list, or may be one."""
    for field_name, spec in model.model_fields.items():
        if name in (spec.validation_alias, field_name):
            options = (spec.annotation, *get_args(spec.annotation))
            return any((get_origin(option) or option) in (list, set, tuple) for option in options)
    return False


def read_model(model: type[Model], values: dict[str, Any]) -> tuple[Model, list[Problem]]:
    """Return the model of what fits and the problems of what does not.

    A field whose value does not fit has its default, and None where it has none. Where it is a
    validator of the whole model that refuses the rest, every field does.
    """
    try:
        return model.model_validate(values), []
    except ValidationError as error:
        problems = [_mismatch(detail, values) for detail in error.errors(include_url=False)]
    misfits = {problem.field for problem in problems}
    lenient = _without_required(model)
    try:
        fitting = {name: value for name, value in values.items() if name not in misfits}
        return lenient.model_validate(fitting), problems
    except ValidationError:
        return lenient.model_construct(), problems


def _mismatch(detail: ErrorDetails, values: Mapping[str, Any]) -> Problem:
    name = str(detail["loc"][0]) if detail["loc"] else "metadata"
    found = describe(values[name]) if name in values else "nothing"
    return Problem(name[:_FIELD_CHARS], found, detail["msg"][:_WHY_CHARS])


@lru_cache(maxsize=256)
def _without_required(model: type[Model]) -> type[Model]:
    """Return a subclass in which None is the default of every field that had none."""
    optional: dict[str, Any] = {
        name: (Annotated[spec.annotation, spec], None)
        for name, spec in model.model_fields.items()
        if spec.is_required()
    }
    return create_model(model.__name__, __base__=model, __module__=model.__module__, **optional)


_MAX_FIELDS = 1000


def read_query(query: bytes, problems: list[Problem]) -> list[tuple[str, str]]:
    """Split a query string; `urllib.parse.parse_qsl` takes three times as long for the same."""
    pairs = query.decode("utf-8", "replace").split("&", _MAX_FIELDS)
    if len(pairs) > _MAX_FIELDS:
        problems.append(Problem("query", f"more than {_MAX_FIELDS} fields", "the rest is left out"))
        del pairs[_MAX_FIELDS:]
    fields = []
    for pair in pairs:
        name, _, value = pair.partition("=")
        if pair:
            fields.append((_unescape(name), _unescape(value)))
    return fields


def _unescape(text: str) -> str:
    # `unquote_plus` takes twice as long: it looks for what is not ASCII, which stays as it is here.
    spaced = text.replace("+", " ")
    return unquote_to_bytes(spaced).decode("utf-8", "replace") if "%" in spaced else spaced
