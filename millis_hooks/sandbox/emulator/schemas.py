"""What clients ask for, as Millis' OpenAPI file has it. Fields it does not name are ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...exceptions import MillisHooksError, PayloadError
from ...protocol.reading import Json, read_json
from .agent_schema import AgentConfig, PartialAgentConfig, PartialConfig

Model = TypeVar("Model", bound=BaseModel)

#: Source: `from_phone` and `to_phone`, E.164 without spaces or dashes.
Phone = Annotated[str, StringConstraints(pattern=r"^\+[1-9][0-9]{5,14}$")]


class UnprocessableError(MillisHooksError):
    """What was sent is not what Millis takes; `detail` says so as its API does."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        self.detail = detail
        super().__init__("; ".join(f"{_where(one['loc'])}: {one['msg']}" for one in detail))


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Message(BaseModel):
    model_config = ConfigDict(extra="allow")


class UserMessage(_Message):
    """What a person said."""

    role: Literal["user"]
    content: str


class CalledFunction(_Message):
    """A function and its arguments, which are JSON in a text."""

    name: str
    arguments: str


class ToolCall(_Message):
    """That a function was called."""

    id: str
    type: str
    function: CalledFunction


class AssistantMessage(_Message):
    """What the agent said, and the functions it called."""

    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCall] | None = None


class ToolMessage(_Message):
    """What a function answered."""

    role: Literal["tool"]
    content: str
    tool_call_id: str


Message = UserMessage | AssistantMessage | ToolMessage


class Continuation(_Body):
    """The earlier conversation that a session continues."""

    session_id: str | None = None
    messages: list[Message] = Field(default_factory=list)
    identifier_variable: str | None = None


class _Call(_Body):
    metadata: dict[str, Json] | None = None
    include_metadata_in_prompt: bool | None = None
    session_continuation: Continuation | None = None


class AgentChoice(_Body):
    """An agent by its id, one made up for this call, or one with overrides."""

    agent_id: str | None = None
    agent_config: PartialConfig | None = None


class _AgentOfApi(AgentChoice):
    agent_config: PartialAgentConfig | None = None


class Initiate(_Call):
    """What a client of the websocket says first."""

    agent: AgentChoice = AgentChoice()
    call_id: str | None = None
    public_key: str | None = None


class Registration(_AgentOfApi, _Call):
    """The body of `register_call` and of `register_sip_call`."""

    from_phone: str | None = None
    to_phone: str | None = None


class OutboundCall(_AgentOfApi, _Call):
    """The body of `start_outbound_call`."""

    from_phone: Phone
    to_phone: Phone


class Termination(_Body):
    """The body of `terminate`; the message is said before the call ends."""

    message: str | None = None


class FunctionCall(_Body):
    """A function that the agent of a call is to call; the sandbox's own."""

    name: str
    params: dict[str, Json] = Field(default_factory=dict)


class NewAgent(_Body):
    """An agent to be made."""

    name: str
    config: AgentConfig


class ChangedAgent(_Body):
    """What is to be changed of an agent; of its configuration, key by key."""

    name: str
    config: PartialAgentConfig


class AgentOfPhone(_Body):
    """The agent of a number, or none."""

    agent_id: str | None = None


class PhoneAgent(AgentOfPhone):
    """A number and its agent."""

    phone: Phone


class ChatAgent(_AgentOfApi):
    """The agent of a text chat, and its metadata."""

    metadata: dict[str, Json] | None = None
    include_metadata_in_prompt: bool | None = None


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


def read(model: type[Model], body: bytes | str) -> Model:
    """Read the body of a request; raises `UnprocessableError`."""
    try:
        value = read_json(body)
    except PayloadError as error:
        wrong = {"loc": ["body"], "msg": f"JSON decode error: {error}", "type": "json_invalid"}
        raise UnprocessableError([wrong]) from error
    return check(model, value, "body")


def check(model: type[Model], value: object, *where: str) -> Model:
    """Return `value` as that model; raises `UnprocessableError`, which says where it is wrong."""
    try:
        # As FastAPI reads a body, which decides the words.
        return model.model_validate(value, from_attributes=True)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        raise UnprocessableError(
            [
                {"loc": [*where, *detail["loc"]], "msg": detail["msg"], "type": detail["type"]}
                for detail in details
            ]
        ) from error


def _where(loc: list[object]) -> str:
    return ".".join(map(str, loc))
