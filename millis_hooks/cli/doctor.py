"""`doctor` runs the checks of an installation; `drift` lists what Millis' documentation lacks."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx2
import typer

from ..call_log.drift import (
    COUNT_CAP,
    MOST_GROUPS,
    DriftGroup,
    DriftReport,
    drift_report,
    masked_report,
)
from ..checks import CheckResult, bad
from ..checks.installation import check_application, check_installation
from ..checks.reachability import TIMEOUT_S, check_reachability
from ..environment.addresses import is_loopback
from ..exceptions import MillisHooksError
from ..masking.policy import MaskPolicy
from ..server.app_loader import APP_FILE, target_at_hand
from ..settings import Settings
from ..webhooks import service_url
from .common import open_log, print_json
from .options import AsJson, Target
from .terminal import add_row, console, note, print_table, table

_MARKS = {"ok": "ok", "warn": "warn", "bad": "BAD"}
_STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}
_NAME_WIDTH = len("unknown handlers")


def doctor(
    target: Target = None,
    url: Annotated[
        str | None,
        typer.Option(help="Public URL of the service, such as https://hooks.example.com."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not check the whole call log for damage.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check settings, disk, call log, clock and public URL.

    Nothing is changed, and no handler is called. Exits with status 1 if anything is bad.
    """
    results = []
    for result in _results(target, url, fast=fast):
        results.append(result)
        if not as_json:
            _print(result)
    counts = Counter(result.state for result in results)
    if as_json:
        report = {"checks": [asdict(result) for result in results], "bad": counts["bad"]}
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(f"{counts['bad']} bad, {counts['warn']} to look at, {counts['ok']} ok.")
        if target is None and not Path(APP_FILE).is_file():
            note("Name your application to check its handlers and settings too: app.py")
        if url is None:
            note("Not checked from outside; add --url https://hooks.example.com")
    if counts["bad"]:
        raise typer.Exit(1)


def print_settings(
    target: Target = None,
    as_json: AsJson = False,
) -> None:
    """List every setting with its value and source.

    Secrets are not shown. Arguments of `MillisHooks` are known only where TARGET is given.
    """
    application = target_at_hand(target)
    settings = application.require_hooks().settings if application else Settings.load()
    if as_json:
        print_json([asdict(each) for each in settings.in_force()])
        return
    rows = [(each.name, each.value, each.source) for each in settings.in_force()]
    print_table(("Setting", "Value", "From"), rows)


def _results(target: str | None, url: str | None, *, fast: bool) -> Iterator[CheckResult]:
    try:
        application = target_at_hand(target)
        hooks = application.hooks if application is not None else None
        settings = hooks.settings if hooks is not None else Settings.load()
    except MillisHooksError as error:
        name = "settings" if target is None and not Path(APP_FILE).is_file() else "application"
        yield bad(name, str(error), "Correct it: the service does not start.")
        return
    base = None if url is None else service_url(settings, url)
    if application is not None:
        yield check_application(application.import_string, hooks.router if hooks else None)
    yield from check_installation(settings, _now, reads_all=not fast)
    if base is not None:
        yield from _reachability(settings, base)


def _reachability(settings: Settings, base: str) -> Iterator[CheckResult]:
    is_local = is_loopback(urlsplit(base).hostname)
    # A proxy for the outside cannot reach a service on this machine.
    with httpx2.Client(timeout=TIMEOUT_S, trust_env=not is_local) as client:
        yield from check_reachability(client, settings, base, _now)


def _now() -> datetime:
    return datetime.now(UTC)


def _print(result: CheckResult) -> None:
    rows = table("", "", "", show_heads=False)
    for column, width in zip(rows.columns, (4, _NAME_WIDTH), strict=False):
        column.min_width = column.max_width = width
    rows.columns[0].style = _STYLES[result.state]
    add_row(rows, _MARKS[result.state], result.name, result.found)
    if more := " ".join(filter(None, (result.advice, result.command))) or result.link:
        add_row(rows, "", "", f"→ {more}")
    console().print(rows)


_HEADS = ("What", "Where", "Deliveries", "First (UTC)", "Last (UTC)", "Delivery", "Latest example")


def drift(as_json: AsJson = False) -> None:
    """List undocumented fields and values and unreadable data, with counts and times."""
    settings = Settings.load()
    with open_log(settings) as database, database.reader.connect() as connection:
        report = masked_report(drift_report(connection), MaskPolicy.of(settings))
    if as_json:
        print_json(report)
    elif report.groups:
        _print_drift(report)
    else:
        typer.echo("Nothing new: every field and value is known and readable.")


def _print_drift(report: DriftReport) -> None:
    rows = table(*_HEADS)
    for column in rows.columns[:-1]:
        column.no_wrap = True
    for group in report.groups:
        add_row(rows, *_cells(group), one_line=True)
    console().print(rows)
    if not report.is_complete:
        note(f"Only the first {MOST_GROUPS} places of each kind are listed.")


def _cells(group: DriftGroup) -> tuple[str, ...]:
    return (
        group.kind.replace("_", " "),
        group.path,
        f"{group.count:,}" + ("+" if group.count == COUNT_CAP else ""),
        f"{group.first_seen:%Y-%m-%d %H:%M}",
        f"{group.last_seen:%Y-%m-%d %H:%M}",
        str(group.delivery_id),
        group.sample,
    )
