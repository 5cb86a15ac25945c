"""Scenarios: whole calls, written in TOML or in Python, that the sandbox runs again and again.

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
    call = "find_slot"            # a function; [answers.find_slot] has what it answers
    params = { day = "tuesday" }
    [[turns]]
    assistant = "Half past ten?"

    [ending]                      # the fields of `Ending`
    call_status = "user-ended"

    [expect]                      # the fields of `Expectations`
    metadata = { customer_name = "Ada" }

`[faults]` and `[policy]` have the fields of `Faults` and `Policy`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from ..exceptions import ConfigError
from ..protocol.call_status import CallStatus, spell_status
from ..protocol.reading import Json
from ..protocol.samples import AGENT_ID, Vintage
from .policy import SECONDS, Policy, setting
from .transport import Answer

_FOLDER = Path(__file__).with_name("scenarios")
#: The names of the scenarios that come with the package.
SHIPPED = tuple(sorted(file.stem for file in _FOLDER.glob("*.toml")))

#: How a call is placed, and so how its metadata is attached.
Way: TypeAlias = Literal[
    "inbound", "outbound", "web-sdk", "widget", "websocket", "registered", "chat"
]
#: Only these have phone numbers.
PHONE_WAYS = frozenset({"inbound", "outbound"})
#: Only these take an agent that is made up for one session.
SOCKET_WAYS = frozenset({"web-sdk", "widget", "websocket"})

PrefetchFault: TypeAlias = Literal["slow", "error", "bad-json", "unreachable"]
PREFETCH_FAULTS: tuple[PrefetchFault, ...] = get_args(PrefetchFault)
EndOfCallTimes: TypeAlias = Literal["once", "twice", "late", "never"]
END_OF_CALL_TIMES: tuple[EndOfCallTimes, ...] = get_args(EndOfCallTimes)

#: Statuses of calls that never connected.
UNREACHED = frozenset(
    {CallStatus.BUSY, CallStatus.NO_ANSWER, CallStatus.CANCELED, CallStatus.FAILED}
)

#: Who says a line, by Millis' names.
Role: TypeAlias = Literal["user", "assistant"]

#: How the tables of a file are read; those that become dataclasses have it, too.
_IN_FILES = ConfigDict(extra="forbid", allow_inf_nan=False)


def _known_status(value: str) -> str:
    status = spell_status(value)
    if status not in list(CallStatus):
        suggestion = _suggestion(value, [str(each) for each in CallStatus])
        raise ValueError(f"{value!r} is not one of Millis' statuses.{suggestion}")
    return status


#: A status of a call: in a file one of Millis', in Python also a new one.
Status: TypeAlias = Annotated[str, AfterValidator(_known_status)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong on purpose."""

    __pydantic_config__: ClassVar[ConfigDict] = _IN_FILES

    prefetch: PrefetchFault | None = setting(
        None, "What Millis sees of the prefetch, whatever your service answers."
    )
    prefetch_slow_s: Annotated[float, SECONDS] = setting(
        10.0, "How many seconds later a slow answer comes."
    )
    end_of_call: EndOfCallTimes = setting(
        "once", "When and how often the end-of-call comes; late is `late_by_s` of the policy."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """What may differ from one call to the next: caller, agent, metadata, faults and policy."""

    __pydantic_config__: ClassVar[ConfigDict] = _IN_FILES

    way: Way = setting("inbound", "How the call is placed.")
    agent_id: str | None = setting(AGENT_ID, "The agent that speaks.")
    agent_config: Mapping[str, Json] = setting(
        dict, "Millis' `AgentConfig`, overrides included. In a file use `[agent]`."
    )
    metadata: Mapping[str, Json] = setting(dict, "The metadata that is attached to the call.")
    include_metadata_in_prompt: bool = setting(
        False, "Whether the agent's prompt ends with the metadata."
    )
    from_phone: str | None = setting(None, "The number that calls, on the phone only.")
    to_phone: str | None = setting(None, "The number that is called, on the phone only.")
    earlier: Sequence[Mapping[str, Json]] = setting(
        (), "Messages of the conversation that this one continues, each with `role` and `content`."
    )
    session_id: str | None = setting(None, "The id of the session; generated if absent.")
    call_id: str | None = setting(None, "The id of the phone call; generated if absent.")
    unreached: Status | None = setting(
        None, "Why the call never connects: busy, no-answer, canceled or failed."
    )
    function_answers: Mapping[str, Answer] = setting(
        dict, "The answers, by name, of functions that are not called. In a file use `[answers]`."
    )
    vintage: Vintage = setting("v2", "The payload format of the end-of-call.")
    extra_fields: Mapping[str, Json] = setting(
        dict, "More fields of the end-of-call, such as `call_analysis`; in v2-extras only."
    )
    dry_run: bool = setting(False, "What handlers see as `call.dry_run`.")
    notes: Sequence[str] = setting((), "Remarks about the call, printed with its steps.")
    faults: Faults = setting(Faults, "What goes wrong. In a file use `[faults]`.")
    policy: Policy = setting(Policy, "What Millis leaves open. In a file use `[policy]`.")

    @property
    def is_on_the_phone(self) -> bool:
        """Whether the call runs over a phone network."""
        return self.from_phone is not None or self.to_phone is not None


@dataclass(frozen=True, slots=True)
class Line:
    """Something to say, after a pause in seconds; `is_final` is False while a caller continues."""

    role: Role
    text: str
    pause_s: float = 0.0
    is_final: bool = True


@dataclass(frozen=True, slots=True)
class ToolUse:
    """A function to call. In `params` each `{name}` is filled in as in a prompt."""

    name: str
    params: Mapping[str, Json] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a conversation ends."""

    __pydantic_config__: ClassVar[ConfigDict] = _IN_FILES

    call_status: Status = setting(CallStatus.USER_ENDED, "One of Millis' statuses.")
    error_message: str | None = setting(None, "The error that the end-of-call reports.")
    duration_s: NonNegativeFloat | None = setting(
        None, "The length of the call in seconds; by default the time it takes to say the words."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """Both sides of a conversation, without the agent's first message."""

    turns: Sequence[Line | ToolUse] = ()
    ending: Ending = Ending()


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What should happen in a call. None, or empty, expects nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = _IN_FILES

    prefetch: Literal["answered", "failed", "none"] | None = setting(
        None, "What became of the prefetch; none if there was none."
    )
    prefetch_within_ms: float | None = setting(
        None, "The longest time the answer to the prefetch may take, in milliseconds."
    )
    metadata: Mapping[str, Json] = setting(
        dict, "Keys and values that are among the metadata at the end of the call."
    )
    prompt_contains: Sequence[str] = setting((), "Texts in the prompt that the agent gets.")
    prompt_lacks: Sequence[str] = setting((), "Texts that are not in that prompt.")
    first_message: str | None = setting(None, "The first message, with its variables filled in.")
    unresolved: Sequence[str] | None = setting(
        None, "The names of variables without a value, in any place and order; [] expects none."
    )
    functions: Mapping[str, str] = setting(
        dict, "A text that the result of each of these functions contains."
    )
    call_status: str | None = setting(None, "The status that the end-of-call reports.")
    end_of_call: Literal["accepted", "refused", "none"] | None = setting(
        None, "What became of the end-of-call; none if it was not sent."
    )
    outcome: str | None = setting(
        None, "The outcome of the stored call; checked where the call log can be read."
    )
    handlers: Mapping[str, Literal["succeeded", "retrying", "failed"]] = setting(
        dict, "The state in which the run of each of these handlers ends; checked there too."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A call to run, what is said in it, and what should happen."""

    name: str
    title: str
    spec: SessionSpec
    script: Script
    expected: Expectations = field(default_factory=Expectations)


def load_scenario(name: str) -> Scenario:
    """Read a scenario: a TOML file, or a shipped one by its name.

    Raises `ConfigError`, which names file and field.
    """
    file = _FOLDER / f"{name}.toml" if name in SHIPPED else Path(name)
    try:
        source = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError, ValueError) as error:
        raise ConfigError(_unreadable(name, file, error)) from error
    return read_scenario(source, file=str(file), name=file.stem)


def read_scenario(source: str, *, file: str, name: str) -> Scenario:
    """Read the text of a scenario; raises `ConfigError`, which names it by `file`."""
    try:
        return ScenarioFile.model_validate(tomllib.loads(source)).scenario(name)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: {error}") from error
    except ValidationError as error:
        raise ConfigError("\n".join(f"{file}: {each}" for each in _problems(error))) from error


def changed(spec: SessionSpec, changes: Mapping[str, Any]) -> SessionSpec:
    """Return a spec with other values of some fields; `faults` and `policy` may be dictionaries.

    Raises `ConfigError`, which names each wrong field and value.
    """
    names = [each.name for each in fields(SessionSpec)]
    problems = [f"{name}: {_no_such_field(name, names)}" for name in changes if name not in names]
    read = dict(changes)
    for name in changes.keys() & _READ_IN_PYTHON.keys():
        try:
            read[name] = _READ_IN_PYTHON[name].validate_python(changes[name])
        except ValidationError as error:
            problems += _problems(error, (name,))
    if problems:
        raise ConfigError("\n".join(problems))
    return replace(spec, **read)


#: Fields of a spec that are checked in Python too. The others may hold what no file can.
_READ_IN_PYTHON: dict[str, TypeAdapter[Any]] = {
    "way": TypeAdapter(Way),
    "vintage": TypeAdapter(Vintage),
    "function_answers": TypeAdapter(Mapping[str, Answer]),
    "faults": TypeAdapter(Faults),
    "policy": TypeAdapter(Policy),
}


def _problems(error: ValidationError, place: tuple[str, ...] = ()) -> Iterator[str]:
    """Yield a line for each problem: its field, what is wrong, and which fields there are."""
    for detail in error.errors(include_url=False):
        # pydantic names validators there, too.
        named = [str(part) for part in (*place, *detail["loc"])]
        named = [part for part in named if not part.startswith("function-")]
        yield f"{'.'.join(named)}: {_problem(detail, named)}"


def _problem(detail: ErrorDetails, place: Sequence[str]) -> str:
    if detail["type"] in {"extra_forbidden", "unexpected_keyword_argument"}:
        return _no_such_field(place[-1], _fields_of(place[:-1]))
    text = detail["msg"].removeprefix("Value error, ").replace("Input should be", "expected", 1)
    return f"{text}, not {detail['input']!r}" if detail["type"] == "literal_error" else text


def _no_such_field(name: str, names: Sequence[str]) -> str:
    return f"there is no such field.{_suggestion(name, names)} The fields are {', '.join(names)}."


def _fields_of(place: Sequence[str]) -> list[str]:
    """Return the names of the fields of a table, which is named as in a file."""
    within = place[1:] if place[1:] and place[0] == "session" else place
    table = TABLES[within[0]] if within else ScenarioFile
    return [each.name for each in fields(table)] if is_dataclass(table) else [*table.model_fields]


def _unreadable(name: str, file: Path, error: Exception) -> str:
    if file.suffix == ".toml" or "/" in name:
        why = error.strerror if isinstance(error, OSError) else str(error)
        return f"{file} cannot be read: {why}."
    shipped = f"Shipped: {', '.join(SHIPPED)}; or name a file."
    return f"There is no scenario {name!r}.{_suggestion(name, SHIPPED)} {shipped}"


def _suggestion(name: str, names: Sequence[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class _Table(BaseModel):
    model_config = _IN_FILES


class _Turn(_Table):
    user: str | None = Field(None, description="A line of the caller.")
    assistant: str | None = Field(None, description="A line of the agent.")
    call: str | None = Field(None, description="The name of a function that the agent calls.")
    params: dict[str, Json] = Field(
        default_factory=dict,
        description="The parameters of the function; `{name}` is filled in as in a prompt.",
    )
    pause_s: NonNegativeFloat = Field(0.0, description="Seconds of silence before the line.")

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


class _Answer(_Table):
    status: int = Field(200, ge=100, le=599, description="The HTTP status.")
    body: str = Field("", description="The body, as text.")
    content_type: str = Field("application/json", description="The type of the body.")


class ScenarioFile(_Table):
    """A whole file."""

    title: str = Field("", description="A sentence about the call, for lists and reports.")
    session: SessionSpec = Field(
        default_factory=SessionSpec, description="Who calls, how, and with which metadata."
    )
    agent: dict[str, Json] = Field(
        default_factory=dict, description="The agent, as in Millis' agent configuration."
    )
    turns: list[_Turn] = Field(default_factory=list, description="The conversation, in order.")
    answers: dict[str, _Answer] = Field(
        default_factory=dict, description="The answer of each function, which is then not called."
    )
    ending: Ending = Field(default_factory=Ending, description="How the call ends.")
    faults: Faults | None = Field(None, description="What goes wrong on purpose.")
    policy: Policy | None = Field(None, description="How Millis behaves where it is undocumented.")
    expect: Expectations = Field(default_factory=Expectations, description="What should happen.")

    @field_validator("session")
    @classmethod
    def _consistent(cls, spec: SessionSpec) -> SessionSpec:
        if spec.is_on_the_phone and spec.way not in PHONE_WAYS:
            raise ValueError(f"a call by {spec.way} has no from_phone and no to_phone")
        if spec.unreached is not None and spec.unreached not in UNREACHED:
            raise ValueError(f"unreached is one of {', '.join(sorted(UNREACHED))}")
        if spec.extra_fields and spec.vintage != "v2-extras":
            raise ValueError('extra_fields are sent only with vintage = "v2-extras"')
        return spec

    def scenario(self, name: str) -> Scenario:
        spec = self.session
        answers = {
            function: Answer(answer.status, answer.body.encode(), answer.content_type)
            for function, answer in self.answers.items()
        }
        spec = replace(
            spec,
            agent_config={**spec.agent_config, **self.agent},
            function_answers={**spec.function_answers, **answers},
            faults=self.faults or spec.faults,
            policy=self.policy or spec.policy,
        )
        script = Script(turns=tuple(turn.turn() for turn in self.turns), ending=self.ending)
        title = self.title or name
        return Scenario(name=name, title=title, spec=spec, script=script, expected=self.expect)


#: The tables of a file, each with the class that has its fields.
TABLES: dict[str, Any] = {
    "session": SessionSpec,
    "turns": _Turn,
    "answers": _Answer,
    "ending": Ending,
    "faults": Faults,
    "policy": Policy,
    "expect": Expectations,
}
