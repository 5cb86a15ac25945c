"""Projects the deliveries of a session to rows: its call, costs, metadata, search text and drift.

Pure: what was received in, rows out. All of it can be derived again from the stored deliveries, and
is the same whatever order they come in: prefetches count in the order in which they were received,
then the end-of-calls as one. A session belongs to the agent that began it: a secret that is bound
to an agent is accepted for the sessions of that agent only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeAlias

from sqlalchemy import Row

from ..exceptions import PayloadError
from ..masking.places import Place
from ..masking.policy import SECRETS_ALONE, MaskPolicy
from ..protocol.events import EndOfCall, Message
from ..protocol.functions import FunctionRequest
from ..protocol.prefetch import PrefetchRequest
from ..protocol.reading import FEW_PARTS, MOST, count_parts, read_any_json, read_json
from ..protocol.test_marks import MADE_UP_SOURCES
from .call_ends import End, RunsFor, outermost, put_together
from .deliveries import content_hash
from .drift import drift_rows
from .sanitize import clean_float, clean_id, clean_int, clean_text, clean_time, metadata_text
from .search import Field, Item, searchable
from .statements import Columns
from .tables import KEPT, calls

_SNIPPET_CHARS = 300
_METADATA_KEYS = 50
_FUNCTIONS = 50
_KEY_CHARS = 12

#: The outcome of a delivery that can be read at last. Which of a prefetch's it was is lost.
READABLE = {"prefetch": "fresh", "function": "answered", "end_of_call": "stored"}

#: Columns of a call that only its end tells.
END_COLUMNS = frozenset(
    {"delivery_id", "ended_at", "call_id", "provider", "call_status", "outcome", "error_message",
     "started_at", "duration_s", "cost_total", "chars_used", "turns", "snippet", "recording_url",
     "opted_out", "repeated", "unhandled"}
)  # fmt: skip
#: Columns of a call that its end does not tell.
_PREFETCH_COLUMNS = frozenset({"prefetch_ms", "prefetch_outcome"})
#: What both webhooks tell. A prefetch fills it in only where the end has not.
_SHARED = ("agent_id", "direction", "from_phone", "to_phone", "customer_phone")
_UNKNOWN_CALL: Mapping[str, Any] = {
    **dict.fromkeys(column.name for column in calls.c if column.name != "id"),
    "repeated": False,
    "unhandled": False,
}


#: A part of a call: what its prefetches and functions tell, or its ends.
Part: TypeAlias = Literal["beginning", "end"]


@dataclass(frozen=True, slots=True)
class Digest:
    """One delivery, read. Its session is None where a prefetch names none: then all there is to say
    is what was wrong with it."""

    delivery_id: int
    received_at: datetime
    event: EndOfCall | PrefetchRequest | FunctionRequest
    session_id: str | None
    source: str | None = None
    content_hash: bytes | None = None
    is_imported: bool = False
    #: Of a prefetch: what it was answered with, and how soon.
    outcome: str | None = None
    latency_ms: float | None = None
    kept: str | None = None
    #: The agent of the delivery's secret, if that is bound to one.
    secret_agent: str | None = None
    body_bytes: int = 0

    @property
    def end(self) -> End | None:
        """The delivery as an end-of-call, if it is one."""
        if not isinstance(self.event, EndOfCall):
            return None
        hash_ = self.content_hash or b""
        return End(self.delivery_id, self.received_at, hash_, self.event)

    @property
    def is_end(self) -> bool:
        return isinstance(self.event, EndOfCall)

    @property
    def is_foreign(self) -> bool:
        """Whether it is of another agent than its secret."""
        return self.secret_agent is not None and self.secret_agent != self.agent_id

    @property
    def agent_id(self) -> str | None:
        return clean_text(self.event.agent_id)

    @property
    def drift(self) -> list[Columns]:
        """What is new in what Millis sends; the fields of a function are the team's own."""
        if self.source in MADE_UP_SOURCES or isinstance(self.event, FunctionRequest):
            return []
        found = drift_rows(self.event, self.received_at)
        return [{"delivery_id": self.delivery_id, **each} for each in found]


@dataclass
class Projection:
    """What the deliveries of a session come to; `call` is empty if they describe none.

    Runs are for the handlers of `wanted_by`, who want the call since `wanted_at`. `change` is the
    key of the change that a later end has made to a call that had ended before.
    """

    session_id: str
    call: Columns = field(default_factory=dict)
    #: What can be searched.
    items: Sequence[Item] = ()
    cost_items: Sequence[Columns] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    wanted_by: Sequence[str] = ()
    wanted_at: datetime | None = None
    change: str | None = None
    #: Its only end-of-call, if runs are for it.
    end: Digest | None = None
    #: Whether values that handlers kept are stored already.
    had_kept: bool = False
    #: The deliveries that are another agent's.
    refused: Sequence[int] = ()
    #: The part that only earlier deliveries tell: it stands in the call's row, and was not read.
    stored: Part | None = None

    @cached_property
    def search_text(self) -> str:
        """The items as they are searched."""
        return searchable(self.items)

    def complete(self, row: Columns) -> None:
        """Add the part that is stored in the call's row."""
        known = {name: row[name] for name in self.call}
        ends_later = self.stored == "beginning"
        asked, ended = (known, self.call) if ends_later else (self.call, known)
        told = {name: ended[name] for name in ended if name not in _PREFETCH_COLUMNS}
        self.call = _joined(asked, told)


def digest_delivery(row: Row[Any], *, own_numbers: frozenset[str]) -> Digest:
    """Read a row of `deliveries`. Raises `PayloadError` for one that cannot be read."""
    event: EndOfCall | PrefetchRequest | FunctionRequest
    query = (row.query or "").encode()
    if row.kind == "prefetch":
        event = PrefetchRequest.parse(query, own_numbers=own_numbers)
    elif row.kind == "function":
        event = FunctionRequest.parse(
            row.function or "", query, row.body, row.content_type, agent_id=row.secret_agent
        )
    else:
        event = EndOfCall.parse(row.body, own_numbers=own_numbers)
    return Digest(
        delivery_id=row.id,
        received_at=row.received_at,
        event=event,
        session_id=clean_id(event.session_id or "") or None,
        source=row.source,
        content_hash=row.content_hash or content_hash(row.body),
        is_imported=row.imported,
        outcome=READABLE[row.kind] if row.outcome == "unparsed" else row.outcome,
        latency_ms=row.latency_ms,
        kept=row.kept,
        secret_agent=row.secret_agent,
        body_bytes=len(row.body),
    )


def project(
    session_id: str,
    new: Sequence[Digest],
    known: Sequence[Digest] = (),
    *,
    runs_for: RunsFor,
    mask: MaskPolicy = SECRETS_ALONE,
    is_again: bool = False,
    stored: Part | None = None,
) -> Projection:
    """Say what the deliveries of a session come to: `new` ones, and those that are known, but for
    the part that is `stored`.

    What `mask` hides cannot be searched for, but for the numbers of a call.
    `is_again`: all were processed before, and nothing in them is a change. No handler is called for
    what was imported.
    """
    if is_again:
        new, known = [*new, *known], ()
    in_order = sorted([*known, *new], key=_delivery_id)
    refused = _refused(in_order)
    told = [each for each in in_order if each.delivery_id not in refused]
    taken = [each for each in new if each.delivery_id not in refused]
    had_kept = any(each.kept for each in known)
    projection = Projection(session_id, had_kept=had_kept, refused=sorted(refused), stored=stored)
    asked = outermost([each for each in told if isinstance(each.event, PrefetchRequest)])
    used = [each for each in told if isinstance(each.event, FunctionRequest)]
    ends = outermost([each for each in told if each.is_end])
    if told:
        projection.call = {**_UNKNOWN_CALL, "session_id": session_id}
    if used and not asked:
        _add_function(projection, min(used, key=_received))
    for each in sorted(asked, key=_received):
        _add_prefetch(projection, each)
    if ends:
        whole = put_together(end for each in ends if (end := each.end) is not None)
        _add_end(projection, whole, ends, mask)
        projection.call["repeated"] = len(ends) > 1
        _ask_handlers(projection, whole, taken, known, runs_for)
        if projection.wanted_by and len(ends) == 1:
            projection.end = ends[0]
    return projection


def _refused(in_order: Sequence[Digest]) -> set[int]:
    """Return the deliveries of another agent than their secret is for, or began the session."""
    bound = [each for each in in_order if each.secret_agent is not None]
    if not bound:
        return set()
    agents = (each.agent_id for each in in_order if not each.is_foreign)
    agent_id = next(filter(None, agents), None)
    return {
        each.delivery_id
        for each in bound
        if each.is_foreign or agent_id not in (None, each.secret_agent)
    }


def _delivery_id(digest: Digest) -> int:
    return digest.delivery_id


def _received(digest: Digest) -> tuple[datetime, int]:
    return digest.received_at, digest.delivery_id


def _add_prefetch(projection: Projection, digest: Digest) -> None:
    request, call = digest.event, projection.call
    assert isinstance(request, PrefetchRequest)  # noqa: S101 - ends are added elsewhere
    if call["received_at"] is None:
        call["received_at"] = digest.received_at
        sides, ids = (request.from_phone, request.to_phone), (request.session_id,)
        projection.items = list(_named(sides, ids, request.agent_id))
    _fill_in(
        call,
        {
            "agent_id": clean_text(request.agent_id),
            "channel": request.channel,
            "direction": request.direction,
            "from_phone": clean_text(request.from_phone),
            "to_phone": clean_text(request.to_phone),
            "customer_phone": clean_text(request.customer_phone),
        },
    )
    call["prefetch_ms"], call["prefetch_outcome"] = digest.latency_ms, digest.outcome
    projection.metadata = _kept(digest.kept)
    call["source"] = digest.source


def _add_function(projection: Projection, digest: Digest) -> None:
    """Begin a call that is known by its functions alone, until its end."""
    projection.items = list(_named((), (projection.session_id,), digest.agent_id))
    projection.call |= {
        "received_at": digest.received_at,
        "agent_id": digest.agent_id,
        "source": digest.source,
    }


def _fill_in(call: Columns, others: Columns) -> None:
    """Add what both webhooks tell where the call has nothing yet."""
    for name in _SHARED:
        if call[name] is None:
            call[name] = others[name]
    # An end-of-call without `voip` looks like one from the web; the prefetch may know better.
    if call["channel"] in (None, "web"):
        call["channel"] = others["channel"] or call["channel"]


def _joined(asked: Columns, ended: Columns) -> Columns:
    """Return what the beginning of a call and its ends come to."""
    call = {**asked, **ended}
    if asked["received_at"] is not None:
        _fill_in(call, asked)
        call["received_at"] = min(asked["received_at"], ended["received_at"])
    return call


def _add_end(projection: Projection, whole: End, ends: Sequence[Digest], mask: MaskPolicy) -> None:
    """Add what the ends come to; of those that were made up none counts beside one of Millis'."""
    of_millis = min(ends, key=lambda each: (each.source in MADE_UP_SOURCES, _received(each)))
    received = {"received_at": min(ends, key=_received).received_at, "source": of_millis.source}
    projection.call = _joined(projection.call, {**_ended_call(whole), **received})
    projection.items = list(_items(whole.call, mask))
    projection.cost_items = _cost_items(whole.call)
    projection.metadata = {**_metadata(whole.call), **projection.metadata}


def _ask_handlers(
    projection: Projection,
    whole: End,
    taken: Sequence[Digest],
    known: Sequence[Digest],
    runs_for: RunsFor,
) -> None:
    """Ask which handlers want the call as it is now, if a new end made it so."""
    before = outermost([end for each in known if (end := each.end) is not None])
    made = [each for each in taken if each.is_end and not each.is_imported]
    if made and not (before and put_together(before).call.raw == whole.call.raw):
        projection.wanted_by = list(runs_for(whole.call))
        projection.wanted_at = min(each.received_at for each in made)
        if before and made[-1].content_hash:
            projection.wanted_at = whole.received_at
            projection.change = made[-1].content_hash.hex()[:_KEY_CHARS]
    projection.call["unhandled"] = not projection.wanted_by


def _ended_call(end: End) -> Columns:
    call, voip = end.call, end.call.voip
    from_phone, to_phone = (voip.from_phone, voip.to_phone) if voip else (None, None)
    return {
        "delivery_id": end.delivery_id,
        "ended_at": end.received_at,
        "call_id": clean_text(call.call_id),
        "agent_id": clean_text(call.agent_id),
        "channel": call.channel,
        "direction": call.direction,
        "from_phone": clean_text(from_phone),
        "to_phone": clean_text(to_phone),
        "customer_phone": clean_text(call.customer_phone),
        "provider": clean_text(voip.provider) if voip else None,
        "call_status": clean_text(call.call_status),
        "outcome": call.outcome.value,
        "error_message": clean_text(call.error_message),
        "started_at": clean_time(call.started_at),
        "duration_s": clean_float(call.duration_s),
        "cost_total": clean_float(call.cost_total),
        "chars_used": clean_int(call.chars_used),
        "turns": sum(message.role in {"user", "assistant"} for message in call.chat),
        "snippet": _snippet(call.chat),
        "recording_url": clean_text(call.recording_url),
        "opted_out": call.opted_out,
    }


def _cost_items(call: EndOfCall) -> list[Columns]:
    return [
        {
            "position": position,
            "type": clean_text(item.type),
            "provider": clean_text(item.provider),
            "credit": clean_float(item.credit),
            "prompt_tokens": clean_int(item.prompt_tokens),
            "completion_tokens": clean_int(item.completion_tokens),
        }
        for position, item in enumerate(call.cost_breakdown)
    ]


def _kept(kept: str | None) -> dict[str, str]:
    """Return what handlers kept of a prefetch, each under its name after `keep.`."""
    values = read_json(kept) if kept else None
    items = values.items() if isinstance(values, dict) else ()
    return {metadata_text(f"{KEPT}{key}"): metadata_text(value) for key, value in items}


def _metadata(call: EndOfCall) -> dict[str, str]:
    """Return the first-level keys, and values as text: what is not text as JSON."""
    first = islice(call.metadata.items(), _METADATA_KEYS)
    return {metadata_text(key): metadata_text(value) for key, value in first}


def _snippet(chat: Iterable[Message]) -> str | None:
    said = (message.content for message in chat if message.role == "user" and message.content)
    return clean_text(next(said, None), max_chars=_SNIPPET_CHARS)


def _items(call: EndOfCall, mask: MaskPolicy) -> Iterator[Item]:
    """Yield what can be searched of a call, the longest last."""
    voip = call.voip
    sides = (voip.from_phone, voip.to_phone) if voip else ()
    yield from _named(sides, (call.session_id, call.call_id), call.agent_id)
    if call.error_message:
        yield Item(Field.ERROR, mask.line(call.error_message))
    providers = (voip.provider if voip else None, *(each.provider for each in call.cost_breakdown))
    yield from _each(Field.PROVIDER, providers)
    yield from islice(_each(Field.FUNCTION, _functions(call)), _FUNCTIONS)
    first = dict(islice(call.metadata.items(), _METADATA_KEYS))
    metadata = mask.payload(first, Place.WORDS) if first else {}
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        if not isinstance(value, bool | None) and value != "":
            yield Item(Field.METADATA, metadata_text(value), metadata_text(key))
    spoken = "\n".join(mask.texts([each.content for each in call.chat if each.content]))
    if spoken:
        yield Item(Field.TRANSCRIPT, spoken)


def transcript_of(body: bytes, mask: MaskPolicy = SECRETS_ALONE) -> str | None:
    """Return the transcript of an end-of-call as it can be searched, without reading the rest; None
    where it is not plainly a list of messages."""
    try:
        raw = read_any_json(body)
        chat = raw.get("chat") if isinstance(raw, dict) else None
        chat = read_any_json(chat) if isinstance(chat, str) else chat
    except PayloadError:
        return None
    if not isinstance(chat, list) or len(chat) > MOST["chat"] or count_parts(body) > FEW_PARTS:
        return None
    contents = [each.get("content") if isinstance(each, dict) else 0 for each in chat]
    spoken = [each for each in contents if isinstance(each, str)]
    if len(spoken) + contents.count(None) < len(contents):
        return None
    return "\n".join(mask.texts(list(filter(None, spoken))))


def _named(
    sides: Iterable[str | None], ids: Iterable[str | None], agent_id: str | None
) -> Iterator[Item]:
    yield from _each(Field.NUMBER, sides)
    yield from _each(Field.ID, ids)
    yield from _each(Field.AGENT, [agent_id])


def _each(field: Field, texts: Iterable[str | None]) -> Iterator[Item]:
    return (Item(field, text) for text in dict.fromkeys(texts) if text)


def _functions(call: EndOfCall) -> Iterator[str | None]:
    yield from (each.name for each in call.function_calls)
    yield from (each.name for message in call.chat for each in message.tool_calls)
