"""`drift`: what Millis sent that its documentation does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from .opened_log import opened
from .terminal import add_row, console, note, print_json, table

if TYPE_CHECKING:
    from ..call_log.drift import DriftReport

_HEADS = ("What", "Where", "Deliveries", "First (UTC)", "Last (UTC)", "Delivery", "Found last")


def drift(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List unknown fields, unknown values and what could not be read, with how often and when."""
    from ..call_log.drift import drift_report, masked_report
    from ..masking import MaskPolicy
    from ..settings import Settings

    settings = Settings.load()
    with opened(settings) as database, database.reader.connect() as connection:
        report = masked_report(drift_report(connection), MaskPolicy.of(settings))
    if as_json:
        print_json(report)
    elif report.groups:
        _print_table(report)
    else:
        typer.echo("Nothing new: every field and value is known, and could be read.")


def _print_table(report: DriftReport) -> None:
    from ..call_log.drift import COUNT_CAP, MOST_GROUPS

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
