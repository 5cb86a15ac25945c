"""What the sandbox makes up, because no page of Millis' says it: all of it, in one list.

The page "What the sandbox makes up" is made of it. A test asks for every constant of the sandbox to
be named in it, or to be known from elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

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

#: By topic, in Markdown, a paragraph each.
_TOPICS = {
    "Over the websocket": f"""
Nothing understands speech. `{{"method": "say", "data": "A table"}}` has the caller say it;
`hang_up` ends the call, with the status in its `data` or `user-ended`.

`{{"method": "call", "data": {{"name": "find_slot", "params": {{}}}}}}` has the agent call its
function, in its turn among what is said. The agent says what came of it.

Without a model of your own the agent says `You said: …`.

A peak of {websocket.LOUD:,} of 32,767 is a sound, {websocket.SPEECH_FROM_S:g} s of it are speech,
and {websocket.SILENCE_S:g} s of silence end it. The caller is then taken to say
`{websocket.SPEECH}`, and at its end `[speech, 1.4 s]`.

The agent's voice is a tone of {websocket.TONE_HZ} Hz, as long as its words at {CHARS_PER_S:g}
characters a second.

A text is sent twice: half of its words first, with `is_final` false.

`onready` comes when the prefetch is over.
To change it: `prefetch_timeout_s`

A message that is not JSON, has an unknown method or is a second `initiate` changes nothing. The
call's page names the first {websocket.MOST_ODD} of them. A client may wait for as long as it
likes before `initiate`; until then only `ping` is answered.
To change it: `odd_messages`

A call that is refused is closed with {custom_llm.VIOLATION} and the reason, one too many with
{websocket.TRY_AGAIN}. After `onsessionended` the server closes with 1000. A client that goes away
has hung up: `user-ended`.

An agent without an id, made up for a session, needs a prompt and a voice. A key of it that Millis
does not document is taken here, and refused by the HTTP API.
""",
    "Agents and numbers": f"""
An `agent_id` that was not made here is taken, and the call's page says so: an agent stands in
that says "{sessions.DEFAULT_CONFIG["first_message"]}". What the call overrides counts.

An agent that names no webhook has those of your application, with a secret of yours. One that has
`null` has none.

A call that names no agent uses the agent of its `from_phone`, which `set_phone_agent` or
`phones/{{phone}}/set_agent` sets. If there is none, the sandbox's own stands in. `phones` lists
these numbers as `active`.

A phone call that no scenario is named for goes as `{sessions.PHONE_SCENARIO}` does, whatever the
agent.
To change it: `/as/{{scenario}}` in the address

Numbers that are never reached: {_NUMBERS}.

`PUT /agents/{{id}}` replaces the keys of the configuration that it names and leaves the others.

These parts of an agent have no effect, and the call's page says so: {_IGNORED}.
""",
    "The HTTP API": f"""
Any key will do. With `Bearer` before it, it is 401.
To change it: {_KEY}

A body over {http_api.MAX_BODY_BYTES:,} bytes is refused with 413, a call beyond
{sessions.MAX_LIVE} at once with 429. The texts of 404, and the answer of `terminate`,
`{{"success": true}}`.

A registered call comes in once, over the websocket by its `call_id`; before that no log has it.
The last {sessions.MAX_REGISTERED:,} are remembered. The SIP address is at `{http_api.SIP_HOST}`,
where no server is.

`POST /sessions/{{id}}/call` with `name` and `params` has the agent of a call use a function, and
answers with its `result`. Millis has no such address.

`call-histories` begins with the call at `start_at` and goes back in time, with at most
{http_api.MAX_HISTORIES:,} calls. Where a call has nothing, it has 0, an empty text or an empty
list.

`call-logs` hides the secrets in `agent_config`; `agents` does not. The statuses `registered`,
`queued` and `ringing` do not occur.

A text chat is an echo. The prefetch is asked, and the end is told of, with `end_of_session` only.

Calls are kept for {store.KEPT.total_seconds() / 3600:g} hours.
""",
    "What is told of a call": f"""
Costs, in dollars a minute: {_DOLLARS}; and {TTS_PER_1000_CHARS} for 1,000 characters said. In the
formats of 2024 they are whole hundredths.

The provider `twilio`, recordings at `recordings.example`, a duration in whole seconds, and
`chars_used`: what the agent said.

The status is `error` if the agent or its model fails.

A call of the sandbox's page ends after {LONGEST_S / 60:g} minutes.
""",
    "Texts and functions": f"""
The prompt, an empty line and the extra prompt; then the metadata as JSON under `Metadata of this
session:`, if it is included.

A variable that is no text is spelled as JSON, in a text and in a query. `{{FromPhone}}` and
`{{ToPhone}}` win over metadata of these names; in the query of a prefetch Millis' own fields come
first. In an address every value is escaped.

The agent says the first of a function's `messages` before it; `session_timeout.message` when a
call ends with `timeout`, and `flow.voicemail.message` with `voicemail-message`.

A function that fails is told to the agent as `Failed: ` and why. Of a result {MAX_RESULT_CHARS:,}
characters are handed on, and of an answer {MAX_ANSWER_BYTES:,} bytes are read.
""",
    "Your own model": f"""
`call_sid` is the `call_id`. `voip.from` is who dialled, as everywhere else; Millis' page has it
the other way round. There is one `partial_transcript`, the final one.

The greeting has the `stream_id` 0, and each request the next one. A model may greet with another;
requests then count on from that.

An answer is spoken at {CHARS_PER_S:g} characters a second. When the caller interrupts, sentences
that were not begun are dropped, and are not in the transcript.
To change it: {_PACE}

A sentence is complete at `.`, `!`, `?` or `…` before white space or the end of a part, at their
like in other scripts, and at the end of a line.

{custom_llm.OPEN_TIMEOUT_S:g} s to connect. A scripted caller waits
{custom_llm.ANSWER_TIMEOUT_S:g} s for an answer that does not come.

`transfer_call` is noted as the function `{custom_llm.TRANSFER}` and ends the call with
`agent-ended`.
""",
}


class MadeUp(NamedTuple):
    """Something that is so in the sandbox, and may be otherwise at Millis."""

    topic: str
    text: str
    #: What changes it; empty where nothing does.
    setting: str


def _rows() -> Iterator[MadeUp]:
    for topic, paragraphs in _TOPICS.items():
        for paragraph in paragraphs.strip().split("\n\n"):
            text, _, setting = paragraph.partition("\nTo change it: ")
            yield MadeUp(topic, text.replace("\n", " "), setting)


MADE_UP: tuple[MadeUp, ...] = tuple(_rows())


def as_markdown() -> str:
    """Return the list as tables: what has a setting of the policy, then the rest by topic."""
    return "\n\n".join(_sections())


def _sections() -> Iterator[str]:
    rows = [f"| `{one.name}` | {_choices(one)} | {one.meaning} |" for one in policy_settings()]
    yield "\n".join(["## Settings of the policy", "", "| Name | Is | |", "|---|---|---|", *rows])
    for topic in dict.fromkeys(one.topic for one in MADE_UP):
        rows = [f"| {one.text} | {one.setting} |" for one in MADE_UP if one.topic == topic]
        yield "\n".join([f"## {topic}", "", "| What | To change it |", "|---|---|", *rows])


def _choices(setting: PolicySetting) -> str:
    others = [each for each in setting.choices if each != setting.default]
    more = f", or {', '.join(map(_spelled, others))}" if others else ""
    return f"{_spelled(setting.default)}{more}"


def _spelled(value: object) -> str:
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"
