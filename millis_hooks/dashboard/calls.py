"""The list of calls: today's totals, what is live, and one page of what ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..call_log.queries import COUNT_CAP, OUTCOMES, RANGES, CallFilter
from ..call_log.records import Call, LiveCall, Page, Today
from ..call_log.search import clean_query
from ..events import PrefetchRequest
from ..masking import mask_secrets
from .formats import STATUSES, as_text
from .pages import Asked

LIVE_CARDS = 6
PAGE_SIZES = (25, 50, 100)

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
    params: Mapping[str, str]
    page: Page
    tabs: tuple[Tab, ...]
    live: tuple[LiveCard, ...]
    live_count: int
    today: Today
    agents: tuple[str, ...]
    unparsed_count: int


def list_calls(asked: Asked) -> CallsView:
    """Build the page of calls that the query string asks for; what it cannot mean is left out."""
    wanted = read_filter(asked.query)
    page = asked.log.list_calls(
        wanted,
        now=asked.now,
        before=asked.query.get("before"),
        after=asked.query.get("after"),
        size=_page_size(asked.query),
    )
    live = asked.log.live_calls(now=asked.now)
    return CallsView(
        filter=wanted,
        params=_params(wanted, _page_size(asked.query)),
        page=page,
        tabs=tuple(_tabs(page.counts, wanted.outcome or "all")),
        live=tuple(_live_card(asked, call) for call in live[:LIVE_CARDS]),
        live_count=len(live),
        today=asked.log.today(now=asked.now),
        agents=asked.log.agents(),
        unparsed_count=asked.log.unparsed_count(),
    )


def read_filter(query: Mapping[str, str]) -> CallFilter:
    """Read the filters of a query string."""
    return CallFilter(
        q=clean_query(query.get("q", "")),
        outcome=query.get("outcome") if query.get("outcome") in OUTCOMES else None,
        agent=query.get("agent") or None,
        status=query.get("status") if query.get("status") in STATUSES else None,
        range=query["range"] if query.get("range") in RANGES else CallFilter().range,
    )


def _page_size(query: Mapping[str, str]) -> int:
    return next((size for size in PAGE_SIZES if query.get("size") == str(size)), 50)


def _params(wanted: CallFilter, size: int) -> dict[str, str]:
    named = {
        "q": wanted.q,
        "outcome": wanted.outcome,
        "agent": wanted.agent,
        "status": wanted.status,
        "range": wanted.range if wanted.range != CallFilter().range else None,
        "size": str(size) if size != 50 else None,
    }
    return {name: value for name, value in named.items() if value}


def _tabs(counts: Mapping[str, int], current: str) -> list[Tab]:
    return [
        Tab(outcome, label, counts[outcome], counts[outcome] >= COUNT_CAP)
        for outcome, label in _TABS.items()
        if outcome not in _RARE_TABS or counts[outcome] or outcome == current
    ]


def _live_card(asked: Asked, live: LiveCall) -> LiveCard:
    elapsed_s = (asked.now - live.call.received_at).total_seconds()
    query = PrefetchRequest.parse((live.prefetch_query or "").encode("utf-8", "replace"))
    said = mask_secrets(dict(query.metadata)).value
    hint = None
    if isinstance(said, dict) and said:
        key, value = next(iter(said.items()))
        hint = f"{key} {as_text(value)}"
    return LiveCard(live.call, max(elapsed_s, 0), hint)
