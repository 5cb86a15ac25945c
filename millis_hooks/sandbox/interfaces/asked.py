"""What clients ask for, as Millis' OpenAPI file has it. Fields it does not name are ignored."""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from ...exceptions import MillisHooksError, PayloadError
from ...wire import Json, read_json

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


class _Open(BaseModel):
    """Keeps what it does not name, so that a configuration comes back as it was given."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


class WebhookConfig(_Open):
    """A webhook with its headers."""

    url: str
    headers: dict[str, str] | None = None


class Tool(_Open):
    """A function of an agent."""

    name: str
    webhook: str | None = None
    header: dict[str, str] | None = None
    method: str | None = None
    timeout: int | None = None


class PartialConfig(_Open):
    """Overrides of an agent's configuration."""

    prompt: str | None = None
    first_message: str | None = None
    voice: dict[str, Json] | None = None
    tools: list[Tool] | None = None
    extra_prompt_webhook: str | WebhookConfig | None = None
    session_data_webhook: str | WebhookConfig | None = None
    custom_llm_websocket: str | None = None

    def as_given(self) -> dict[str, Json]:
        """Return it as it came."""
        return self.model_dump(exclude_unset=True)


class Voice(_Open):
    """Who speaks."""

    provider: str
    voice_id: str


class WholeConfig(PartialConfig):
    """The configuration of an agent: a prompt and a voice it must have."""

    prompt: str
    voice: Voice  # type: ignore[assignment]  # an object either way, here one that is complete


class Continuation(_Body):
    """The earlier conversation that a session continues."""

    session_id: str | None = None
    messages: list[dict[str, Json]] = Field(default_factory=list)


class _Call(_Body):
    metadata: dict[str, Json] | None = None
    include_metadata_in_prompt: bool | None = None
    session_continuation: Continuation | None = None


class AgentChoice(_Body):
    """An agent by its id, one made up for this call, or one with overrides."""

    agent_id: str | None = None
    agent_config: PartialConfig | None = None


class Initiate(_Call):
    """What a client of the websocket says first."""

    agent: AgentChoice = AgentChoice()
    call_id: str | None = None
    public_key: str | None = None


class Registration(AgentChoice, _Call):
    """The body of `register_call`."""

    from_phone: str | None = None
    to_phone: str | None = None


class OutboundCall(AgentChoice, _Call):
    """The body of `start_outbound_call`."""

    from_phone: Phone
    to_phone: Phone


class Termination(_Body):
    """The body of `terminate`; the message is said before the call ends."""

    message: str | None = None


class NewAgent(_Body):
    """An agent to be made."""

    name: str
    config: WholeConfig


class ChangedAgent(_Body):
    """What is to be changed of an agent; of its configuration, key by key."""

    name: str | None = None
    config: PartialConfig | None = None


class ChatAgent(AgentChoice):
    """The agent of a text chat, and its metadata."""

    metadata: dict[str, Json] | None = None
    include_metadata_in_prompt: bool | None = None


class Message(_Open):
    """Something that was said in a text chat."""

    role: str
    content: str | None = None


class Chat(_Body):
    """The body of `chat/completions`."""

    agent: ChatAgent
    messages: list[Message]
    end_of_session: bool = False


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


def check(model: type[Model], value: object, where: str) -> Model:
    """Return `value` as that model; raises `UnprocessableError`, which says where it is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        details = error.errors(include_url=False, include_input=False, include_context=False)
        raise UnprocessableError(
            [
                {"loc": [where, *detail["loc"]], "msg": detail["msg"], "type": detail["type"]}
                for detail in details
            ]
        ) from error


def _where(loc: list[object]) -> str:
    return ".".join(map(str, loc))
