"""The bodies and queries of Millis' API, by its OpenAPI file. Other fields are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...exceptions import MillisHooksError, PayloadError
from ...millis_api.client import E164
from ...protocol.reading import Json, read_json
from .agent_schema import AgentConfig, PartialAgentConfig, PartialConfig

Model = TypeVar("Model", bound=BaseModel)


class UnprocessableError(MillisHooksError):
    """A request that Millis would refuse; `detail` is what its API answers, as FastAPI's."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        self.detail = detail
        super().__init__("; ".join(f"{_dotted(one['loc'])}: {one['msg']}" for one in detail))


def read(model: type[Model], body: bytes | str) -> Model:
    """Read the body of a request; raises `UnprocessableError`."""
    try:
        value = read_json(body)
    except PayloadError as error:
        detail = {"loc": ["body"], "msg": f"JSON decode error: {error}", "type": "json_invalid"}
        raise UnprocessableError([detail]) from error
    return check(model, value, "body")


def check(model: type[Model], value: object, *place: str) -> Model:
    """Return `value` as a model; raises `UnprocessableError`, located below `place`."""
    try:
        # FastAPI reads bodies from attributes, which decides the words of errors.
        return model.model_validate(value, from_attributes=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        raise UnprocessableError(
            [
                {"loc": [*place, *detail["loc"]], "msg": detail["msg"], "type": detail["type"]}
                for detail in details
            ]
        ) from error


def _dotted(loc: list[object]) -> str:
    return ".".join(map(str, loc))


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")


class UserMessage(_Message):
    role: Literal["user"]
    content: str


class CalledFunction(_Message):
    """A function and its arguments, which are JSON in a text."""

    name: str
    arguments: str


class ToolCall(_Message):
    id: str
    type: str
    function: CalledFunction


class AssistantMessage(_Message):
    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCall] | None = None


class ToolMessage(_Message):
    role: Literal["tool"]
    content: str
    tool_call_id: str


Message = UserMessage | AssistantMessage | ToolMessage


class Continuation(_Body):
    """The earlier conversation that a session continues: by its id, or by its messages."""

    session_id: str | None = None
    messages: list[Message] = Field(default_factory=list)
    identifier_variable: str | None = None


class AgentChoice(_Body):
    """An agent by its id, one made up for this call, or one with overrides."""

    agent_id: str | None = None
    agent_config: PartialConfig | None = None


class _ApiAgentChoice(AgentChoice):
    agent_config: PartialAgentConfig | None = None


class Attached(_Body):
    """The metadata of a call."""

    metadata: dict[str, Json] | None = None
    include_metadata_in_prompt: bool | None = None


class _Call(Attached):
    session_continuation: Continuation | None = None


class Initiate(_Call):
    """The first message of a client of the websocket."""

    agent: AgentChoice = AgentChoice()
    call_id: str | None = None
    public_key: str | None = None


class Registration(_ApiAgentChoice, _Call):
    """The body of `register_call` and of `register_sip_call`."""

    from_phone: str | None = None
    to_phone: str | None = None


#: Without spaces or dashes.
Phone = Annotated[str, StringConstraints(pattern=f"^{E164.pattern}$")]


class OutboundCall(_ApiAgentChoice, _Call):
    """The body of `start_outbound_call`."""

    from_phone: Phone
    to_phone: Phone


class Termination(_Body):
    """The body of `terminate`; the agent says the message before the call ends."""

    message: str | None = None


class FunctionCall(_Body):
    """A function that the agent of a call shall call; the sandbox's own."""

    name: str
    params: dict[str, Json] = Field(default_factory=dict)


class NewAgent(_Body):
    """The body of `POST agents`."""

    name: str
    config: AgentConfig


class ChangedAgent(_Body):
    """The body of `PUT agents/{id}`: of the configuration only the keys to change."""

    name: str
    config: PartialAgentConfig


class AgentOfPhone(_Body):
    """The body of `phones/{phone}/set_agent`."""

    agent_id: str | None = None


class PhoneAgent(AgentOfPhone):
    """The body of `set_phone_agent`."""

    phone: Phone


class ChatAgent(_ApiAgentChoice, Attached):
    """The agent of a text chat, and its metadata."""


class Chat(_Body):
    """The body of `chat/completions`."""

    agent: ChatAgent
    messages: list[Message]
    end_of_session: bool = False


class HistoriesQuery(_Body):
    """The query of an agent's `call-histories`; Unix seconds."""

    start_at: float | None = None
    limit: int = 20


class LogQuery(_Body):
    """The query of `call-logs`; times are Unix seconds."""

    limit: int = Field(20, gt=0, le=100)
    start_after_ts: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    agent_id: str | None = None
    call_status: str | None = None
    phone_number: str | None = None
