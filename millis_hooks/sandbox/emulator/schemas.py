"""The bodies and queries of Millis' API, and an agent's configuration, by its OpenAPI file.

So the sandbox refuses what Millis refuses, with its words: the parts of a configuration have the
names of that file, of June 2025, because errors name them where a value may be one of two kinds.
Parts of a configuration that the file does not have are kept, as later pages have more; other
fields of a body are ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    StringConstraints,
    ValidationError,
)
from pydantic_core import PydanticCustomError

from ...exceptions import MillisHooksError, PayloadError
from ...millis_api import E164
from ...protocol.reading import Json, read_json

Model = TypeVar("Model", bound=BaseModel)


class UnprocessableError(MillisHooksError):
    """A request that Millis would refuse; `detail` is what its API answers, as FastAPI's."""

    def __init__(self, detail: list[dict[str, Any]]) -> None:
        self.detail = detail
        problems = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in detail)
        super().__init__("; ".join(problems))


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


class _Part(BaseModel):
    """A part of a configuration: it keeps fields that it does not name."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)


def _one_of(words: str) -> PlainValidator:
    """Return a validator that refuses other words as an enumeration does."""
    choices = words.split()
    quoted = [f"'{word}'" for word in choices]
    expected = " or ".join([", ".join(quoted[:-1]), quoted[-1]])

    def validate(value: Any) -> Any:
        if value not in choices:
            raise PydanticCustomError("enum", "Input should be {expected}", {"expected": expected})
        return value

    return PlainValidator(validate)


VoiceProvider = Annotated[
    str,
    _one_of(
        "elevenlabs openai cartesia playht deepgram rime neets openai_realtime dubverse orpheus "
        "sesame kokoro"
    ),
]
LlmProvider = Annotated[
    str,
    _one_of(
        "gpt-3.5-turbo gpt-4.1 gpt-4.1-mini gpt-4.1-nano gpt-4-turbo gpt-4o-realtime-preview "
        "gpt-4o-mini-realtime-preview gpt-4o gpt-4o-mini llama-3-70b llama-3-1-8b llama-3-1-70b "
        "llama-3-1-405b mistral-large-2407 l3.1-70b-euryale-v2.2 deepseek-v3"
    ),
]
SpeechToTextProvider = Annotated[str, _one_of("deepgram gladia talkscriber")]
VoicemailAction = Annotated[str, _one_of("hangup message")]
Language = Annotated[
    str,
    _one_of(
        "ln cy wo cs hy nl ceb la en-NZ ss lt ne fy oc yi tt bn fr-CA sw th ms ka pa fi ig af "
        "multi eu bs ps en-AU si ff de mt km pl nl-BE fr en-IN no gu lo sk ht tk bg mn su ko it "
        "id tl zu pt-BR jv et ca sl ja lb gl zh-TW hi ha th-TH lv ast sq tr ar sv haw tg lg ba mk "
        "vi hu el mi en-US kn az he hr ml kk es br sr xh uk as ilo ru gd yo da sa fa es-419 bo ur "
        "my nn mo so mr tn sd sn uz de-CH fo en-GB zh ro pt or ga ta mg en be am te is"
    ),
]
ResponseMode = Literal["strict", "flexible"]


class WebhookConfig(_Part):
    url: str
    headers: dict[str, str] | None = None


class Param(_Part):
    name: str
    required: bool
    type: str
    description: str


class Function(_Part):
    """A function with a webhook; `timeout` in seconds. `include_metadata` is of later pages."""

    name: str
    params: list[Param] | None = None
    description: str
    webhook: str | None = None
    header: dict[str, str] | None = None
    method: str | None = None
    timeout: int | None = None
    run_after_call: bool | None = None
    messages: list[str] | None = None
    response_mode: ResponseMode | None = None
    execute_after_message: bool | None = None
    exclude_session_id: bool | None = None
    include_metadata: bool | None = None


class MillisFunctionData(_Part):
    param: Param | None = None


class MillisFunction(_Part):
    """A form that Millis shows."""

    name: str
    description: str
    data: MillisFunctionData
    type: str
    messages: list[str] | None = None
    response_mode: ResponseMode | None = None


class AppFunction(_Part):
    name: str
    credentials: dict[str, str] | None = None


class Voice(_Part):
    provider: VoiceProvider
    voice_id: str
    model: str | None = None
    settings: dict[str, Json] | None = None


class HistorySettings(_Part):
    history_message_limit: int | None = None
    history_tool_result_limit: int | None = None


class LLM(_Part):
    model: LlmProvider
    temperature: float = 0.0
    history_settings: HistorySettings | None = None


class Interruption(_Part):
    """Whether the caller may interrupt. Millis spells the third field so."""

    allowed: bool | None = None
    keep_interruption_message: bool | None = None
    first_messsage: bool | None = None


class ResponseDelay(_Part):
    """In milliseconds."""

    generic_delay: int | None = None
    number_input_delay: int | None = None


class AutoFillResponses(_Part):
    """What is said while an answer does not come; in milliseconds."""

    response_gap_threshold: int
    messages: list[str]


class AgentTerminateCall(_Part):
    enabled: bool
    instruction: str | None = None
    messages: list[str] | None = None


class Voicemail(_Part):
    action: VoicemailAction
    message: str | None = None
    continue_on_voice_activity: bool | None = None


class TransferOption(_Part):
    phone: str
    description: str | None = None


class CallTransfer(_Part):
    phone: str | None = None
    phones: list[TransferOption] | None = None
    instruction: str | None = None
    messages: list[str] | None = None


class InactivityHandling(_Part):
    """What is said to a silent caller; in seconds."""

    idle_time: float
    message: str


class DTMFDial(_Part):
    enabled: bool = False
    instruction: str | None = None


class Flow(_Part):
    user_start_first: bool | None = None
    interruption: Interruption | None = None
    response_delay: int | ResponseDelay | None = None
    auto_fill_responses: AutoFillResponses | None = None
    agent_terminate_call: AgentTerminateCall | None = None
    voicemail: Voicemail | None = None
    call_transfer: CallTransfer | None = None
    inactivity_handling: InactivityHandling | None = None
    dtmf_dial: DTMFDial | None = None


class SessionTimeout(_Part):
    """In seconds."""

    max_duration: float | None = None
    max_idle: float | None = None
    message: str | None = None


class PrivacySetting(_Part):
    opt_out_data_collection: bool
    do_not_call_detection: bool = False


class CustomVocabulary(_Part):
    keywords: dict[str, int]


class SwitchLanguage(_Part):
    languages: list[str]


class KnowledgeBase(_Part):
    files: list[str] | None = None
    messages: list[str] | None = None


class SpeechToText(_Part):
    provider: SpeechToTextProvider | None = None
    multilingual: bool | None = None
    model: str | None = None


class BackgroundSetting(_Part):
    url: str
    volume: float | None = None


class CallSettings(_Part):
    enable_recording: bool = False
    background: BackgroundSetting | None = None


class MemoryConfig(_Part):
    user_identifier_key: str = ""


class PartialConfig(_Part):
    """A part of an agent's configuration, as clients of the websocket may name it."""

    prompt: str | None = None
    voice: Voice | None = None
    flow: Flow | None = None
    first_message: str | None = None
    tools: list[Function] | None = None
    millis_functions: list[MillisFunction] | None = None
    app_functions: list[AppFunction] | None = None
    custom_llm_websocket: str | None = None
    language: Language | None = None
    vad_threshold: float | None = None
    llm: LLM | None = None
    session_timeout: SessionTimeout | None = None
    session_data_webhook: str | WebhookConfig | None = None
    privacy_settings: PrivacySetting | None = None
    custom_vocabulary: CustomVocabulary | None = None
    extra_prompt_webhook: str | WebhookConfig | None = None
    switch_language: SwitchLanguage | None = None
    knowledge_base: KnowledgeBase | None = None
    speech_to_text: SpeechToText | None = None
    call_settings: CallSettings | None = None
    memory: MemoryConfig | None = None
    timezone: str | None = None

    def as_given(self) -> dict[str, Json]:
        """Return it as it came, without defaults."""
        return self.model_dump(exclude_unset=True)


class PartialAgentConfig(PartialConfig):
    """A part of a configuration as the HTTP API takes it: with no other key."""

    model_config = ConfigDict(extra="forbid")


class AgentConfig(PartialConfig):
    """The whole configuration of an agent."""

    prompt: str
    voice: Voice


class UserMessage(_Part):
    role: Literal["user"]
    content: str


class CalledFunction(_Part):
    """A function and its arguments, which are JSON in a text."""

    name: str
    arguments: str


class ToolCall(_Part):
    id: str
    type: str
    function: CalledFunction


class AssistantMessage(_Part):
    role: Literal["assistant"]
    content: str
    tool_calls: list[ToolCall] | None = None


class ToolMessage(_Part):
    role: Literal["tool"]
    content: str
    tool_call_id: str


Message = UserMessage | AssistantMessage | ToolMessage


class Body(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Continuation(Body):
    """The earlier conversation that a session continues: by its id, or by its messages."""

    session_id: str | None = None
    messages: list[Message] = Field(default_factory=list)
    identifier_variable: str | None = None


class AgentChoice(Body):
    """An agent by its id, one made up for this call, or one with overrides."""

    agent_id: str | None = None
    agent_config: PartialConfig | None = None


class CallFields(Body):
    """What clients of every kind say of a call."""

    metadata: dict[str, Json] | None = None
    include_metadata_in_prompt: bool | None = None
    session_continuation: Continuation | None = None


class Initiate(CallFields):
    """The first message of a client of the websocket."""

    agent: AgentChoice = AgentChoice()
    call_id: str | None = None
    public_key: str | None = None


class ChatAgent(AgentChoice, CallFields):
    """The agent of a text chat, and its metadata."""

    agent_config: PartialAgentConfig | None = None


class Registration(ChatAgent):
    """The body of `register_call` and of `register_sip_call`."""

    from_phone: str | None = None
    to_phone: str | None = None


#: Without spaces or dashes.
Phone = Annotated[str, StringConstraints(pattern=f"^{E164.pattern}$")]


class OutboundCall(Registration):
    """The body of `start_outbound_call`."""

    from_phone: Phone
    to_phone: Phone


class LogQuery(Body):
    """The query of `call-logs`; times are Unix seconds."""

    limit: int = Field(20, gt=0, le=100)
    start_after_ts: float | None = None
    start_time: float | None = None
    end_time: float | None = None
    agent_id: str | None = None
    call_status: str | None = None
    phone_number: str | None = None
