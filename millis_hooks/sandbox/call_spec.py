"""What is asked of a session: all that may differ between one call and another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias, get_args

from pydantic import ConfigDict

from ..protocol.call_status import CallStatus
from ..protocol.reading import Json
from ..protocol.samples import AGENT_ID, Vintage
from .policy import Policy
from .transport import Answer

#: How a call comes about, and so how its metadata is attached.
Way: TypeAlias = Literal[
    "inbound", "outbound", "web-sdk", "widget", "websocket", "registered", "chat"
]
WAYS: tuple[Way, ...] = get_args(Way)
PrefetchFault: TypeAlias = Literal["slow", "error", "bad-json", "unreachable"]
PREFETCH_FAULTS: tuple[PrefetchFault, ...] = get_args(PrefetchFault)
#: How often the end-of-call comes.
EndOfCallTimes: TypeAlias = Literal["once", "twice", "late", "never"]
END_OF_CALL_TIMES: tuple[EndOfCallTimes, ...] = get_args(EndOfCallTimes)

#: Ways of the phone; the others have no numbers.
PHONE_WAYS = frozenset({"inbound", "outbound"})
#: Ways by the websocket, on which an agent can be made up for one session.
SOCKET_WAYS = frozenset({"web-sdk", "widget", "websocket"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What goes wrong on purpose."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)

    #: What Millis would see of the prefetch, whatever the receiver answers.
    prefetch: PrefetchFault | None = None
    #: How much later a slow answer comes, in seconds.
    prefetch_slow_s: float = 10.0
    end_of_call: EndOfCallTimes = "once"


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec:
    """One call: who, with which agent, knowing what, and what is sent of it at the end."""

    way: Way = "inbound"
    agent_id: str | None = AGENT_ID
    #: As Millis' `AgentConfig`: `prompt`, `first_message`, `tools`, `extra_prompt_webhook`,
    #: `session_data_webhook` and the rest; overrides are merged before they come here.
    agent_config: Mapping[str, Json] = field(default_factory=dict)
    metadata: Mapping[str, Json] = field(default_factory=dict)
    include_metadata_in_prompt: bool = False
    from_phone: str | None = None
    to_phone: str | None = None
    #: The conversation that this one continues, as messages.
    earlier: Sequence[Mapping[str, Json]] = ()
    #: Made when the session is, if they are None.
    session_id: str | None = None
    call_id: str | None = None
    #: A call that never connects, and how: busy, no-answer, canceled, failed.
    unreached: CallStatus | None = None
    #: What functions answer, by name, that are not to be called for real.
    function_answers: Mapping[str, Answer] = field(default_factory=dict)
    vintage: Vintage = "v2"
    #: What the end-of-call says beside what the session knows itself, such as `call_analysis`.
    extra_fields: Mapping[str, Json] = field(default_factory=dict)
    #: Handlers are told so by `call.dry_run`.
    dry_run: bool = False
    #: What a person should know of how the call was asked for.
    notes: Sequence[str] = ()
    faults: Faults = field(default_factory=Faults)
    policy: Policy = field(default_factory=Policy)

    @property
    def is_on_the_phone(self) -> bool:
        """Whether the call runs over a phone network."""
        return self.from_phone is not None or self.to_phone is not None
