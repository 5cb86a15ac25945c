"""`calls` and `show`: what the dashboard shows of the call log, in a terminal.

`tail`: follows calls as they begin, end, and are handled.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from ..call_log.database import Database
from ..call_log.queries import Queries
from ..call_log.queries.filters import CallFilter
from ..call_log.queries.followed import MOST_AT_ONCE, Follower, Happening
from ..call_log.queries.records import Call, CostItem, ListedCall, Run
from ..call_log.redaction import masked_call, masked_happening, masked_listing
from ..dashboard.call import CallView, show_call
from ..dashboard.formats import at, clock, contact, iso, milliseconds, status_label
from ..dashboard.pages import DashboardSettings, PageRequest
from ..dashboard.transcript import Function, Line
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..settings import Settings
from ..version import __version__
from .common import open_log, print_json, print_json_line
from .runs import marked, tried, trouble, when
from .terminal import add_row, console, fail, note, table

if TYPE_CHECKING:
    from rich.text import Text


_PAGE_SIZE = 100

_HEADS = ("Received (UTC)", "Session", "With", "Agent", "Status", "Length", "Cost", "Handlers")
#: Columns that a narrow terminal may not shorten: a time and an id that are cut are of no use.
_UNCUT = (16, 20)
_UNENDED = {"live": "in progress", "lost": "no end received", "unended": "no end was sent"}

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def list_calls(
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many calls at most.")] = 20,
    as_json: AsJson = False,
) -> None:
    """List calls, newest first: those that are going on, then those that ended."""
    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    now = datetime.now(UTC)
    with _reading(settings) as queries:
        live = [masked_call(each.call, mask) for each in queries.live_calls(now=now)]
        ended = [masked_listing(each, mask) for each in _ended(queries, limit - len(live), now)]
        unparsed = queries.unparsed_count()
    if as_json:
        print_json([*live, *(each.call for each in ended)][:limit])
        return
    shown = table(*_HEADS)
    for column, width in zip(shown.columns, _UNCUT, strict=False):
        column.min_width = width
    for call in live[:limit]:
        add_row(shown, *_row(call, now), "", one_line=True)
    for each in ended:
        add_row(shown, *_row(each.call, now), _runs(each), one_line=True)
    if shown.row_count:
        console().print(shown)
    else:
        typer.echo("No calls yet. Send a sample: millis-hooks send end-of-call")
    if unparsed:
        note(f"Deliveries that could not be read, kept as they came: {unparsed}.")


def show(
    session_id: Annotated[str, typer.Argument(help="The session's id, dash and all.")],
    as_json: AsJson = False,
) -> None:
    """Show one call: what was said, what it cost, what we answered, how handlers did."""
    settings = Settings.load()
    pages = DashboardSettings(version=__version__, mask=MaskPolicy.of(settings))
    now = datetime.now(UTC)
    with _reading(settings) as queries:
        view = show_call(PageRequest(queries, pages, now, {}, {"session_id": session_id}))
    if view is None:
        fail(f"There is no call {session_id} in the call log.")
    if as_json:
        print_json(view)
    else:
        _print_call(view, now)


@contextmanager
def _reading(settings: Settings) -> Iterator[Queries]:
    with open_log(settings) as database:
        yield Queries(database.reader)


def _ended(queries: Queries, limit: int, now: datetime) -> Iterator[ListedCall]:
    before: str | None = None
    while limit > 0:
        size = min(limit, _PAGE_SIZE)
        page = queries.list_calls(CallFilter(range="all"), now=now, before=before, size=size)
        yield from page.rows
        limit -= len(page.rows)
        before = page.older
        if before is None:
            return


def _row(call: Call, now: datetime) -> list[str]:
    state = call.state(now)
    return [
        at(call.received_at, "%Y-%m-%d %H:%M"),
        call.session_id,
        contact(call),
        call.agent_id or "",
        status_label(call.call_status) if state == "ended" else _UNENDED[state],
        clock(call.duration_s),
        _credit(call.cost_total),
    ]


def _runs(listed: ListedCall) -> str:
    runs = listed.runs
    if runs.parked:
        return f"{runs.parked} of {runs.total} parked"
    if runs.failed:
        return f"{runs.failed} of {runs.total} retrying"
    return f"{runs.waiting} waiting" if runs.waiting else f"{runs.total} done" if runs.total else ""


def _print_call(view: CallView, now: datetime) -> None:
    """Print each part of the view that has something in it as a small table."""
    from rich.text import Text

    out = console()
    for title, rows in _parts(view, now):
        if not rows:
            continue
        shown = table(*("" for _ in rows[0]), show_heads=False)
        for row in rows:
            add_row(shown, *row)
        out.print(Text(title, style="bold"), shown, "", sep="\n")


def _parts(view: CallView, now: datetime) -> Iterator[tuple[str, list[Sequence[str]]]]:
    yield f"Call {printable(view.call.session_id, one_line=True)}", list(_facts(view))
    yield "Said", [*map(_line, view.lines), *_more(view.lines_left_out)]
    functions = [(each.name, _told(each)) for each in view.functions]
    yield "Functions", [*functions, *_more(view.functions_left_out)]
    yield "Metadata", [(each.key, _json(each.value), each.change or "") for each in view.metadata]
    yield "Cost", [_cost(each.item) for each in view.costs]
    runs = [_run(run, now) for run in view.runs]
    yield "Handlers", [*runs, *_more(view.runs_left_out)]
    yield "Could not be read", [(problem,) for problem in view.problems]


def _more(left_out: int) -> list[tuple[str, str]]:
    return [("", f"… and {left_out} more")] if left_out else []


def _facts(view: CallView) -> Iterator[tuple[str, str]]:
    call, prefetch = view.call, view.prefetch
    facts = {
        "State": "ended" if view.state == "ended" else _UNENDED[view.state],
        "Status": status_label(call.call_status) if call.ended_at else "",
        "With": contact(call),
        "Agent": call.agent_id,
        "Received": iso(call.received_at),
        "Started": iso(call.started_at) if call.started_at else "",
        "Length": clock(call.duration_s),
        "Cost": _credit(call.cost_total),
        "Recording": call.recording_url,
        "Error": call.error_message,
    }
    if prefetch is not None:
        facts["Prefetch"] = f"{prefetch.outcome}, {milliseconds(prefetch.latency_ms)}"
        facts["Reason"] = prefetch.reason
        facts["Extra prompt"] = prefetch.extra_prompt
    yield from ((name, value) for name, value in facts.items() if value)


def _line(line: Line) -> tuple[str, str]:
    if line.tool is None:
        return line.role, line.text
    return line.role, f"{line.tool.name} {_told(line.tool)}"


def _told(function: Function) -> str:
    return f"{_json(function.params)} → {_json(function.result)}"


def _cost(item: CostItem) -> tuple[str, str, str]:
    return item.type or "", item.provider or "", _credit(item.credit)


def _run(run: Run, now: datetime) -> tuple[str, ...]:
    last = run.attempts[-1] if run.attempts else None
    return (
        marked(run),
        run.state if run.is_latest else f"{run.state}, replaced",
        tried(run),
        when(run, now),
        trouble(run.reason, last),
    )


def _credit(credit: float | None) -> str:
    return "" if credit is None else f"{credit:.4f}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


#: How often the call log is looked at.
EVERY_S = 0.5
#: What is good news and what is bad; anything else is in between.
_STYLES = {
    **dict.fromkeys(("fresh", "stored", "succeeded"), "green"),
    **dict.fromkeys(("late", "failed", "timed_out", "gave_up", "unparsed", "rejected"), "red"),
}


def tail(
    last: Annotated[
        int,
        typer.Option("--last", "-n", min=0, max=500, help="Begin so many requests before now."),
    ] = 10,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    agent: Annotated[str | None, typer.Option(help="Only calls of this agent.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, one object in each line.")
    ] = False,
    follow: Annotated[
        bool, typer.Option(help="Go on until you press Ctrl-C; or end with what is there.")
    ] = True,
) -> None:
    """Follow calls live: what came in, what we answered, and how handlers did."""
    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    with open_log(settings) as database, _noted(_Interruption(not follow)) as interruption:
        for happening in _happenings(database, interruption, last=last):
            if session in (None, happening.session_id) and agent in (None, happening.agent_id):
                _print(masked_happening(happening, mask), as_json=as_json)


@dataclass(slots=True)
class _Interruption:
    """Whether it is time to end. An event would do no better: its lock may be held just then."""

    is_wanted: bool


@contextmanager
def _noted(interruption: _Interruption) -> Iterator[_Interruption]:
    """Have Ctrl-C only noted: a query that it broke off would be an error. The second one ends."""

    def note(*_: object) -> None:
        interruption.is_wanted = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


def _happenings(
    database: Database, interruption: _Interruption, *, last: int
) -> Iterator[Happening]:
    """Yield what happens, and once interrupted what has happened until then."""
    with database.reader.connect() as connection:
        follower = Follower(connection, last=last)
    while True:
        was_wanted = interruption.is_wanted
        # Closed between looks: a snapshot that is kept open would keep the file growing.
        with database.reader.connect() as connection:
            happened = follower.look(connection)
        yield from happened
        if was_wanted and len(happened) < MOST_AT_ONCE:  # there may always be something new
            return
        if not happened and not interruption.is_wanted:
            time.sleep(EVERY_S)


def _print(happening: Happening, *, as_json: bool) -> None:
    if as_json:
        print_json_line(happening)
    else:
        console().print(_event_line(happening), soft_wrap=True)


def _event_line(happening: Happening) -> Text:
    from rich.text import Text

    return Text.assemble(
        (f"{happening.at:%H:%M:%S}  ", "dim"),
        f"{printable(happening.session_id or '-', one_line=True)[:40]:<22}",
        f"{happening.kind.replace('_', ' '):<12}",
        (f"{happening.outcome.replace('_', ' '):<12}", _STYLES.get(happening.outcome, "yellow")),
        printable("  ".join(filter(None, _details(happening))), one_line=True),
    )


def _details(happening: Happening) -> Iterator[str | None]:
    """Yield what else is known: who called and how it ended, or which handler did what."""
    if happening.handler is not None:
        yield f"{happening.handler}, attempt {happening.attempt}: run {happening.run_state}"
    else:
        yield happening.customer_phone
    if happening.call_status is not None:
        yield status_label(happening.call_status)
    if happening.duration_s is not None:
        yield clock(happening.duration_s)
    if happening.duration_ms is not None:
        yield f"{happening.duration_ms:.1f} ms"
    yield happening.error
