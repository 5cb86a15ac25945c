"""`calls` and `show` print what the dashboard shows; `tail` follows calls live."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.text import Text

from ..call_log.database import Database
from ..call_log.queries import Queries, call_list
from ..call_log.queries.filters import CallFilter
from ..call_log.queries.followed import MOST_AT_ONCE, Follower, Happening
from ..call_log.queries.records import Call, CostItem, ListedCall, Run
from ..call_log.redaction import masked_call, masked_happening, masked_listing
from ..dashboard.call import CallView, show_call
from ..dashboard.call_rows import result_text
from ..dashboard.formats import at, clock, contact, iso, milliseconds, status_label
from ..dashboard.pages import DashboardSettings, PageRequest
from ..dashboard.transcript import Function, Line
from ..masking.error_report import printable
from ..masking.policy import MaskPolicy
from ..protocol.agent_names import AgentNames
from ..protocol.results import Plain, Result
from ..settings import Settings
from ..version import __version__
from .call_filters import takes_call_filters
from .common import agent_names, open_log, print_json, print_json_line
from .options import AsJson
from .runs import attempts_label, error_label, handler_label, time_label
from .terminal import add_row, console, fail, note, table

_PAGE_SIZE = 100

_HEADS = ("Received (UTC)", "Session", "With", "Agent", "Status", "Length", "Cost", "Handlers")
#: Widths of columns that a narrow terminal may not shorten: a cut time or id is of no use.
_UNCUT = (16, 20)
_UNENDED = {"live": "in progress", "lost": "no end received", "unended": "no end was sent"}


@takes_call_filters()
def list_calls(
    filters: CallFilter,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of calls.")] = 20,
    column: Annotated[
        list[str] | None,
        typer.Option(help="A result, or keep.NAME, to be listed, too. Repeat it for several."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List calls, newest first: those in progress, then ended ones."""
    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    now = datetime.now(UTC)
    with open_log(settings) as database:
        queries = Queries(database.reader)
        is_filtered = filters != CallFilter(range="all", source=filters.source)
        in_progress = [] if is_filtered else queries.live_calls(now=now, source=filters.source)
        live = [masked_call(row.call, mask) for row in in_progress]
        listed_calls = _ended(queries, limit - len(live), now, filters)
        ended = [masked_listing(row, mask) for row in listed_calls]
        unparsed, hidden = (
            queries.unparsed_count(),
            queries.ask(call_list.hidden_count, filters, now),
        )
        agents = agent_names(database, settings)
    if as_json:
        print_json([*live, *map(_with_values, ended)][:limit], agents)
        return
    columns = tuple(dict.fromkeys(column or ()))
    rows = table(*_HEADS, *map(printable, columns))
    for head, width in zip(rows.columns, _UNCUT, strict=False):
        head.min_width = width
    for call in live[:limit]:
        add_row(rows, *_row(call, agents, now), "", one_line=True)
    for listed in ended:
        values = (result_text(listed, name) for name in columns)
        add_row(rows, *_row(listed.call, agents, now), listed.runs.words, *values, one_line=True)
    if rows.row_count:
        console().print(rows)
    elif not hidden:
        none_yet = "No calls yet. Send a sample: millis-hooks send end-of-call"
        typer.echo("No calls match." if is_filtered else none_yet)
    if hidden:
        note(f"Simulated and test calls, hidden: {hidden:,}. Show them: --source all")
    if unparsed:
        note(f"Deliveries that could not be read, kept as received: {unparsed}.")


def show(
    session_id: Annotated[str, typer.Argument(help="Session ID.")],
    as_json: AsJson = False,
) -> None:
    """Show one call: transcript, cost, prefetch answer and handler runs."""
    settings = Settings.load()
    now = datetime.now(UTC)
    with open_log(settings) as database:
        queries, agents = Queries(database.reader), agent_names(database, settings)
        pages = DashboardSettings(__version__, MaskPolicy.of(settings), agents=agents)
        view = show_call(PageRequest(queries, pages, now, {}, {"session_id": session_id}))
    if view is None:
        fail(f"There is no call {session_id} in the call log.")
    if as_json:
        print_json(view, agents)
    else:
        _print_call(view, agents, now)


@dataclass(frozen=True, slots=True, kw_only=True)
class _CallWithValues(Call):
    """A call as JSON has it, with its results and what was kept."""

    results: Sequence[Result]
    kept: Mapping[str, Plain]


def _with_values(listed: ListedCall) -> _CallWithValues:
    own = {each.name: getattr(listed.call, each.name) for each in fields(Call)}
    return _CallWithValues(**own, results=listed.results, kept=listed.kept)


def _ended(
    queries: Queries, limit: int, now: datetime, filters: CallFilter
) -> Iterator[ListedCall]:
    before: str | None = None
    while limit > 0:
        size = min(limit, _PAGE_SIZE)
        page = queries.ask(call_list.list_calls, filters, now=now, before=before, size=size)
        yield from page.rows
        limit -= len(page.rows)
        before = page.older
        if before is None:
            return


def _row(call: Call, agents: AgentNames, now: datetime) -> list[str]:
    state = call.state(now)
    return [
        at(call.received_at, "%Y-%m-%d %H:%M"),
        call.session_id,
        contact(call),
        agents.label(call.agent_id),
        status_label(call.call_status) if state == "ended" else _UNENDED[state],
        clock(call.duration_s),
        _credit(call.cost_total),
    ]


def _print_call(view: CallView, agents: AgentNames, now: datetime) -> None:
    """Print each part of the view that is not empty as a small table."""
    out = console()
    for title, cells in _parts(view, agents, now):
        if not cells:
            continue
        rows = table(*("" for _ in cells[0]), show_heads=False)
        for row in cells:
            add_row(rows, *row)
        out.print(Text(title, style="bold"), rows, "", sep="\n")


def _parts(
    view: CallView, agents: AgentNames, now: datetime
) -> Iterator[tuple[str, list[Sequence[str]]]]:
    talk = view.conversation
    yield f"Call {printable(view.call.session_id, one_line=True)}", list(_facts(view, agents))
    yield "Transcript", [*map(_line, talk.lines), *_more(talk.lines_left_out)]
    functions = [(function.name, _call_of(function)) for function in talk.all_functions]
    yield "Functions", [*functions, *_more(talk.functions_left_out)]
    metadata = [(entry.key, _json(entry.value), entry.change or "") for entry in view.metadata]
    yield "Metadata", list(metadata)
    yield "Results", [(each.name, _json(each.value), each.handler) for each in view.results]
    yield "Kept", [(entry.key, _json(entry.value)) for entry in view.kept]
    yield "Cost", [_cost(cost.item) for cost in view.costs]
    yield "Handlers", [*(_run(run, now) for run in view.runs), *_more(view.runs_left_out)]
    yield "Could not be read", [(problem,) for problem in talk.problems]


def _more(left_out: int) -> list[tuple[str, str]]:
    return [("", f"… and {left_out} more")] if left_out else []


def _facts(view: CallView, agents: AgentNames) -> Iterator[tuple[str, str]]:
    call, prefetch = view.call, view.prefetch
    facts = {
        "State": "ended" if view.state == "ended" else _UNENDED[view.state],
        "Status": status_label(call.call_status) if call.ended_at else "",
        "With": contact(call),
        "Agent": " ".join(filter(None, (agents.name_of(call.agent_id), call.agent_id))),
        "Received": iso(call.received_at),
        "Started": iso(call.started_at) if call.started_at else "",
        "Length": clock(call.duration_s),
        "Cost": _credit(call.cost_total),
        "Recording": call.recording_url,
        "Error": call.error_message,
    }
    if prefetch is not None:
        delivery = prefetch.delivery
        facts["Prefetch"] = f"{delivery.outcome}, {milliseconds(delivery.latency_ms)}"
        facts["Reason"] = delivery.reason
        facts["Extra prompt"] = view.extra_prompt
    yield from ((name, value) for name, value in facts.items() if value)


def _line(line: Line) -> tuple[str, str]:
    if line.tool is None:
        return line.role, line.text
    return line.role, f"{line.tool.name} {_call_of(line.tool)}"


def _call_of(function: Function) -> str:
    return f"{_json(function.params)} → {_json(function.result)}"


def _cost(item: CostItem) -> tuple[str, str, str]:
    return item.type or "", item.provider or "", _credit(item.credit)


def _run(run: Run, now: datetime) -> tuple[str, ...]:
    return (
        handler_label(run),
        run.state if run.is_latest else f"{run.state}, replaced",
        attempts_label(run),
        time_label(run, now),
        error_label(run.reason, run.attempts[-1] if run.attempts else None),
    )


def _credit(credit: float | None) -> str:
    return "" if credit is None else f"{credit:.4f}"


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


#: Seconds between two looks at the call log.
EVERY_S = 0.5
#: Colors of outcomes; any other is yellow.
_STYLES = {
    **dict.fromkeys(("fresh", "cached", "answered", "stored", "succeeded"), "green"),
    **dict.fromkeys(("late", "failed", "timed_out", "gave_up", "unparsed", "rejected"), "red"),
}


def tail(
    last: Annotated[
        int,
        typer.Option("--last", "-n", min=0, max=500, help="Show the last N requests first."),
    ] = 10,
    session: Annotated[str | None, typer.Option(help="Only this session.")] = None,
    agent: Annotated[
        str | None, typer.Option(help="Only calls of this agent (ID or name).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line.")
    ] = False,
    follow: Annotated[
        bool, typer.Option(help="Follow until you press Ctrl-C, or stop after the last event.")
    ] = True,
) -> None:
    """Follow deliveries, answers and handler runs live."""
    settings = Settings.load()
    mask = MaskPolicy.of(settings)
    with open_log(settings) as database, _interruption(_Interruption(not follow)) as interruption:
        agents = agent_names(database, settings)
        for event in _events(database, interruption, last=last):
            name = agents.name_of(event.agent_id)
            if session in (None, event.session_id) and agent in (None, event.agent_id, name):
                _print_event(masked_happening(event, mask), agents, as_json=as_json)


@dataclass(slots=True)
class _Interruption:
    """Whether to end. A threading.Event would not do: its lock may be held at that moment."""

    is_requested: bool


@contextmanager
def _interruption(interruption: _Interruption) -> Iterator[_Interruption]:
    """Let the first Ctrl-C set the flag, not break off a query; the second one ends at once."""

    def request(*_: object) -> None:
        interruption.is_requested = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield interruption
    finally:
        signal.signal(signal.SIGINT, before)


def _events(database: Database, interruption: _Interruption, *, last: int) -> Iterator[Happening]:
    """Yield events as they are stored; once interrupted, those stored until then."""
    with database.reader.connect() as connection:
        follower = Follower(connection, last=last)
    while True:
        is_last = interruption.is_requested
        # Closed between looks: an open snapshot would keep the file growing.
        with database.reader.connect() as connection:
            events = follower.look(connection)
        yield from events
        if is_last and len(events) < MOST_AT_ONCE:  # there may always be new ones
            return
        if not events and not interruption.is_requested:
            time.sleep(EVERY_S)


def _print_event(event: Happening, agents: AgentNames, *, as_json: bool) -> None:
    if as_json:
        print_json_line(event, agents)
        return
    line = Text.assemble(
        (f"{event.at:%H:%M:%S}  ", "dim"),
        f"{printable(event.session_id or '-', one_line=True)[:40]:<22}",
        f"{event.kind.replace('_', ' '):<12}",
        (f"{event.outcome.replace('_', ' '):<12}", _STYLES.get(event.outcome, "yellow")),
        printable("  ".join(filter(None, _details(event))), one_line=True),
    )
    console().print(line, soft_wrap=True)


def _details(event: Happening) -> Iterator[str | None]:
    """Yield the caller, how the call ended, or which handler ran; and the error."""
    if event.handler is not None:
        yield f"{event.handler}, attempt {event.attempt}: run {event.run_state or ''}"
    else:
        yield event.customer_phone
    if event.call_status is not None:
        yield status_label(event.call_status)
    if event.duration_s is not None:
        yield clock(event.duration_s)
    if event.duration_ms is not None:
        yield f"{event.duration_ms:.1f} ms"
    yield event.error
