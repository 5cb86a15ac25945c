"""`doctor`: looks a service over and says what to do.

`drift`: what Millis sent that its documentation does not know.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import httpx2
import typer

from ..call_log.drift import COUNT_CAP, MOST_GROUPS, DriftReport, drift_report, masked_report
from ..checks import Finding, State, bad
from ..checks.configuration import examine_application
from ..checks.examination import examine
from ..checks.reachability import Addresses, examine_reach
from ..environment.addresses import is_loopback
from ..exceptions import MillisHooksError
from ..masking.policy import MaskPolicy
from ..server.app_loader import Target, load_target
from ..settings import Settings
from ..webhooks import service_url, webhook_url
from .common import open_log, print_json
from .terminal import add_row, console, note, table

if TYPE_CHECKING:
    from rich.console import Console


_TIMEOUT_S = 10.0
_MARKS = {"ok": "ok", "warn": "warn", "bad": "BAD"}
_STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}
_NAME_WIDTH = len("unknown handlers")


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[TARGET]", help="Your application, as for `run`: looked at too."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="Where Millis reaches the service, as https://hooks.example.com."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not read the whole call log for damage.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look over the settings, the disk, the call log, the clock and the way to the service.

    Nothing is changed, and no handler is called. Ends with status 1 if anything is bad.
    """
    found = []
    out = console()
    for finding in _findings(target, url, fast=fast):
        found.append(finding)
        if not as_json:
            _print(out, finding)
    counts = Counter(finding.state for finding in found)
    if as_json:
        typer.echo(json.dumps({"checks": list(map(asdict, found)), "bad": counts["bad"]}, indent=2))
    else:
        _print_summary(counts, target, url)
    if counts["bad"]:
        raise typer.Exit(1)


def _findings(target: str | None, url: str | None, *, fast: bool) -> Iterator[Finding]:
    try:
        found = _load(target)
        settings = _settings(found)
    except MillisHooksError as error:
        name = "application" if target is not None else "settings"
        yield bad(name, str(error), "Correct it: the service does not start.")
        return
    base = None if url is None else service_url(settings, url)
    if found is not None:
        router = found.hooks.router if found.hooks else None
        yield from examine_application(found.import_string, router)
    yield from examine(settings, _now, reads_all=not fast)
    if base is not None:
        yield from _reach(settings, base)


def _load(target: str | None) -> Target | None:
    if target is None:
        return None
    return load_target(target)


def _settings(found: Target | None) -> Settings:
    """Return the application's own settings; without one those of the environment."""
    return found.hooks.settings if found is not None and found.hooks else Settings.load()


def _reach(settings: Settings, url: str) -> Iterator[Finding]:
    is_local = is_loopback(urlsplit(url).hostname)
    at = Addresses(
        base=url,
        prefetch=webhook_url(settings, "prefetch", url),
        end_of_call=webhook_url(settings, "end_of_call", url),
        is_local=is_local,
    )
    # A proxy for the outside cannot reach a service on this machine.
    with httpx2.Client(timeout=_TIMEOUT_S, trust_env=not is_local) as client:
        yield from examine_reach(client, at, _now)


def _now() -> datetime:
    return datetime.now(UTC)


def _print(out: Console, finding: Finding) -> None:
    shown = table("", "", "", show_heads=False)
    for column, width in zip(shown.columns, (4, _NAME_WIDTH), strict=False):
        column.min_width = column.max_width = width
    shown.columns[0].style = _STYLES[finding.state]
    add_row(shown, _MARKS[finding.state], finding.name, finding.found)
    if more := finding.advice or finding.link:
        add_row(shown, "", "", f"→ {more}")
    out.print(shown)


def _print_summary(counts: Counter[State], target: str | None, url: str | None) -> None:
    typer.echo(f"{counts['bad']} bad, {counts['warn']} to look at, {counts['ok']} ok.")
    if target is None:
        note("Name your application to have its handlers and settings looked at too: app.py")
    if url is None:
        note("Not looked at from outside; add --url https://hooks.example.com")


_HEADS = ("What", "Where", "Deliveries", "First (UTC)", "Last (UTC)", "Delivery", "Found last")


def drift(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List unknown fields, unknown values and what could not be read, with how often and when."""
    settings = Settings.load()
    with open_log(settings) as database, database.reader.connect() as connection:
        report = masked_report(drift_report(connection), MaskPolicy.of(settings))
    if as_json:
        print_json(report)
    elif report.groups:
        _print_table(report)
    else:
        typer.echo("Nothing new: every field and value is known, and could be read.")


def _print_table(report: DriftReport) -> None:
    shown = table(*_HEADS)
    for column in shown.columns[:-1]:
        column.no_wrap = True
    for group in report.groups:
        cells = (
            group.kind.replace("_", " "),
            group.path,
            f"{group.count:,}" + ("+" if group.count == COUNT_CAP else ""),
            f"{group.first_seen:%Y-%m-%d %H:%M}",
            f"{group.last_seen:%Y-%m-%d %H:%M}",
            str(group.delivery_id),
            group.sample,
        )
        add_row(shown, *cells, one_line=True)
    console().print(shown)
    if not report.is_complete:
        note(f"Of each kind the first {MOST_GROUPS} places are listed; there are more.")
