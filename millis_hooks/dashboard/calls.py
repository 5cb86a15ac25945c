"""The list of calls: today's totals, what is live, and one page of what ended."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..call_log.filters import CallFilter
from ..call_log.masked_records import masked_call, masked_listing
from ..call_log.records import Call, LiveCall, Page, Today
from ..events import PrefetchRequest
from ..payload_places import Place
from .call_filters import Params, params_of, read_filter, read_page_size
from .formats import as_text
from .pages import Asked

LIVE_CARDS = 6

_TABS = {
    "all": "All",
    "completed": "Completed",
    "chat": "Chat",
    "voicemail": "Voicemail",
    "timeout": "Timeout",
    "unreached": "Unreached",
    "error": "Errors",
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
class LiveCard:
    """A call that is going on, with one thing its prefetch said about it."""

    call: Call
    elapsed_s: float
    hint: str | None


@dataclass(frozen=True, slots=True)
class CallsView:
    """What the page of calls shows. `params` are the filters that are not the default."""

    filter: CallFilter
    params: Params
    page: Page
    tabs: tuple[Tab, ...]
    live: tuple[LiveCard, ...]
    live_count: int
    today: Today
    agents: tuple[str, ...]
    unparsed_count: int


def list_calls(asked: Asked) -> CallsView:
    """Build the page of calls that the query string asks for; what it cannot mean is left out."""
    wanted, mask = read_filter(asked.query), asked.settings.mask
    page_size = read_page_size(asked.query)
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
        page=replace(page, rows=tuple(masked_listing(row, mask) for row in page.rows)),
        tabs=tuple(_tabs(page, wanted.outcome or "all")),
        live=tuple(_live_card(asked, call) for call in live[:LIVE_CARDS]),
        live_count=len(live),
        today=asked.log.today(now=asked.now),
        agents=asked.log.agents(),
        unparsed_count=asked.log.unparsed_count(),
    )


def _tabs(page: Page, current: str) -> list[Tab]:
    return [
        Tab(outcome, label, page.counts[outcome], outcome in page.at_least)
        for outcome, label in _TABS.items()
        if outcome not in _RARE_TABS or page.counts[outcome] or outcome == current
    ]


def _live_card(asked: Asked, live: LiveCall) -> LiveCard:
    elapsed_s = (asked.now - live.call.received_at).total_seconds()
    query = PrefetchRequest.parse((live.prefetch_query or "").encode("utf-8", "replace"))
    said = asked.settings.mask.payload(dict(query.metadata), Place.WORDS)
    hint = None
    if isinstance(said, dict) and said:
        key, value = next(iter(said.items()))
        hint = f"{key} {as_text(value)}"
    return LiveCard(masked_call(live.call, asked.settings.mask), max(elapsed_s, 0), hint)
