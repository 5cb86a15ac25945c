"""How values read on a page: phone numbers, durations, sizes, statuses and coloured JSON.

These are the templates' filters. Markup is only ever built from escaped parts.

Reads what the forms and addresses of these pages bring: a few short fields, whole numbers.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime, tzinfo
from functools import lru_cache

import phonenumbers
from jinja2 import pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape
from phonenumbers import PhoneNumberFormat
from pydantic import JsonValue
from pygments.lexers.data import JsonLexer  # type: ignore[import-untyped]
from pygments.token import Keyword, Literal, Name, Number, String  # type: ignore[import-untyped]
from starlette.requests import Request

from ..call_log.queries.records import Call
from ..call_log.search import Excerpt
from ..masking.policy import HIDDEN
from ..protocol.reading import web_url

#: Colouring more than this takes longer than anybody reads; the rest is in the JSON twin.
_COLOURED_CHARS = 200_000

_ARGUMENTS_CHARS = 200

#: A senseless number would be as wide as hundreds of digits are.
_ABSURD = 1e9

_TOKEN_CLASSES = {
    Name.Tag: "tk-k",
    String: "tk-s",
    Number: "tk-n",
    Keyword: "tk-b",
    Literal: "tk-n",
}

#: Status as sent -> (what a person reads, the family its badge belongs to).
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

#: What `CallFilter.range` is called.
RANGE_LABELS = {
    "today": "Today",
    "24h": "Last 24 hours",
    "7d": "Last 7 days",
    "30d": "Last 30 days",
    "90d": "Last 90 days",
    "all": "All time",
}

#: `Call.source` of a call whose webhooks Millis did not send.
SOURCE_LABELS = {
    "sandbox": "Sandbox",
    "test": "Test",
    "as_real": "Test",
    "millis_api": "From call log",
}

_COST_TYPES = frozenset({"llm", "tts", "stt", "millis"})
_ICONS = {"phone": "phone", "web": "globe", "chat": "message-square"}


def status_label(status: str | None) -> str:
    """What a status is called; one that is new here keeps its own spelling."""
    return STATUSES.get(status or "", (status or "No status", ""))[0]


def status_family(status: str | None) -> str:
    """Which colours a status has."""
    return STATUSES.get(status or "", ("", "other"))[1]


def channel_icon(channel: str | None) -> str:
    return _ICONS.get(channel or "", "phone")


def source_label(source: str) -> str:
    """Where a call comes from that Millis did not tell us of."""
    return SOURCE_LABELS.get(source, source)


def cost_key(cost_type: str | None) -> str:
    """Which colour a cost has."""
    return cost_type if cost_type in _COST_TYPES else "other"


@lru_cache(maxsize=4096)
def phone(number: str) -> str:
    """Write a number as people do, with its country; what is no number stays as it is."""
    if HIDDEN in number or "••" in number:
        return number
    try:
        parsed = phonenumbers.parse(number)
    except phonenumbers.NumberParseException:
        return number
    return phonenumbers.format_number(parsed, PhoneNumberFormat.INTERNATIONAL).replace("-", " ")


def contact(call: Call) -> str:
    """Who the call was with.

    Where our own numbers do not tell the sides apart, both are named: what `from` means has
    changed between versions of Millis' documentation.
    """
    if call.direction and call.customer_phone:
        return phone(call.customer_phone)
    numbers = [phone(number) for number in (call.from_phone, call.to_phone) if number]
    if numbers:
        return " → ".join(numbers)
    kind = "Chat" if call.channel == "chat" else "Web"
    return f"{kind} session {call.session_id[-5:]}"


def clock(seconds: float | None) -> str:
    """A length of time as 4:12, or 1:04:12."""
    if seconds is None:
        return ""
    if seconds > _ABSURD:
        return f"{seconds:.3g} s"
    minutes, second = divmod(int(max(seconds, 0)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minutes}:{second:02}"


def milliseconds(value: float | None) -> str:
    """A measured time, in the unit that reads best."""
    if value is None:
        return ""
    if value < 10_000:
        return f"{value:,.0f} ms" if value >= 1 else "<1 ms"
    return f"{amount(value / 1000, 1)} s"


def amount(value: float, digits: int = 4) -> str:
    """An amount of money; one that nobody can have meant stays short."""
    return f"{value:,.{digits}f}" if abs(value) < _ABSURD else f"{value:.3g}"


def size(count: int) -> str:
    """A number of bytes."""
    if count < 1000:
        return f"{count} B"
    return f"{count / 1000:,.1f} kB" if count < 1_000_000 else f"{count / 1_000_000:,.1f} MB"


def at(moment: datetime, pattern: str = "%H:%M:%S", zone: tzinfo = UTC) -> str:
    """A moment, as clocks in that zone have it."""
    return moment.astimezone(zone).strftime(pattern)


@pass_context
def _at(context: Context, moment: datetime, pattern: str = "%H:%M:%S") -> str:
    """A moment, as clocks have it where the page is read."""
    return at(moment, pattern, context.get("zone", UTC))


def iso(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def ago(moment: datetime, now: datetime) -> str:
    """How long ago, roughly."""
    minutes = int((now - moment).total_seconds() // 60)
    if minutes < 1:
        return "just now"
    if minutes < 60:
        return f"{minutes} min ago"
    return f"{minutes // 60} h ago" if minutes < 24 * 60 else f"{minutes // (24 * 60)} d ago"


def until(moment: datetime, now: datetime) -> str:
    """How long until then, roughly."""
    seconds = int((moment - now).total_seconds())
    if seconds < 1:
        return "now"
    if seconds < 120:
        return f"in {seconds} s"
    minutes = seconds // 60
    if minutes < 120:
        return f"in {minutes} min"
    return f"in {minutes // 60} h" if minutes < 48 * 60 else f"in {minutes // (24 * 60)} d"


def marked(excerpt: Excerpt) -> Markup:
    """An excerpt with what was searched for marked."""
    if not excerpt.hit:
        return escape(excerpt.before + excerpt.after)
    parts = (excerpt.before, excerpt.hit, excerpt.after)
    return Markup("{}<mark>{}</mark>{}").format(*parts)


def as_text(value: JsonValue) -> str:
    """A JSON value as a word in a sentence: strings bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def arguments(value: JsonValue) -> str:
    """What a function was called with, on one line and cut to what fits there."""
    if not isinstance(value, dict):
        return as_text(value)[:_ARGUMENTS_CHARS]
    named = (f"{name}={as_text(each)}" for name, each in value.items())
    return ", ".join(named)[:_ARGUMENTS_CHARS]


def pretty(value: JsonValue) -> Markup:
    """A JSON value, indented and coloured; text that is not JSON is only escaped."""
    if isinstance(value, str):
        return _cut(value, escape(value[:_COLOURED_CHARS]))
    text = json.dumps(value, indent=2, ensure_ascii=False)
    tokens = JsonLexer(stripnl=False, ensurenl=False).get_tokens(text[:_COLOURED_CHARS])
    coloured = "".join(_coloured(kind, token) for kind, token in tokens)
    return _cut(text, Markup(coloured))  # noqa: S704 - each part of it is escaped


def _coloured(kind: object, token: str) -> str:
    name = "tk-m" if HIDDEN in token else _token_class(kind)
    shown = str(escape(token))
    return f'<span class="{name}">{shown}</span>' if name else shown


@lru_cache(maxsize=256)
def _token_class(kind: object) -> str | None:
    return next((name for family, name in _TOKEN_CLASSES.items() if kind in family), None)


def _cut(text: str, shown: Markup) -> Markup:
    if len(text) <= _COLOURED_CHARS:
        return shown
    return shown + f"\n… cut here: {len(text) - _COLOURED_CHARS:,} more characters"


def web(url: str) -> str:
    """An address that may be followed: `http` or `https`, and nowhere otherwise."""
    return web_url(url) or ""


FILTERS = {
    "ago": ago,
    "amount": amount,
    "arguments": arguments,
    "as_text": as_text,
    "at": _at,
    "channel_icon": channel_icon,
    "clock": clock,
    "contact": contact,
    "cost_key": cost_key,
    "iso": iso,
    "marked": marked,
    "milliseconds": milliseconds,
    "pretty": pretty,
    "size": size,
    "source_label": source_label,
    "status_family": status_family,
    "status_label": status_label,
    "until": until,
    "web": web,
}


#: The largest form here, in bytes.
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
    """Read a number of at most so many digits; None for everything else."""
    is_number = text.isascii() and text.isdigit() and len(text) <= digits
    return int(text) if is_number else None
