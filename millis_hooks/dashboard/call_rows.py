"""Rows of the list of calls: each value of a row as the template places it.

A page has fifty of them: what would be decided value by value in a template takes twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, tzinfo
from functools import cache
from typing import NamedTuple
from urllib.parse import urlencode

from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from ..call_log.queries.records import Call, ListedCall, RunCounts
from ..call_log.search import Excerpt
from .formats import (
    SLOW_PREFETCH_MS,
    ago,
    amount,
    as_text,
    badge,
    channel_icon,
    clock,
    contact,
    iso,
    milliseconds,
    source_label,
)

_DAY_S = 86_400


class Started(NamedTuple):
    """When a call began: for programs, in full, short, and how long ago if that is today."""

    iso: str
    full: str
    short: str
    ago: str


class Runs(NamedTuple):
    """How the handlers of a call stand, in words."""

    css_class: str
    icon: Markup
    text: str


class CallRow(NamedTuple):
    """One call of the list. Of `error`, `hits` and `said` the first that is not empty is shown."""

    badge: Markup
    icon: Markup
    address: str
    contact: str
    #: The customer, or both numbers where it is not known which is the customer's.
    parties: list[str]
    agent_id: str
    agent: str
    source: str
    error: str
    hits: list[Markup]
    said: str
    #: All of the words that are cut in the row.
    whole: str
    #: The values of the results that have a column.
    results: list[tuple[str, str]]
    started: Started
    duration: str
    prefetch: str
    is_slow: bool
    cost: str
    runs: Runs


@pass_context
def call_rows(
    context: Context, rows: Sequence[ListedCall], as_list: Mapping[str, str], columns: Sequence[str]
) -> Iterator[CallRow]:
    """Yield the rows of these calls; `as_list` is the parameter that they are opened with."""
    link, icon, label = context["link"], context["icon"], cache(context["agent_names"].label)
    now, zone = context["now"], context["zone"]
    query = f"?{urlencode(as_list, errors='replace')}" if as_list else ""
    for listed in rows:
        call = listed.call
        yield CallRow(
            badge=badge(call.call_status, call.state(now)),
            icon=icon(channel_icon(call.channel)),
            address=link("call", session_id=call.session_id) + query,
            contact=(parties := contact(call)),
            parties=parties.split(" → "),
            agent_id=call.agent_id or "",
            agent=label(call.agent_id),
            source=source_label(call.source) if call.source else "",
            error="" if listed.excerpt else call.error_message or "",
            hits=[_hit(each) for each in listed.all_excerpts],
            said=_said(call, now),
            whole=_whole(listed),
            results=[(name, result_text(listed, name)) for name in columns],
            started=_started(call.started_at or call.received_at, now, zone),
            duration=clock(call.duration_s),
            prefetch=milliseconds(call.prefetch_ms),
            is_slow=(call.prefetch_ms or 0) > SLOW_PREFETCH_MS,
            cost="" if call.cost_total is None else amount(call.cost_total),
            runs=_runs(listed.runs, icon),
        )


def _said(call: Call, now: datetime) -> str:
    if call.is_lost(now):
        return f"Prefetch seen {ago(call.received_at, now)}, no end-of-call webhook since."
    return call.snippet or ""


def _whole(listed: ListedCall) -> str:
    found = "".join(f"{each.before}{each.hit}{each.after} " for each in listed.all_excerpts)
    return found or listed.call.error_message or listed.call.snippet or ""


def _hit(excerpt: Excerpt) -> Markup:
    """Return an excerpt with its hit marked, and what it is of unless it is of the transcript."""
    field = excerpt.name or {"id": "ID"}.get(excerpt.field, excerpt.field.capitalize())
    tag = Markup("") if excerpt.field == "transcript" else _TAG.format(field)
    hit = _MARK.format(excerpt.hit) if excerpt.hit else Markup("")
    return tag + _HIT.format(escape(excerpt.before) + hit + escape(excerpt.after))


_TAG = Markup('<span class="tag">{}</span> ')
_HIT = Markup('<span dir="auto">{}</span>')
_MARK = Markup("<mark>{}</mark>")


def result_text(listed: ListedCall, name: str) -> str:
    """Return the value of a result; of several handlers that have it, their values; or what was
    kept under `keep.NAME`."""
    values = [as_text(each.value) for each in listed.results if each.name == name]
    return ", ".join(values) or as_text(listed.kept.get(name, ""))


def _started(at: datetime, now: datetime, zone: tzinfo) -> Started:
    is_today = (now - at).total_seconds() < _DAY_S
    local = at.astimezone(zone)
    short = local.strftime("%H:%M" if is_today else "%b %d, %H:%M")
    return Started(
        iso(at), local.strftime("%Y-%m-%d %H:%M:%S %Z"), short, ago(at, now) if is_today else ""
    )


def _runs(counts: RunCounts, icon: Callable[..., Markup]) -> Runs:
    if counts.failed:
        return Runs("runs bad", icon("circle-alert"), counts.words)
    if counts.retrying:
        return Runs("runs warn", icon("rotate-cw"), counts.words)
    if counts.waiting:
        return Runs("runs", icon("clock"), counts.words)
    if counts.total:
        return Runs("runs", icon("check", "ok"), counts.words)
    return Runs("runs dim", Markup(""), "none")
