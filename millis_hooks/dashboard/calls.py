"""The list of calls: today's totals, what is live, and one page of what ended."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..call_log.arrivals import is_empty
from ..call_log.filters import CallFilter
from ..call_log.masked_records import masked_listing
from ..call_log.records import Page, Today
from .call_filters import Params, list_query, params_of, read_filter, read_page_size
from .chips import Chip, chips_of
from .following import LiveCard, live_cards
from .pages import Asked

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


def list_calls(asked: Asked) -> CallsView:
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
