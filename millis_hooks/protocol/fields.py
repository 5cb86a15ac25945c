"""The fields of a payload: one that cannot be read becomes its default and a `Problem`, and the
others stay. Also metadata, read into a model of the team's, and written as text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import islice, zip_longest
from typing import Annotated, Any, ClassVar, Self, TypeAlias, get_args, get_origin

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    SkipValidation,
    ValidationError,
    ValidationInfo,
    create_model,
    model_validator,
)
from pydantic_core import ErrorDetails
from typing_extensions import TypeVar

from ..exceptions import PayloadError
from .reading import (
    MAX_FIGURE,
    MOST,
    MOST_TOOL_CALLS,
    Json,
    Problem,
    count_parts,
    describe,
    read_json,
)

Model = TypeVar("Model", bound=BaseModel)
Item = TypeVar("Item", bound=BaseModel)

#: Limit of listed problems of one payload; others are counted.
MOST_PROBLEMS = 50
#: The field of a problem that concerns no single field.
_WHOLE = "the whole"
#: Limit of the parts in all JSON texts of one payload.
_PARTS_IN_TEXTS = 100_000


_Mark: TypeAlias = tuple[list[Problem], int, dict[str, int], int]


class Reading:
    """The problems found while a payload is read, and how many more parts may become objects.

    Its lists are replaced and never changed, so a mark costs nothing.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._unlisted = 0
        self._room = {**MOST, "tool_calls": MOST_TOOL_CALLS}
        self._room_in_texts = _PARTS_IN_TEXTS

    def note(self, field: str, found: str, why: str) -> None:
        """Add a problem, or count it if many are listed already."""
        if len(self.problems) < MOST_PROBLEMS:
            problem = Problem(field[:_FIELD_CHARS] or _WHOLE, found, why[:_WHY_CHARS])
            self.problems = [*self.problems, problem]
        else:
            self._unlisted += 1

    def mark(self) -> _Mark:
        """Return where the reading is, to `go_back` to."""
        return self.problems, self._unlisted, self._room, self._room_in_texts

    def go_back(self, mark: _Mark) -> None:
        """Take back what was noted and counted since then."""
        self.problems, self._unlisted, self._room, self._room_in_texts = mark

    def note_left_out(self, field: str, found: str, why: str) -> None:
        """Add, before all others and once for each field, that parts of it are not read."""
        if all((each.field, each.why) != (field, why) for each in self.problems):
            self.problems = [Problem(field or _WHOLE, found, why), *self.problems]

    def first(self, field: str, items: list[Any]) -> list[Any]:
        """Return as many items of a list as there is room for."""
        room = self._room.get(field, len(items))
        if len(items) > room:
            most = MOST.get(field, MOST_TOOL_CALLS)
            of_all = " of all" if field not in MOST else ""
            self.note_left_out(field, describe(items), f"the first {most:,}{of_all} are read")
        if items and field in self._room:
            self._room = {**self._room, field: room - min(room, len(items))}
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


class WireModel(BaseModel):
    """A part of a payload: fields that cannot be read are reported and left out.

    Problems are noted in the `Reading` given as the validation's context, where one is given.
    """

    model_config = ConfigDict(
        extra="allow", populate_by_name=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    _where: ClassVar[str] = ""  # how the path to this part's fields begins

    @model_validator(mode="wrap")
    @classmethod
    def _tolerate(
        cls, value: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        """Read all fields at once, and only where that fails, again without those that fail."""
        reading = info.context if isinstance(info.context, Reading) else Reading()
        mark = reading.mark()
        try:
            return handler(value)
        except ValidationError as error:
            misfits = _first_errors(error)
            if not isinstance(value, dict) or not misfits.keys() <= value.keys() - cls._required():
                raise
        reading.go_back(mark)
        for name, why in misfits.items():
            if value[name] is not None:  # null says that there is nothing to read
                reading.note(f"{cls._where}{name}", describe(value[name]), why)
        return handler({name: each for name, each in value.items() if name not in misfits})

    @classmethod
    def _required(cls) -> set[str]:
        return {name for name, spec in cls.model_fields.items() if spec.is_required()}


def _report(info: ValidationInfo, name: str, value: object, why: str) -> None:
    """Note a problem in the `Reading` that validation was given as its context, if it was."""
    if isinstance(info.context, Reading):
        info.context.note(name, describe(value), why)


def _first_errors(error: ValidationError) -> dict[str, str]:
    """Return the first error of each field, or of the whole under an empty name."""
    errors: dict[str, str] = {}
    for each in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(each["loc"][0]) if each["loc"] else ""
        errors.setdefault(name, each["msg"].removeprefix("Value error, "))
    return errors


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
Number: TypeAlias = Annotated[
    Annotated[float, Field(ge=-MAX_FIGURE, le=MAX_FIGURE)] | None, BeforeValidator(not_bool)
]
Seconds: TypeAlias = Annotated[
    Annotated[float, Field(ge=0, le=MAX_FIGURE)] | None, BeforeValidator(not_bool)
]
Count: TypeAlias = Annotated[
    Annotated[int, Field(ge=0, le=MAX_FIGURE)] | None, BeforeValidator(not_bool)
]


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


def as_text(value: Json) -> str:
    """Return a value as it goes into a query: text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def read_metadata(
    model: type[Model], sent: Mapping[str, Sequence[Any]]
) -> tuple[Model, list[Problem]]:
    """Return the model of what was sent, by name, and the problems of what does not fit.

    A list may come as JSON, or as a name that repeats. See `wire.read_model` for what does not fit.
    """
    try:
        return read_model(model, _chosen(model, sent))
    except Exception:  # a validator of the team's takes text alone
        return read_model(model, {name: values[0] for name, values in sent.items()})


def _chosen(model: type[BaseModel], sent: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Choose for each name what fits its field; what is likeliest where nothing does."""
    readings = {name: _readings(model, name, values) for name, values in sent.items()}
    first = {name: each[0] for name, each in readings.items()}
    chosen = dict(first)
    for _ in zip_longest(*readings.values()):
        misfits = _misfits(model, chosen)
        if not misfits:
            break
        for name in misfits & readings.keys():
            readings[name] = readings[name][1:]
            chosen[name] = readings[name][0] if readings[name] else first[name]
    return chosen


def _readings(model: type[BaseModel], name: str, values: Sequence[Any]) -> list[Any]:
    """Return what the values may stand for, the likeliest first."""
    if len(values) > 1 and takes_list(model, name):
        return [list(values), [_parsed(value) for value in values]]
    text = values[0]
    parsed = _parsed(text)
    if parsed is text:
        return [text, [text]]
    is_plain = parsed is not None and not isinstance(parsed, list | dict)
    return [text, parsed, [text]] if is_plain else [parsed, text, [parsed], [text]]


def _parsed(text: Any) -> Any:
    """Return the JSON that a text is; the text itself if it is none, or is JSON of a text."""
    if not isinstance(text, str):
        return text
    try:
        value = read_json(text)
    except PayloadError:
        return text
    is_text = isinstance(value, str) or (value is None and text.strip() != "null")  # as NaN is
    return text if is_text else value


def _misfits(model: type[BaseModel], values: Mapping[str, Any]) -> set[str]:
    try:
        model.model_validate(values)
    except ValidationError as error:
        return {str(detail["loc"][0]) for detail in error.errors() if detail["loc"]}
    return set()
