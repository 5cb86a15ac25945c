"""Scenarios: whole calls written down in TOML, to be rehearsed again and again.

    title = "A gold customer books a table"

    [session]                     # who calls, and what is attached: the fields of `SessionSpec`
    from_phone = "+14155550134"
    to_phone = "+14155550199"
    metadata = { plan = "gold" }

    [agent]                       # as Millis' agent configuration
    prompt = "You take bookings. The caller is {customer_name}."

    [[turns]]
    user = "A table for two, please."
    [[turns]]
    call = "find_slot"            # a function, with what it answers below [answers.find_slot]
    params = { day = "tuesday" }
    [[turns]]
    assistant = "Half past ten?"

    [ending]
    call_status = "user-ended"

    [expect]                      # the fields of `Expectations`
    metadata = { customer_name = "Ada" }

`[faults]` and `[policy]` have the fields of `Faults` and `Policy`.

Finds the line of a TOML file on which a value stands, for messages about it.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from ..exceptions import ConfigError
from ..protocol.call_status import CallStatus, spell_status
from ..protocol.reading import Json
from ..protocol.samples import AGENT_ID, Vintage
from .agent import Ending, Line, Script, ToolUse
from .call_spec import PHONE_WAYS, Faults, SessionSpec, Way
from .expectations import Expectations
from .policy import Policy
from .transport import Answer
from .webhook_client import UNREACHED

TomlPath: TypeAlias = tuple[str | int, ...]

_NAME = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_NAMES = rf"({_NAME}(?:\s*\.\s*{_NAME})*)"
_HEADER = re.compile(rf"\s*(\[\[?)\s*{_NAMES}\s*\]\]?\s*(#.*)?")
_KEY = re.compile(rf"\s*{_NAMES}\s*=")
_QUOTES = ('"""', "'''")


def line_of(source: str, path: Sequence[str | int]) -> int:
    """Return the line, from 1, of the value at `path`, or of the nearest that holds it."""
    lines = _lines_by_path(source)
    wanted = tuple(path)
    while wanted and wanted not in lines:
        wanted = wanted[:-1]
    return lines.get(wanted, 1)


def _lines_by_path(source: str) -> dict[TomlPath, int]:
    lines: dict[TomlPath, int] = {}
    counts: dict[TomlPath, int] = {}
    table: TomlPath = ()
    open_quote: str | None = None
    for number, line in enumerate(source.splitlines(), start=1):
        if open_quote is not None:
            open_quote = None if open_quote in line else open_quote
        elif header := _HEADER.fullmatch(line):
            table = _table(header[1] == "[[", _names(header[2]), counts)
            lines.setdefault(table, number)
        elif key := _KEY.match(line):
            lines.setdefault((*table, *_names(key[1])), number)
            open_quote = _left_open(line)
    return lines


def _table(is_array: bool, names: TomlPath, counts: dict[TomlPath, int]) -> TomlPath:
    """Return the path of a table; one of an array ends with its number there."""
    if is_array:
        counts[names] = counts.get(names, -1) + 1
    path: TomlPath = ()
    seen: TomlPath = ()
    for name in names:
        path, seen = (*path, name), (*seen, name)
        if seen in counts:
            path = (*path, counts[seen])
    return path


def _names(text: str) -> TomlPath:
    """Split a dotted key; quotes may hold dots."""
    try:
        value: Any = tomllib.loads(f"{text} = 0")
    except tomllib.TOMLDecodeError:
        return (text,)
    names: list[str] = []
    while isinstance(value, dict):
        name, value = next(iter(value.items()))
        names.append(name)
    return tuple(names)


def _left_open(line: str) -> str | None:
    """Return the quotes of a text of several lines that begins on this one."""
    return next((quotes for quotes in _QUOTES if line.count(quotes) % 2), None)


SHIPPED = Path(__file__).with_name("scenarios")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A call to be rehearsed, what is said in it, and what is expected of it."""

    name: str
    title: str
    spec: SessionSpec
    script: Script
    expected: Expectations = field(default_factory=Expectations)


def shipped_scenarios() -> list[Scenario]:
    """Return the scenarios that come with the package, by name."""
    return [load_scenario(file.stem) for file in sorted(SHIPPED.glob("*.toml"))]


def load_scenario(name: str) -> Scenario:
    """Read a scenario: a TOML file, or a shipped one by its name.

    Raises `ConfigError`, which names file, line and field.
    """
    shipped = SHIPPED / f"{name}.toml"
    is_shipped = "/" not in name and "\\" not in name and shipped.is_file()
    file = shipped if is_shipped else Path(name)
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError, ValueError) as error:
        raise ConfigError(_unreadable(name, file, error)) from error
    return read_scenario(source, file=str(file), name=file.stem)


def read_scenario(source: str, *, file: str, name: str) -> Scenario:
    """Read the text of a scenario; `file` names it in what `ConfigError` says."""
    try:
        value = tomllib.loads(source)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    try:
        return _File.model_validate(value).scenario(name)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError(
            "\n".join(_explain(detail, source, file) for detail in details)
        ) from error


_NO_FIELD = "there is no such field"
#: For pydantic's own words, by the kind of an error.
_MESSAGES = {"extra_forbidden": _NO_FIELD, "unexpected_keyword_argument": _NO_FIELD}


def _unreadable(name: str, file: Path, error: Exception) -> str:
    if file.suffix == ".toml" or "/" in name:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return f"{file} cannot be read: {why}."
    known = sorted(path.stem for path in SHIPPED.glob("*.toml"))
    near = get_close_matches(name, known, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no scenario {name!r}.{hint} Shipped: {', '.join(known)}; or name a file."


def _explain(detail: ErrorDetails, source: str, file: str) -> str:
    place = [part for part in detail["loc"] if not str(part).startswith("function-")]
    where = ".".join(map(str, place)) or "scenario"
    message = _MESSAGES.get(detail["type"], detail["msg"].removeprefix("Value error, "))
    return f"{file}:{line_of(source, place)}: {where}: {message}"


def _known_status(value: str) -> str:
    status = spell_status(value)
    if status in list(CallStatus):
        return status
    near = get_close_matches(value, [str(known) for known in CallStatus], n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{value!r} is none of Millis' statuses.{hint}")


_Status = Annotated[str, AfterValidator(_known_status)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class _Session(_Part):
    way: Way = "inbound"
    agent_id: str = AGENT_ID
    from_phone: str | None = None
    to_phone: str | None = None
    metadata: dict[str, Json] = Field(default_factory=dict)
    include_metadata_in_prompt: bool = False
    vintage: Vintage = "v2"
    extra_fields: dict[str, Json] = Field(default_factory=dict)
    dry_run: bool = False
    earlier: list[dict[str, Json]] = Field(default_factory=list)
    unreached: _Status | None = None

    @model_validator(mode="after")
    def _consistent(self) -> _Session:
        has_number = self.from_phone is not None or self.to_phone is not None
        if has_number and self.way not in PHONE_WAYS:
            raise ValueError(f"a call by {self.way} has no from_phone and no to_phone")
        if self.unreached is not None and self.unreached not in UNREACHED:
            raise ValueError(f"unreached is one of {', '.join(sorted(UNREACHED))}")
        if self.extra_fields and self.vintage != "v2-extras":
            raise ValueError('extra_fields are sent only with vintage = "v2-extras"')
        return self


class _Turn(_Part):
    user: str | None = None
    assistant: str | None = None
    call: str | None = None
    params: dict[str, Json] = Field(default_factory=dict)
    pause_s: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _one_of_them(self) -> _Turn:
        if sum(part is not None for part in (self.user, self.assistant, self.call)) != 1:
            raise ValueError("a turn has one of user, assistant and call")
        if self.params and self.call is None:
            raise ValueError("only a call has params")
        return self

    def turn(self) -> Line | ToolUse:
        if self.call is not None:
            return ToolUse(self.call, self.params)
        if self.user is not None:
            return Line("user", self.user, self.pause_s)
        return Line("assistant", self.assistant or "", self.pause_s)


class _Answer(_Part):
    status: int = Field(200, ge=100, le=599)
    body: str = ""
    content_type: str = "application/json"

    def answer(self) -> Answer:
        return Answer(self.status, self.body.encode(), self.content_type)


class _Ending(_Part):
    call_status: _Status = CallStatus.USER_ENDED
    error_message: str | None = None
    duration_s: NonNegativeFloat | None = None


class _File(_Part):
    title: str = ""
    session: _Session = Field(default_factory=_Session)
    agent: dict[str, Json] = Field(default_factory=dict)
    turns: list[_Turn] = Field(default_factory=list)
    answers: dict[str, _Answer] = Field(default_factory=dict)
    ending: _Ending = Field(default_factory=_Ending)
    faults: Faults = Field(default_factory=Faults)
    policy: Policy = Field(default_factory=Policy)
    expect: Expectations = Field(default_factory=Expectations)

    def scenario(self, name: str) -> Scenario:
        fields: dict[str, Any] = dict(self.session)
        unreached = fields.pop("unreached")
        spec = SessionSpec(
            **fields,
            unreached=None if unreached is None else CallStatus(unreached),
            agent_config=self.agent,
            function_answers={name: answer.answer() for name, answer in self.answers.items()},
            faults=self.faults,
            policy=self.policy,
        )
        ending = Ending(self.ending.call_status, self.ending.error_message)
        turns = tuple(turn.turn() for turn in self.turns)
        script = Script(turns=turns, ending=ending, duration_s=self.ending.duration_s)
        return Scenario(
            name=name,
            title=self.title or name,
            spec=spec,
            script=script,
            expected=self.expect,
        )


def with_agent_webhooks(scenario: Scenario, webhooks: Mapping[str, Json]) -> Scenario:
    """Return the scenario with these webhooks where its agent names none of its own."""
    config = {**webhooks, **scenario.spec.agent_config}
    return replace(scenario, spec=replace(scenario.spec, agent_config=config))
