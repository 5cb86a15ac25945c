"""What happens before the first word: prefetch, merge, and the texts filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ..variables import variables_of
from ..wire import Json
from .desk import Desk, Exchange
from .prefetching import Taken, notes_on_request, prefetch_request, read_answer
from .prompt import Filling, Texts, merge_metadata, render
from .spec import SessionSpec
from .steps import Attached, Merged, Prefetched, Rendered
from .transport import Answer
from .webhooks import PREFETCH, webhook_of

_FAULTS = {
    "error": Answer(500, b'{"error":"internal server error"}', "application/json"),
    "bad-json": Answer(200, b'{"metadata": {"caller": ', "application/json"),
}

#: Parts of an agent that would change how a call goes, and do not change it here.
IGNORED = (
    "app_functions",
    "call_settings.background",
    "custom_vocabulary",
    "flow.agent_terminate_call",
    "flow.auto_fill_responses",
    "flow.call_transfer",
    "flow.dtmf_dial",
    "flow.inactivity_handling",
    "flow.interruption",
    "flow.response_delay",
    "flow.voicemail.continue_on_voice_activity",
    "knowledge_base",
    "llm.history_settings",
    "memory",
    "millis_functions",
    "privacy_settings.do_not_call_detection",
    "session_timeout.max_idle",
    "speech_to_text",
    "switch_language",
    "timezone",
    "tools.execute_after_message",
    "tools.response_mode",
    "vad_threshold",
)


@dataclass(frozen=True, slots=True)
class Beginning:
    """What the agent knows when the conversation begins."""

    metadata: Mapping[str, Json]
    texts: Texts
    #: What `{name}` stands for.
    variables: Mapping[str, object]
    #: Why the prefetch gave nothing; None if it did, or there was nobody to ask.
    failure: str | None = None


def attach(desk: Desk) -> None:
    """Note who calls, and the metadata that was attached."""
    spec = desk.spec
    desk.add(
        Attached(
            way=spec.way,
            session_id=desk.session_id,
            call_id=desk.call_id,
            agent_id=spec.agent_id,
            from_phone=spec.from_phone,
            to_phone=spec.to_phone,
            metadata=dict(spec.metadata),
            notes=tuple(spec.notes),
        )
    )


async def begin(desk: Desk) -> Beginning:
    """Ask the prefetch webhook, and make of the answer what the agent is given."""
    asking = Filling(_variables(desk.spec, desk.spec.metadata), desk.spec.policy)
    taken = await _prefetch(desk, asking)
    merge = merge_metadata(desk.spec.metadata, taken.metadata, desk.spec.policy)
    desk.add(Merged(**merge._asdict(), extra_prompt=taken.extra_prompt))
    beginning = _beginning(desk.spec, merge.metadata, taken, asking.unresolved)
    desk.add(_rendered(beginning.texts, desk))
    return beginning


def begin_without_prefetch(spec: SessionSpec) -> Beginning:
    """Return what is known of a call nobody is asked about."""
    return _beginning(spec, dict(spec.metadata), Taken(), {})


def _variables(spec: SessionSpec, metadata: Mapping[str, Json]) -> Mapping[str, object]:
    return variables_of(metadata, from_phone=spec.from_phone, to_phone=spec.to_phone)


def _beginning(
    spec: SessionSpec,
    metadata: Mapping[str, Json],
    taken: Taken,
    unresolved: Mapping[str, tuple[str, ...]],
) -> Beginning:
    variables = _variables(spec, metadata)
    filling = Filling(variables, spec.policy)
    filling.unresolved |= unresolved
    texts = render(
        spec.agent_config,
        filling,
        extra_prompt=taken.extra_prompt,
        metadata_in_prompt=metadata if spec.include_metadata_in_prompt else None,
    )
    return Beginning(metadata, texts, variables, taken.failure)


async def _prefetch(desk: Desk, filling: Filling) -> Taken:
    webhook = webhook_of(desk.spec.agent_config.get(PREFETCH))
    if webhook is None:
        desk.add(Prefetched(notes=("The agent has no prefetch webhook.",)))
        return Taken()
    request = prefetch_request(desk.spec, filling.webhook(webhook, PREFETCH), desk.session_id)
    policy = desk.spec.policy
    exchange = await desk.send(request, timeout_s=policy.prefetch_timeout_s, marked=True)
    exchange, notes = await _spoil(exchange, desk)
    taken = Taken(failure=exchange.failure)
    if exchange.answer is not None and exchange.failure is None:
        taken = read_answer(exchange.answer, policy)
    notes = (*notes_on_request(desk.spec), *notes, *taken.notes)
    desk.add(Prefetched(**exchange.fields() | {"failure": taken.failure, "notes": notes}))
    return taken


async def _spoil(exchange: Exchange, desk: Desk) -> tuple[Exchange, tuple[str, ...]]:
    """Have go wrong what is asked for; return what Millis would have seen, and a note of it."""
    faults, timeout_s = desk.spec.faults, desk.spec.policy.prefetch_timeout_s
    if faults.prefetch is None:
        return exchange, ()
    if faults.prefetch == "slow":
        left_s = max(timeout_s - exchange.took_ms / 1000, 0.0)
        await desk.clock.pass_time(min(faults.prefetch_slow_s, left_s))
        took_ms = exchange.took_ms + faults.prefetch_slow_s * 1000
        spoilt = replace(exchange, took_ms=min(took_ms, timeout_s * 1000))
        if took_ms > timeout_s * 1000:
            spoilt = replace(spoilt, answer=None, failure=f"no answer within {timeout_s:g} s")
        return spoilt, (f"The answer was held back for {faults.prefetch_slow_s:g} s on purpose.",)
    if faults.prefetch == "unreachable":
        spoilt = replace(exchange, answer=None, failure="could not be reached")
        return spoilt, ("The answer was lost on purpose.",)
    spoilt = replace(exchange, answer=_FAULTS[faults.prefetch], failure=None)
    return spoilt, ("The answer was replaced on purpose.",)


def _rendered(texts: Texts, desk: Desk) -> Rendered:
    notes: list[str] = []
    if texts.unresolved:
        what = desk.spec.policy.missing_variables
        notes.append(f"Unknown names are {what}: Millis does not say what it does with them.")
    if ignored := [path for path in IGNORED if _has(desk.spec.agent_config, path.split("."))]:
        notes.append(f"Not rehearsed here: {', '.join(ignored)}.")
    return Rendered(
        prompt=texts.prompt,
        first_message=texts.first_message,
        tools=texts.tools,
        messages=dict(texts.messages),
        unresolved=dict(texts.unresolved),
        notes=tuple(notes),
    )


def _has(value: Json | Mapping[str, Json], path: Sequence[str]) -> bool:
    """Tell whether a part of a configuration is set; in a list, of any of its items."""
    if isinstance(value, list):
        return any(_has(item, path) for item in value)
    if not path:
        return value is not None
    return isinstance(value, Mapping) and _has(value.get(path[0]), path[1:])
