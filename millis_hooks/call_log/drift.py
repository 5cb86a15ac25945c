"""The drift report: fields and values from Millis that this version does not know.

Unknown is normal and refuses nothing; it is counted, so that operators see when Millis changes its
format. Each find is stored under its delivery, so counts stay true when deliveries are read again
or removed. Known fields come from docs.millis.ai (core-concepts/webhooks), from its OpenAPI file,
and from payloads that public receivers handle.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, lru_cache
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, cast, get_args

from pydantic import BaseModel
from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select

from ..masking.places import Place
from ..protocol.call_status import CallStatus
from ..protocol.events import EndOfCall
from ..protocol.prefetch import PrefetchRequest
from ..protocol.reading import Json, Problem
from .sanitize import clean_text
from .tables import drift, known_drift

if TYPE_CHECKING:
    from ..masking.policy import MaskPolicy

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
    """Yield what may have unknown fields, each with how the path to them begins."""
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
    from ..masking.policy import MaskPolicy

    return MaskPolicy(numbers="partial")


def _shortened(value: Json, depth: int = 0) -> Json:
    """Copy the beginning of a value: a sample of ten megabytes is not a sample."""
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


KINDS: tuple[DriftKind, ...] = get_args(DriftKind)

#: Counts stop here; so a report over a million deliveries still takes an instant.
COUNT_CAP = 10_000
#: So many places of each kind are listed: a sender may make up a new field with every delivery.
MOST_GROUPS = 100


@dataclass(frozen=True, slots=True)
class DriftGroup:
    """The same find in several deliveries; `sample` and `delivery_id` are of the last of them.

    `count` is of deliveries and stops at `COUNT_CAP`. Of unknown values, each is a group.
    `known_since` is when an operator accepted it; None while it is new.
    """

    kind: str
    path: str
    sample: str
    count: int
    first_seen: datetime
    last_seen: datetime
    delivery_id: int
    known_since: datetime | None = None

    @property
    def is_new(self) -> bool:
        """Tell whether no operator has accepted it yet."""
        return self.known_since is None

    @property
    def place(self) -> str:
        """How it is stored: an unknown value is part of its place."""
        return _place(self.kind, self.path, self.sample)


@dataclass(frozen=True, slots=True)
class DriftReport:
    """All that was found: new before accepted, kind by kind, what was seen last first."""

    groups: tuple[DriftGroup, ...]
    #: Whether nothing was left out.
    is_complete: bool


def drift_rows(message: EndOfCall | PrefetchRequest, seen_at: datetime) -> list[dict[str, Any]]:
    """Return what is new in a message as columns of `drift`, but for the delivery's id."""
    return [
        {
            "kind": found.kind,
            "path": clean_text(_place(found.kind, found.path, found.sample)),
            "sample": clean_text(found.sample),
            "seen_at": seen_at,
        }
        for found in drift_of(message)
    ]


def drift_report(connection: Connection) -> DriftReport:
    """Add up what was found in the deliveries there are."""
    found = {kind: list(islice(_groups(connection, kind), MOST_GROUPS + 1)) for kind in KINDS}
    listed = [
        group
        for groups in found.values()
        for group in sorted(groups[:MOST_GROUPS], key=_last_seen, reverse=True)
    ]
    is_complete = all(len(groups) <= MOST_GROUPS for groups in found.values())
    return DriftReport(tuple(sorted(listed, key=_is_known)), is_complete)


def count_new_drift(connection: Connection) -> int:
    """Count the groups that no operator has accepted, up to `MOST_GROUPS`."""
    known = _known(connection)
    new = (
        place for kind in KINDS for place in _places(connection, kind) if (kind, place) not in known
    )
    return sum(1 for _ in islice(new, MOST_GROUPS))


def set_known(connection: Connection, group: DriftGroup, since: datetime | None) -> None:
    """Accept a group since then; without a time it counts as new again."""
    row = {"kind": group.kind, "path": group.place}
    is_group = and_(known_drift.c.kind == group.kind, known_drift.c.path == group.place)
    connection.execute(delete(known_drift).where(is_group))
    if since is not None:
        connection.execute(insert(known_drift), row | {"since": since})


def _known(connection: Connection) -> dict[tuple[str, str], datetime]:
    rows = connection.execute(select(known_drift))
    return {(row.kind, row.path): row.since for row in rows}


def _is_known(group: DriftGroup) -> bool:
    return not group.is_new


def masked_report(report: DriftReport, mask: MaskPolicy) -> DriftReport:
    """Return a report as it may be seen; what stands in an unknown field may be words."""
    groups = (
        replace(
            group,
            path=mask.line(group.path),
            sample=(mask.text if group.kind == "unknown_field" else mask.line)(group.sample),
        )
        for group in report.groups
    )
    return replace(report, groups=tuple(groups))


def _last_seen(group: DriftGroup) -> datetime:
    return group.last_seen


def _place(kind: str, path: str, sample: str) -> str:
    # An unknown value is part of its place: so the index by place tells it from other values.
    return f"{path} = {sample}" if kind == "unknown_value" else path


def _groups(connection: Connection, kind: DriftKind) -> Iterator[DriftGroup]:
    """Yield the groups of a kind by place."""
    known = _known(connection)
    for place in _places(connection, kind):
        is_of_group = and_(drift.c.kind == kind, drift.c.path == place)
        yield _group(connection, is_of_group, known.get((kind, place)))


def _places(connection: Connection, kind: DriftKind) -> Iterator[str]:
    """Yield the places of a kind: from one to the next through the index, however many rows are in
    between."""
    place = ""
    while True:
        following = select(func.min(drift.c.path)).where(drift.c.kind == kind, drift.c.path > place)
        place = connection.scalar(following)
        if place is None:
            return
        yield place


def _group(
    connection: Connection, is_of_group: ColumnElement[bool], known_since: datetime | None
) -> DriftGroup:
    counted = select(drift.c.kind).where(is_of_group).limit(COUNT_CAP).subquery()
    last = connection.execute(
        select(
            drift,
            select(func.count()).select_from(counted).scalar_subquery().label("times"),
            select(func.min(drift.c.seen_at))
            .where(is_of_group)
            .scalar_subquery()
            .label("first_seen"),
        )
        .where(is_of_group)
        .order_by(drift.c.seen_at.desc())
        .limit(1)
    ).one()
    return DriftGroup(
        kind=last.kind,
        path=last.path.partition(" = ")[0] if last.kind == "unknown_value" else last.path,
        sample=last.sample,
        count=last.times,
        first_seen=last.first_seen,
        last_seen=last.seen_at,
        delivery_id=last.delivery_id,
        known_since=known_since,
    )
