"""The list of calls: today's totals, what is live, and one page of what ended.

What an open page is told about what has changed since it was made.

A fragment is a few elements, each of which takes the place of the one with its id in the page.

The calls of a list as a file, with what the pages hide hidden in it too.
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Literal, TypeAlias

from starlette.responses import Response, StreamingResponse

from ..call_log.queries.filters import CallFilter
from ..call_log.queries.records import Call, LiveCall, Page, State, Today
from ..call_log.queries.requests import is_empty
from ..call_log.redaction import masked_call, masked_listing
from ..masking.places import Place
from ..protocol.events import PrefetchRequest
from .call_filters import Chip, Params, chips_of, list_query, params_of, read_filter, read_page_size
from .formats import as_text, read_number
from .pages import PageRequest

LIVE_CARDS = 6
#: More new calls than this are not counted out.
MOST_NEW = 99

_MARK_DIGITS = 18


@dataclass(frozen=True, slots=True)
class LiveCard:
    """A call that is going on, with one thing its prefetch said about it."""

    call: Call
    elapsed_s: float
    hint: str | None


@dataclass(frozen=True, slots=True)
class FollowedCalls:
    """What has changed on the page of calls; `new` ended since, and match its filter."""

    live: tuple[LiveCard, ...]
    live_count: int
    last_prefetch_at: datetime | None
    params: Params
    new: int
    new_capped: bool


@dataclass(frozen=True, slots=True)
class FollowedCall:
    """What has changed on a call's page; `listed` is the list it was opened from."""

    session_id: str
    listed: str | None
    state: State
    has_ended: bool
    live_count: int


def live_cards(asked: PageRequest, live: Sequence[LiveCall]) -> tuple[LiveCard, ...]:
    """Build the cards of the newest of the calls in progress."""
    return tuple(_card(asked, call) for call in live[:LIVE_CARDS])


def follow_calls(asked: PageRequest) -> FollowedCalls:
    """Build the fragment of the page of calls whose address this has, and its `mark`."""
    wanted = read_filter(asked.query, asked.zone)
    mark = read_number(asked.query.get("mark", ""), digits=_MARK_DIGITS)
    new = 0 if mark is None else asked.log.ended_since(mark, wanted, now=asked.now)
    live = asked.log.live_calls(now=asked.now)
    return FollowedCalls(
        live=live_cards(asked, live),
        live_count=len(live),
        last_prefetch_at=asked.log.last_prefetch_at(),
        params=params_of(wanted, read_page_size(asked.query)),
        new=min(new, MOST_NEW),
        new_capped=new > MOST_NEW,
    )


def follow_call(asked: PageRequest) -> FollowedCall | None:
    """Build the fragment of a call's page, which showed it in the state `seen`."""
    call = asked.log.standing(asked.path["session_id"])
    if call is None:
        return None
    state = call.state(asked.now)
    return FollowedCall(
        session_id=call.session_id,
        listed=asked.query.get("in"),
        state=state,
        has_ended=state == "ended" and asked.query.get("seen") in ("live", "lost"),
        live_count=asked.log.live_count(now=asked.now),
    )


def _card(asked: PageRequest, live: LiveCall) -> LiveCard:
    elapsed_s = (asked.now - live.call.received_at).total_seconds()
    query = PrefetchRequest.parse((live.prefetch_query or "").encode("utf-8", "replace"))
    said = asked.settings.mask.payload(dict(query.metadata), Place.WORDS)
    hint = None
    if isinstance(said, dict) and said:
        key, value = next(iter(said.items()))
        hint = f"{key} {as_text(value)}"
    return LiveCard(masked_call(live.call, asked.settings.mask), max(elapsed_s, 0), hint)


_TABS = {
    "all": "All",
    "completed": "Completed",
    "chat": "Chat",
    "voicemail": "Voicemail",
    "timeout": "Timeout",
    "unreached": "Unreached",
    "failed": "Failed",
    "lost": "No end received",
}
#: Shown when there are any: most teams never see these.
_RARE_TABS = frozenset({"unreached"})


@dataclass(frozen=True, slots=True)
class Tab:
    """An outcome over the list, with how many calls it has; `capped` when there are more."""

    outcome: str
    label: str
    count: int
    capped: bool


@dataclass(frozen=True, slots=True)
class CallsView:
    """What the page of calls shows.

    `params` are the filters that are not the default, and `as_list` is what the pages of calls are
    opened with, to go on from one to the next. `mark` is where the calls that end from now on
    begin. `is_new` says that nothing was ever received.
    """

    filter: CallFilter
    params: Params
    as_list: Params
    page_size: int
    chips: tuple[Chip, ...]
    page: Page
    tabs: tuple[Tab, ...]
    live: tuple[LiveCard, ...]
    live_count: int
    today: Today
    agents: tuple[str, ...]
    unparsed_count: int
    mark: int
    is_new: bool


def list_calls(asked: PageRequest) -> CallsView:
    """Build the page of calls that the query string asks for; what it cannot mean is left out."""
    wanted, mask = read_filter(asked.query, asked.zone), asked.settings.mask
    page_size, mark = read_page_size(asked.query), asked.log.newest_end()
    page = asked.log.list_calls(
        wanted,
        now=asked.now,
        before=asked.query.get("before"),
        after=asked.query.get("after"),
        size=page_size,
    )
    live = asked.log.live_calls(now=asked.now)
    return CallsView(
        filter=wanted,
        params=params_of(wanted, page_size),
        as_list={"in": said} if (said := list_query(wanted)) else {},
        page_size=page_size,
        chips=chips_of(wanted, page_size, asked.zone),
        page=replace(page, rows=tuple(masked_listing(row, mask) for row in page.rows)),
        tabs=tuple(_tabs(page, wanted.outcome or "all")),
        live=live_cards(asked, live),
        live_count=len(live),
        today=asked.log.today(now=asked.now, zone=asked.zone),
        agents=asked.log.agents(),
        unparsed_count=asked.log.unparsed_count(),
        mark=mark,
        is_new=not page.rows and asked.log.ask(is_empty),
    )


def _tabs(page: Page, current: str) -> list[Tab]:
    return [
        Tab(outcome, label, page.counts[outcome], outcome in page.at_least)
        for outcome, label in _TABS.items()
        if outcome not in _RARE_TABS or page.counts[outcome] or outcome == current
    ]


Format: TypeAlias = Literal["csv", "jsonl"]

_MEDIA_TYPES = {"csv": "text/csv", "jsonl": "application/x-ndjson"}


def export_calls(format_: Format, asked: PageRequest) -> Response:
    """Answer with the calls that the query string asks for, read while they are sent.

    With `bom` in the query, CSV begins with a byte order mark: Excel reads it as UTF-8 then.
    """
    from ..call_log.transfer.export import export

    wanted = read_filter(asked.query, asked.zone)
    policy, now = asked.settings.mask, asked.now
    pieces = asked.log.ask(partial(export, wanted=wanted, format_=format_, policy=policy, now=now))
    headers = _headers(asked, format_)
    if format_ == "csv" and asked.query.get("bom"):
        pieces = chain([BOM_UTF8], pieces)
    return StreamingResponse(pieces, media_type=_MEDIA_TYPES[format_], headers=headers)


def _headers(asked: PageRequest, format_: Format) -> dict[str, str]:
    day = asked.now.astimezone(asked.zone).date()
    return {
        "Content-Disposition": f'attachment; filename="calls-{day}.{format_}"',
        # Not to be packed on the way, which would take its time from the webhooks' loop.
        "Content-Encoding": "identity",
    }
