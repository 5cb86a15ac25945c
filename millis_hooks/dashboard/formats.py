"""Formats of values on a page: phone numbers, times, sizes, statuses, icons and colored JSON.

Most are filters of the templates. Markup is only ever built from escaped parts. Two readers, of
a form and of a number in an address, are the other direction.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, tzinfo
from functools import lru_cache
from html import escape as escape_text
from typing import Any

import phonenumbers
from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup
from phonenumbers import PhoneNumberFormat
from pydantic import JsonValue
from pydantic_core import to_json
from starlette.requests import Request

from ..call_log.queries.records import Call, State
from ..masking.policy import HIDDEN
from ..protocol.agent_names import AgentNames
from ..protocol.reading import web_url

#: A page shows so much of one JSON value; all of it is in the JSON twin.
_MOST_JSON_CHARS = 200_000
_MOST_ARGUMENT_CHARS = 200

#: Larger numbers are written with an exponent: all their digits would not fit in a table.
_TOO_LARGE = 1e9

#: Slower prefetches are marked: Millis' caller hears the pause.
SLOW_PREFETCH_MS = 400

#: The tokens of JSON; a text at the end may be cut.
_JSON_TOKEN = re.compile(r'("[^"\\]*+(?:\\.[^"\\]*+)*+"?)(:?)|-?\d[\d.eE+-]*|[a-zA-Z]+', re.DOTALL)

#: Status as Millis sends it -> (its label, the family its badge belongs to).
STATUSES = {
    "user-ended": ("User ended", "user"),
    "agent-ended": ("Agent ended", "agent"),
    "api-ended": ("API ended", "api"),
    "chat_completion": ("Chat completed", "chat"),
    "voicemail-message": ("Voicemail left", "voicemail"),
    "voicemail-hangup": ("Voicemail hang-up", "hangup"),
    "timeout": ("Timeout", "timeout"),
    "error": ("Error", "error"),
    "failed": ("Failed", "error"),
    "busy": ("Busy", "other"),
    "no-answer": ("No answer", "other"),
    "canceled": ("Canceled", "other"),
    "registered": ("Registered", "pending"),
    "queued": ("Queued", "pending"),
    "dispatching": ("Dispatching", "pending"),
    "provider_queued": ("Provider queued", "pending"),
    "initiated": ("Initiated", "pending"),
    "ringing": ("Ringing", "pending"),
    "in-progress": ("In progress", "pending"),
    "unknown": ("Unknown", "other"),
}

#: Labels of `CallFilter.range`.
RANGE_LABELS = {
    "today": "Today",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "90d": "Last 90 days",
    "all": "All time",
}

#: Labels of `Call.source`, which calls have whose webhooks Millis did not send.
SOURCE_LABELS = {
    "sandbox": "Sandbox",
    "test": "Test",
    "as_real": "Test",
    "millis_api": "From call log",
}

#: Outcome of a request to a webhook -> (its label, how it stands out).
OUTCOMES = {
    "fresh": ("Answered", "ok"),
    "cached": ("Answered from the cache", "ok"),
    "default": ("Default answer", "warn"),
    "last_good": ("Last good answer", "warn"),
    "late": ("Too slow, fallback sent", "bad"),
    "failed": ("Failed, fallback sent", "bad"),
    "answered": ("Answered", "ok"),
    "invalid": ("Arguments refused", "warn"),
    "stored": ("Stored", "ok"),
    "unparsed": ("Not readable", "bad"),
    "rejected": ("Rejected", "bad"),
}
#: Kind of a delivery -> its label.
KINDS = {"prefetch": "Prefetch", "function": "Function", "end_of_call": "End-of-call"}
_OUTCOME_ICONS = {"ok": "check", "warn": "triangle-alert", "bad": "circle-alert"}

_COST_TYPES = frozenset({"llm", "tts", "stt", "millis"})
_ICONS = {"phone": "phone", "web": "globe", "chat": "message-square"}
_STATE_BADGES: Mapping[str, tuple[str, str]] = {
    "live": ("In progress", "live"),
    "lost": ("No end received", "lost"),
    "unended": ("No end was sent", "other"),
}


def status_label(status: str | None) -> str:
    """Return the label of a status; an unknown one keeps its own spelling."""
    return STATUSES.get(status or "", (status or "No status", ""))[0]


def status_family(status: str | None) -> str:
    """Return the family of a status, which decides the colors of its badge."""
    return STATUSES.get(status or "", ("", "other"))[1]


def channel_icon(channel: str | None) -> str:
    """Return the name of a channel's icon."""
    return _ICONS.get(channel or "", "phone")


def source_label(source: str) -> str:
    """Return the label of the source of a call whose webhooks Millis did not send."""
    return SOURCE_LABELS.get(source, source)


def outcome_label(outcome: str) -> str:
    """Return the label of what became of a request to a webhook."""
    return OUTCOMES.get(outcome, (outcome, "ok"))[0]


def kind_label(kind: str) -> str:
    """Return the label of a kind of delivery."""
    return KINDS.get(kind, kind)


def cost_key(cost_type: str | None) -> str:
    """Return the name of a cost's color."""
    return cost_type if cost_type in _COST_TYPES else "other"


@lru_cache(maxsize=4096)
def phone(number: str) -> str:
    """Format a number with its country code and spaces; text that is not a number stays."""
    if HIDDEN in number or "••" in number:
        return number
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, PhoneNumberFormat.INTERNATIONAL).replace("-", " ")


def contact(call: Call) -> str:
    """Return the customer's phone number, or a name for a session without numbers.

    If the direction is unknown, both numbers are named: the meaning of `from` differs between
    versions of Millis' documentation.
    """
    if call.direction and call.customer_phone:
        return phone(call.customer_phone)
    numbers = [phone(number) for number in (call.from_phone, call.to_phone) if number]
    if numbers:
        return " → ".join(numbers)
    kind = "Chat" if call.channel == "chat" else "Web"
    return f"{kind} session {call.session_id[-5:]}"


def clock(seconds: float | None) -> str:
    """Format a duration as 4:12 or 1:04:12."""
    if seconds is None:
        return ""
    if seconds > _TOO_LARGE:
        return f"{seconds:.3g} s"
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def milliseconds(value: float | None) -> str:
    """Format a latency, in milliseconds or seconds."""
    if value is None:
        return ""
    if value < 10_000:
        return f"{value:,.0f} ms" if value >= 1 else "<1 ms"
    return f"{amount(value / 1000, 1)} s"


def later(seconds: float) -> str:
    """Format the time since an earlier event."""
    if seconds < 0.001:
        return "<1 ms"
    if seconds < 1:
        return f"+{1000 * seconds:,.0f} ms"
    return f"+{seconds:.1f} s" if seconds < 100 else f"+{clock(seconds)}"


def amount(value: float, digits: int = 4) -> str:
    """Format an amount of money."""
    return f"{value:,.{digits}f}" if abs(value) < _TOO_LARGE else f"{value:.3g}"


def size(count: int) -> str:
    """Format a number of bytes."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def at(moment: datetime, pattern: str = "%H:%M:%S", zone: tzinfo = UTC) -> str:
    """Format a moment in a time zone."""
    return moment.astimezone(zone).strftime(pattern)


@pass_context
def _at(context: Context, moment: datetime, pattern: str = "%H:%M:%S") -> str:
    """Format a moment in the time zone of the operator."""
    return at(moment, pattern, context.get("zone", UTC))


@pass_context
def _agent(context: Context, agent_id: str | None) -> str:
    """Return what is shown of an agent: its name, else the end of its id."""
    names: AgentNames = context["agent_names"]
    return names.label(agent_id)


@pass_context
def _agents_in_order(context: Context, agent_ids: Iterable[str]) -> list[str]:
    """Sort the ids of agents by what is shown of them."""
    names: AgentNames = context["agent_names"]
    return names.in_order(agent_ids)


def iso(moment: datetime) -> str:
    """Format a moment as ISO 8601 in UTC, to the second."""
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def ago(moment: datetime, now: datetime) -> str:
    """Format how long ago a moment was, in its largest unit."""
    minutes = int((now - moment).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 24 * 60 else f"{minutes // (24 * 60)} d ago"


def until(moment: datetime, now: datetime) -> str:
    """Format the time until a moment, in its largest unit."""
    seconds = int((moment - now).total_seconds())
    if seconds < 1:
        return "now"
    if seconds < 120:
        return f"in {seconds} s"
    minutes = seconds // 60
    if minutes < 120:
        return f"in {minutes} min"
    return f"in {minutes // 60} h" if minutes < 48 * 60 else f"in {minutes // (24 * 60)} d"


def as_text(value: JsonValue) -> str:
    """Return a string as it is, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def arguments(value: JsonValue) -> str:
    """Format the arguments of a function on one line, cut to its width."""
    if not isinstance(value, dict):
        return as_text(value)[:_MOST_ARGUMENT_CHARS]
    named = (f"{name}={as_text(each)}" for name, each in value.items())
    return ", ".join(named)[:_MOST_ARGUMENT_CHARS]


def pretty(value: JsonValue) -> Markup:
    """Indent and color a JSON value; a string is only escaped, and bidi controls are named."""
    text = value if isinstance(value, str) else _indented(value)
    if _has_bidi(text):
        text = text.translate(_BIDI_NAMES)
    beginning = text[:_MOST_JSON_CHARS]
    if isinstance(value, str):
        markup = escape_text(beginning)
    else:
        # Quotes stay: they tell where a string of JSON ends.
        markup = _JSON_TOKEN.sub(_colored, escape_text(beginning, quote=False))
    if len(text) > len(beginning):
        markup += f"\n… cut here: {len(text) - len(beginning):,} more characters"
    return Markup(markup)  # noqa: S704 - the text is escaped before it is colored


def _indented(value: JsonValue) -> str:
    try:
        return to_json(value, indent=2).decode()
    except ValueError:  # lone surrogates; eight times as slow
        return json.dumps(value, indent=2, ensure_ascii=False)


def _colored(match: re.Match[str]) -> str:
    token, colon = match[1], match[2]
    if token is None:
        token, colon = match[0], ""
        name = "tk-n" if token[-1].isdigit() else "tk-b"
    else:
        name = "tk-m" if HIDDEN in token else "tk-k" if colon else "tk-s"
    return f'<span class="{name}">{token}</span>{colon}'


#: Characters that change the direction of what follows them, beyond the element they are in.
_BIDI_CONTROLS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
_BIDI_NAMES = {ord(each): f"\\u{ord(each):04x}" for each in _BIDI_CONTROLS}
_BIDI_IN_TEXT = re.compile(rf"(<[^<>]*>)|[{_BIDI_CONTROLS}]+")


def _has_bidi(text: str) -> bool:
    # Five times as fast as the pattern; every page comes here, and almost none has one.
    return any(control in text for control in _BIDI_CONTROLS)


def without_bidi(page: str) -> str:
    """Return a page without bidi controls in its text; attributes, as of forms, keep theirs."""
    return _BIDI_IN_TEXT.sub(lambda found: found[1] or "", page) if _has_bidi(page) else page


def web(url: str) -> str:
    """Return a URL if its scheme is http or https, else an empty string."""
    return web_url(url) or ""


_ICON = Markup('<svg class="i {}" aria-hidden="true"><use href="{}#{}"/></svg>')
_BADGE = Markup('<span class="badge st-{}">{}</span>')
_OUTCOME = Markup('<span class="runs {}">{}{}</span>')
_MOMENT = Markup('<time datetime="{0}" title="{0}">{1}</time>')


@lru_cache(maxsize=256)
def icon(sprite: str, name: str, css_class: str = "") -> Markup:
    """Return an icon of the sprite at this address."""
    return _ICON.format(css_class, sprite, name)


@lru_cache(maxsize=256)
def badge(status: str | None, state: State = "ended") -> Markup:
    """Return the badge of a call: its state, or its status once it has ended."""
    label, family = _STATE_BADGES.get(state) or (status_label(status), status_family(status))
    return _BADGE.format(family, label)


def outcome(sprite: str, name: str) -> Markup:
    """Return what became of a request to a webhook, with its icon."""
    mark = OUTCOMES.get(name, ("", "ok"))[1]
    shown = icon(sprite, _OUTCOME_ICONS[mark], "ok" if mark == "ok" else "")
    css_class = "" if mark == "ok" else mark
    return _OUTCOME.format(css_class, shown, outcome_label(name))


def moment(zone: tzinfo, at_: datetime, pattern: str = "%H:%M:%S") -> Markup:
    """Return a moment in a time zone, with its ISO form for programs and as a tooltip."""
    return _MOMENT.format(iso(at_), at(at_, pattern, zone))


FILTERS: dict[str, Callable[..., object]] = {
    each.__name__: each
    for each in (
        ago,
        amount,
        arguments,
        as_text,
        channel_icon,
        clock,
        contact,
        cost_key,
        iso,
        kind_label,
        later,
        milliseconds,
        outcome_label,
        pretty,
        size,
        source_label,
        status_family,
        status_label,
        until,
        web,
    )
} | {"agent": _agent, "agents_in_order": _agents_in_order, "at": _at}


#: The largest form that is read, in bytes.
MAX_FORM_BYTES = 16 * 1024

_ROW_NUMBER_DIGITS = 18


async def read_form(request: Request, *, max_fields: int = 10) -> dict[str, str]:
    """Read the text fields of a form."""
    async with request.form(max_files=0, max_fields=max_fields) as form:
        # Browsers send every line break as CRLF, whatever it was on the page.
        return {
            name: value.replace("\r\n", "\n")
            for name, value in form.items()
            if isinstance(value, str)
        }


def read_number(text: str, *, digits: int = _ROW_NUMBER_DIGITS) -> int | None:
    """Read a whole number of at most `digits` digits; None for anything else."""
    is_number = text.isascii() and text.isdigit() and len(text) <= digits
    return int(text) if is_number else None


def as_plain(value: Any, agents: AgentNames) -> Any:
    """Return what JSON has of a view; beside the id of an agent stands its name."""
    if is_dataclass(value):
        return dict(_named_fields(value, agents))
    if isinstance(value, Mapping):
        return {str(key): as_plain(item, agents) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_plain(item, agents) for item in value]
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, tzinfo):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _named_fields(value: Any, agents: AgentNames) -> Iterator[tuple[str, Any]]:
    for each in fields(value):
        content = getattr(value, each.name)
        yield each.name, as_plain(content, agents)
        if each.name == "agent_id":
            yield "agent_name", agents.name_of(content)
