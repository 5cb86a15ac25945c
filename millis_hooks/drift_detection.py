"""What of a message is new to us: unknown fields, unknown values, and what could not be read.

Unknown is normal and refuses nothing; it is counted, so that somebody sees when Millis changes its
format. Source of what is known: docs.millis.ai, core-concepts/webhooks, its OpenAPI file, and the
payloads that public receivers handle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import cache, lru_cache
from itertools import chain
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias, cast

from pydantic import BaseModel

from .call_status import CallStatus
from .events import EndOfCall, Json, PrefetchRequest, Problem
from .payload_places import Place

if TYPE_CHECKING:
    from .masking import MaskPolicy

DriftKind: TypeAlias = Literal["unreadable", "unknown_value", "unknown_field"]

#: So many finds are kept of one message, whatever its sender makes up.
MOST_FINDS = 50

_STATUSES = frozenset(CallStatus)
_ROLES = frozenset({"user", "assistant", "tool"})
_COST_TYPES = frozenset({"millis", "tts", "stt", "llm"})
_COST_PROVIDERS = frozenset({"millis", "openai", "elevenlabs", "deepgram", "gladia", "talkscriber"})
_CARRIERS = frozenset({"twilio", "vonage", "plivo", "exotel", "telnyx"})
_AGENT_CONFIG = frozenset(
    {"app_functions", "call_settings", "custom_llm_websocket", "custom_vocabulary",
     "extra_prompt_webhook", "first_message", "flow", "knowledge_base", "language", "llm",
     "memory", "millis_functions", "privacy_settings", "prompt", "session_data_webhook",
     "session_timeout", "speech_to_text", "switch_language", "timezone", "tools", "vad_threshold",
     "voice"}
)  # fmt: skip
_CALL_ANALYSIS = frozenset({"opt_out_detection"})
_CALL_METRICS = frozenset({"utterance_latency"})

#: What a sample is cut to: long enough to be recognized, and for a secret to show its shape.
_SAMPLE_CHARS = 120
_READ_CHARS = 160
_NAME_CHARS = 60
_SAMPLE_ITEMS = 5


class Drift(NamedTuple):
    """One find. `path` is where: `chat[].role` in an end-of-call, `?from` in a prefetch.

    `sample` is what was found: short, without secrets and with numbers shortened.
    """

    kind: DriftKind
    path: str
    sample: str


class _Find(NamedTuple):
    kind: DriftKind
    path: str
    name: str
    value: Json | Problem


def drift_of(message: EndOfCall | PrefetchRequest) -> list[Drift]:
    """Return what is new in a message, each once; metadata is the team's own and never counts."""
    if not isinstance(message, EndOfCall):
        return _distinct(_unreadable(message.problems, "?"))
    found = (_unreadable(message.problems, ""), _unknown_values(message), _unknown_fields(message))
    return _distinct(chain.from_iterable(found))


def _distinct(finds: Iterable[_Find]) -> list[Drift]:
    drift: dict[tuple[str, str, object], Drift] = {}
    for find in finds:
        key = (find.kind, find.path, find.value if find.kind == "unknown_value" else None)
        if key not in drift:
            drift[key] = Drift(find.kind, _masked_path(find.path), _sample(find))
            if len(drift) == MOST_FINDS:
                break
    return list(drift.values())


def _unreadable(problems: Iterable[Problem], path: str) -> Iterator[_Find]:
    for problem in problems:
        yield _Find("unreadable", path + problem.field, problem.field, problem)


def _unknown_values(call: EndOfCall) -> Iterator[_Find]:
    yield from _unknown(_STATUSES, "call_status", [call.call_status])
    yield from _unknown(_ROLES, "chat[].role", (message.role for message in call.chat))
    if call.cost_breakdown:
        types = (item.type for item in call.cost_breakdown)
        providers = (item.provider for item in call.cost_breakdown)
        yield from _unknown(_COST_TYPES, "cost_breakdown[].type", types)
        yield from _unknown(_COST_PROVIDERS, "cost_breakdown[].provider", providers)
    if call.voip is not None:
        yield from _unknown(_CARRIERS, "voip.provider", [call.voip.provider])


def _unknown(known: frozenset[str], path: str, values: Iterable[str | None]) -> Iterator[_Find]:
    for value in values:
        if value and value not in known and value.lower() not in known:
            yield _Find("unknown_value", path, "", value)


def _unknown_fields(call: EndOfCall) -> Iterator[_Find]:
    for path, parts in _parts(call):
        for part in parts:
            if part.model_extra:
                yield from _fields(path, part.model_extra, frozenset())
    yield from _fields("agent_config.", call.agent_config, _AGENT_CONFIG)
    yield from _fields("call_analysis.", call.call_analysis, _CALL_ANALYSIS)
    yield from _fields("call_metrics.", call.call_metrics, _CALL_METRICS)


def _fields(path: str, part: dict[str, Json] | None, known: frozenset[str]) -> Iterator[_Find]:
    for name, value in (part or {}).items():
        if name not in known:
            yield _Find("unknown_field", path + name[:_NAME_CHARS], name, value)


def _parts(call: EndOfCall) -> Iterator[tuple[str, Iterable[BaseModel]]]:
    """Yield what may have fields that nobody knows, each with how the path to them begins."""
    yield "", [call]
    yield "chat[].", call.chat
    tool_calls = [tool_call for message in call.chat for tool_call in message.tool_calls]
    yield "chat[].tool_calls[].", tool_calls
    yield "chat[].tool_calls[].function.", (tool_call.function for tool_call in tool_calls)
    yield "function_calls[].", call.function_calls
    yield "cost_breakdown[].", call.cost_breakdown
    yield "voip.", [call.voip] if call.voip else []
    yield "recording.", [call.recording] if call.recording else []


def _sample(find: _Find) -> str:
    if isinstance(find.value, Problem):
        return f"{find.value.found}; {find.value.why}"
    # Under its own name: that may say that it is a secret.
    masked = _policy().payload({find.name: _shortened(find.value)}, Place.LINE)
    value = cast("dict[str, Json]", masked)[find.name]
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:_SAMPLE_CHARS]


@lru_cache(maxsize=1024)
def _masked_path(path: str) -> str:
    return _policy().line(path)


@cache
def _policy() -> MaskPolicy:
    # Compiles its patterns when it is imported; most messages have nothing new in them.
    from .masking import MaskPolicy

    return MaskPolicy(numbers="partial")


def _shortened(value: Json, depth: int = 0) -> Json:
    """Copy the beginning of a value: a sample of ten megabytes is no sample."""
    if isinstance(value, str):
        return value[:_READ_CHARS]
    if isinstance(value, int) and abs(value) >= 2**63:
        return "a large number"
    if not isinstance(value, dict | list):
        return value
    if depth == 2:
        return "…"
    if isinstance(value, list):
        return [_shortened(item, depth + 1) for item in value[:_SAMPLE_ITEMS]]
    names = list(value)[:_SAMPLE_ITEMS]
    return {name[:_NAME_CHARS]: _shortened(value[name], depth + 1) for name in names}
