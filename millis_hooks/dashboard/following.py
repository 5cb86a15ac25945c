"""What an open page is told about what has changed since it was made.

A fragment is a few elements, each of which takes the place of the one with its id in the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from ..call_log.masked_records import masked_call
from ..call_log.records import Call, LiveCall, State
from ..events import PrefetchRequest
from ..payload_places import Place
from .call_filters import Params, params_of, read_filter, read_page_size
from .formats import as_text
from .forms import read_number
from .pages import Asked

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


def live_cards(asked: Asked, live: Sequence[LiveCall]) -> tuple[LiveCard, ...]:
    """Build the cards of the newest of the calls in progress."""
    return tuple(_card(asked, call) for call in live[:LIVE_CARDS])


def follow_calls(asked: Asked) -> FollowedCalls:
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


def follow_call(asked: Asked) -> FollowedCall | None:
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


def _card(asked: Asked, live: LiveCall) -> LiveCard:
    elapsed_s = (asked.now - live.call.received_at).total_seconds()
    query = PrefetchRequest.parse((live.prefetch_query or "").encode("utf-8", "replace"))
    said = asked.settings.mask.payload(dict(query.metadata), Place.WORDS)
    hint = None
    if isinstance(said, dict) and said:
        key, value = next(iter(said.items()))
        hint = f"{key} {as_text(value)}"
    return LiveCard(masked_call(live.call, asked.settings.mask), max(elapsed_s, 0), hint)
