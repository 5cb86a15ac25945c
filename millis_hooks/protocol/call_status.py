"""How calls stand and end: Millis' statuses, and the few outcomes a team acts on."""

from __future__ import annotations

from enum import StrEnum


class CallStatus(StrEnum):
    """How a call stands or ended. Source: `CallStatus` in Millis' OpenAPI file.

    The list is open: compare `EndOfCall.call_status` to a member, never look a member up by it.
    """

    REGISTERED = "registered"
    QUEUED = "queued"
    DISPATCHING = "dispatching"
    PROVIDER_QUEUED = "provider_queued"
    INITIATED = "initiated"
    RINGING = "ringing"
    IN_PROGRESS = "in-progress"
    USER_ENDED = "user-ended"
    AGENT_ENDED = "agent-ended"
    API_ENDED = "api-ended"
    VOICEMAIL_HANGUP = "voicemail-hangup"
    VOICEMAIL_MESSAGE = "voicemail-message"
    TIMEOUT = "timeout"
    CANCELED = "canceled"
    BUSY = "busy"
    NO_ANSWER = "no-answer"
    FAILED = "failed"
    ERROR = "error"
    UNKNOWN = "unknown"
    CHAT_COMPLETION = "chat_completion"


#: The statuses of a call that is not over.
UNDER_WAY = frozenset(
    {
        CallStatus.REGISTERED,
        CallStatus.QUEUED,
        CallStatus.DISPATCHING,
        CallStatus.PROVIDER_QUEUED,
        CallStatus.INITIATED,
        CallStatus.RINGING,
        CallStatus.IN_PROGRESS,
    }
)


class Outcome(StrEnum):
    """What became of a call, in the few words a team acts on."""

    COMPLETED = "completed"
    CHAT = "chat"
    VOICEMAIL = "voicemail"
    TIMEOUT = "timeout"
    FAILED = "failed"
    UNREACHED = "unreached"
    UNKNOWN = "unknown"


_OUTCOMES: dict[str | None, Outcome] = {
    CallStatus.USER_ENDED: Outcome.COMPLETED,
    CallStatus.AGENT_ENDED: Outcome.COMPLETED,
    CallStatus.API_ENDED: Outcome.COMPLETED,
    CallStatus.CHAT_COMPLETION: Outcome.CHAT,
    CallStatus.VOICEMAIL_HANGUP: Outcome.VOICEMAIL,
    CallStatus.VOICEMAIL_MESSAGE: Outcome.VOICEMAIL,
    CallStatus.TIMEOUT: Outcome.TIMEOUT,
    CallStatus.ERROR: Outcome.FAILED,
    CallStatus.FAILED: Outcome.FAILED,
    CallStatus.BUSY: Outcome.UNREACHED,
    CallStatus.NO_ANSWER: Outcome.UNREACHED,
    CallStatus.CANCELED: Outcome.UNREACHED,
}


def outcome_of(status: str | None) -> Outcome:
    """Return what became of a call of this status; `unknown` for a status that is new."""
    return _OUTCOMES.get(status, Outcome.UNKNOWN)


_SPELLINGS = {status.replace("_", "-"): status.value for status in CallStatus}


def spell_status(status: str) -> str:
    """Return Millis' spelling of a status that came in another case or with `_` for `-`."""
    return _SPELLINGS.get(status.strip().lower().replace("_", "-"), status)
