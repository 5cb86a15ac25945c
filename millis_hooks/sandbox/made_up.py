"""What the sandbox makes up, because no page of Millis' says it: all of it, in one list.

The page "What the sandbox makes up" is made of it. A test asks for every constant of the sandbox to
be named here, or to be known from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ..environment.sources import ENV_PREFIX
from .agent import CHARS_PER_S
from .emulator import custom_llm, http_api, sessions, store, websocket
from .emulator.rehearsals import LONGEST_S
from .policy import PolicySetting, policy_settings
from .session import MAX_RESULT_CHARS
from .texts import IGNORED
from .transport import MAX_ANSWER_BYTES
from .webhook_client import PER_MINUTE, TTS_PER_1000_CHARS

_PACE, _KEY = f"`{ENV_PREFIX}SANDBOX_PACE`", f"`{ENV_PREFIX}SANDBOX_KEY`"
_NUMBERS = ", ".join(f"`{phone}` {status}" for phone, status in sessions.UNREACHED.items())
_IGNORED = ", ".join(f"`{part}`" for part in IGNORED)
_DOLLARS = ", ".join(f"{kind} {price}" for (kind, _), price in PER_MINUTE.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUp:
    """Something that is so in the sandbox, and may be otherwise at Millis."""

    topic: str
    what: str
    #: What changes it, in Markdown; empty where nothing does.
    setting: str = ""
    #: The constants that it names, by module below the sandbox.
    constants: tuple[str, ...] = ()


def _row(topic: str, what: str, *constants: str, setting: str = "") -> MadeUp:
    return MadeUp(topic=topic, what=what, setting=setting, constants=constants)


_TALK, _AGENTS, _API, _TOLD, _TEXTS, _MODEL = (
    "Over the websocket",
    "Agents and numbers",
    "The HTTP API",
    "What is told of a call",
    "Texts and functions",
    "Your own model",
)

MADE_UP: tuple[MadeUp, ...] = (
    _row(
        _TALK,
        'Nothing understands speech. `{"method": "say", "data": "A table"}` has the caller say it; '
        "`hang_up` ends the call, with the status in its `data` or `user-ended`.",
    ),
    _row(
        _TALK,
        '`{"method": "call", "data": {"name": "find_slot", "params": {}}}` has the agent call its '
        "function, in its turn among what is said. The agent says what came of it.",
    ),
    _row(_TALK, "Without a model of your own the agent says `You said: …`."),
    _row(
        _TALK,
        f"A peak of {websocket.LOUD:,} of 32,767 is a sound, {websocket.SPEECH_FROM_S:g} s of it "
        f"are speech, and {websocket.SILENCE_S:g} s of silence end it. The caller is then taken "
        "to say "
        f"`{websocket.SPEECH}`, and at its end `[speech, 1.4 s]`.",
        "emulator.websocket.LOUD",
        "emulator.websocket.SPEECH_FROM_S",
        "emulator.websocket.SILENCE_S",
    ),
    _row(
        _TALK,
        f"The agent's voice is a tone of {websocket.TONE_HZ} Hz, as long as its words at "
        f"{CHARS_PER_S:g} characters a second.",
        "emulator.websocket.TONE_HZ",
        "emulator.websocket._AMPLITUDE",
        "emulator.websocket._FRAME_S",
        "agent.CHARS_PER_S",
    ),
    _row(_TALK, "A text is sent twice: half of its words first, with `is_final` false."),
    _row(
        _TALK,
        "`onready` comes when the prefetch is over.",
        setting="`prefetch_timeout_s`",
    ),
    _row(
        _TALK,
        "A message that is not JSON, has an unknown method or is a second `initiate` changes "
        f"nothing. The call's page names the first {websocket.MOST_ODD} of them. A client may wait "
        "for as long as it likes before `initiate`; until then only `ping` is answered.",
        "emulator.websocket.MOST_ODD",
        "emulator.websocket._METHOD_CHARS",
        setting="`odd_messages`",
    ),
    _row(
        _TALK,
        f"A call that is refused is closed with {custom_llm.VIOLATION} and the reason, one too "
        f"many with {websocket.TRY_AGAIN}. After `onsessionended` the server closes with 1000. A "
        "client that goes away has hung up: `user-ended`.",
        "emulator.custom_llm.VIOLATION",
        "emulator.websocket.TRY_AGAIN",
    ),
    _row(
        _TALK,
        "An agent without an id, made up for a session, needs a prompt and a voice. A key of it "
        "that Millis does not document is taken here, and refused by the HTTP API.",
    ),
    _row(
        _AGENTS,
        "An `agent_id` that was not made here is taken, and the call's page says so: an agent "
        "stands in that says "
        f'"{sessions.DEFAULT_CONFIG["first_message"]}". What the call overrides counts.',
    ),
    _row(
        _AGENTS,
        "An agent that names no webhook has those of your application, with a secret of yours. "
        "One that has `null` has none.",
    ),
    _row(
        _AGENTS,
        "A call that names no agent uses the agent of its `from_phone`, which `set_phone_agent` "
        "or `phones/{phone}/set_agent` sets. If there is none, the sandbox's own stands in. "
        "`phones` lists these numbers as `active`.",
    ),
    _row(
        _AGENTS,
        f"A phone call that no scenario is named for goes as `{sessions.PHONE_SCENARIO}` does, "
        "whatever the agent.",
        setting="`/as/{scenario}` in the address",
    ),
    _row(_AGENTS, f"Numbers that are never reached: {_NUMBERS}."),
    _row(
        _AGENTS,
        "`PUT /agents/{id}` replaces the keys of the configuration that it names and leaves the "
        "others.",
    ),
    _row(
        _AGENTS,
        f"These parts of an agent have no effect, and the call's page says so: {_IGNORED}.",
    ),
    _row(_API, "Any key will do. With `Bearer` before it, it is 401.", setting=_KEY),
    _row(
        _API,
        f"A body over {http_api.MAX_BODY_BYTES:,} bytes is refused with 413, a call beyond "
        f"{sessions.MAX_LIVE} at once with 429. The texts of 404, and the answer of "
        '`terminate`, `{"success": true}`.',
        "emulator.http_api.MAX_BODY_BYTES",
        "emulator.sessions.MAX_LIVE",
    ),
    _row(
        _API,
        "A registered call comes in once, over the websocket by its `call_id`; before that no log "
        f"has it. The last {sessions.MAX_REGISTERED:,} are remembered. The SIP address is at "
        f"`{http_api.SIP_HOST}`, where no server is.",
        "emulator.sessions.MAX_REGISTERED",
    ),
    _row(
        _API,
        "`POST /sessions/{id}/call` with `name` and `params` has the agent of a call use a "
        "function, and answers with its `result`. Millis has no such address.",
    ),
    _row(
        _API,
        "`call-histories` begins with the call at `start_at` and goes back in time, with at most "
        f"{http_api.MAX_HISTORIES:,} calls. Where a call has nothing, it has 0, an empty text "
        "or an empty list.",
        "emulator.http_api.MAX_HISTORIES",
    ),
    _row(
        _API,
        "`call-logs` hides the secrets in `agent_config`; `agents` does not. The statuses "
        "`registered`, `queued` and `ringing` do not occur.",
    ),
    _row(
        _API,
        "A text chat is an echo. The prefetch is asked, and the end is told of, with "
        "`end_of_session` only.",
    ),
    _row(
        _API,
        f"Calls are kept for {store.KEPT.total_seconds() / 3600:g} hours.",
        "emulator.store.KEPT",
    ),
    _row(
        _TOLD,
        f"Costs, in dollars a minute: {_DOLLARS}; and {TTS_PER_1000_CHARS} for 1,000 characters "
        "said. In the formats of 2024 they are whole hundredths.",
        "webhook_client.TTS_PER_1000_CHARS",
    ),
    _row(
        _TOLD,
        "The provider `twilio`, recordings at `recordings.example`, a duration in whole seconds, "
        "and `chars_used`: what the agent said.",
    ),
    _row(_TOLD, "The status is `error` if the agent or its model fails."),
    _row(
        _TOLD,
        f"A call of the sandbox's page ends after {LONGEST_S / 60:g} minutes.",
        "emulator.rehearsals.LONGEST_S",
        "emulator.rehearsals.PATIENCE_S",
    ),
    _row(
        _TEXTS,
        "The prompt, an empty line and the extra prompt; then the metadata as JSON under "
        "`Metadata of this session:`, if it is included.",
    ),
    _row(
        _TEXTS,
        "A variable that is no text is spelled as JSON, in a text and in a query. `{FromPhone}` "
        "and `{ToPhone}` win over metadata of these names; in the query of a prefetch Millis' own "
        "fields come first. In an address every value is escaped.",
    ),
    _row(
        _TEXTS,
        "The agent says the first of a function's `messages` before it; `session_timeout.message` "
        "when a call ends with `timeout`, and `flow.voicemail.message` with `voicemail-message`.",
        "texts._DEEPEST",
    ),
    _row(
        _TEXTS,
        "A function that fails is told to the agent as `Failed: ` and why. Of a result "
        f"{MAX_RESULT_CHARS:,} characters are handed on, and of an answer "
        f"{MAX_ANSWER_BYTES:,} bytes are read.",
        "session.MAX_RESULT_CHARS",
        "transport.MAX_ANSWER_BYTES",
    ),
    _row(
        _MODEL,
        "`call_sid` is the `call_id`. `voip.from` is who dialled, as everywhere else; Millis' "
        "page has it the other way round. There is one `partial_transcript`, the final one.",
    ),
    _row(
        _MODEL,
        "The greeting has the `stream_id` 0, and each request the next one. A model may greet "
        "with another; requests then count on from that.",
    ),
    _row(
        _MODEL,
        f"An answer is spoken at {CHARS_PER_S:g} characters a second. When the caller interrupts, "
        "sentences that were not begun are dropped, and are not in the transcript.",
        setting=_PACE,
    ),
    _row(
        _MODEL,
        "A sentence is complete at `.`, `!`, `?` or `…` before white space or the end of a part, "
        "at their like in other scripts, and at the end of a line.",
    ),
    _row(
        _MODEL,
        f"{custom_llm.OPEN_TIMEOUT_S:g} s to connect. A scripted caller waits "
        f"{custom_llm.ANSWER_TIMEOUT_S:g} s for an answer that does not come.",
        "emulator.custom_llm.OPEN_TIMEOUT_S",
        "emulator.custom_llm.ANSWER_TIMEOUT_S",
    ),
    _row(
        _MODEL,
        f"`transfer_call` is noted as the function `{custom_llm.TRANSFER}` and ends the call with "
        "`agent-ended`.",
    ),
)


def as_markdown() -> str:
    """Return the list as tables: what has a setting of the policy, then the rest by topic."""
    return "\n\n".join(_sections())


def _sections() -> Iterator[str]:
    rows = [f"| `{one.name}` | {_choices(one)} | {one.meaning} |" for one in policy_settings()]
    yield "\n".join(["## Settings of the policy", "", "| Name | Is | |", "|---|---|---|", *rows])
    for topic in dict.fromkeys(one.topic for one in MADE_UP):
        rows = [f"| {one.what} | {one.setting} |" for one in MADE_UP if one.topic == topic]
        yield "\n".join([f"## {topic}", "", "| What | To change it |", "|---|---|", *rows])


def _choices(setting: PolicySetting) -> str:
    others = [each for each in setting.choices if each != setting.default]
    more = f", or {', '.join(map(_spelled, others))}" if others else ""
    return f"{_spelled(setting.default)}{more}"


def _spelled(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
