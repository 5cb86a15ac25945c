"""All commands, under their names.

A command imports what it needs when it runs, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from . import (
    calls,
    doctor,
    forget,
    maintenance,
    millis,
    operators,
    runs,
    send,
    serve,
    simulate,
    transfer,
)
from .common import Commands

app = typer.Typer(
    cls=Commands,
    help="Receive Millis AI webhooks: answer prefetch in time, keep every end-of-call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its frames show local variables, and so secrets
)
app.command("new")(serve.new)
app.command("dev")(serve.dev)
app.command("run")(serve.run)
app.command("worker")(serve.worker)
app.command("config")(millis.config)
app.add_typer(send.app, name="send")
app.command("simulate")(simulate.simulate)
app.command("calls")(calls.list_calls)
# Session ids begin with a dash.
app.command("show", context_settings={"ignore_unknown_options": True})(calls.show)
app.command("runs")(runs.list_runs)
app.command("tail")(calls.tail)
app.command("doctor")(doctor.doctor)
app.command("drift")(doctor.drift)
app.command("reconcile")(millis.reconcile)
app.command("reparse")(maintenance.reparse)
app.command("export")(transfer.export)
app.command("import")(transfer.import_calls)
app.add_typer(operators.app, name="operator")
app.command("prune")(maintenance.prune)
app.command("forget", context_settings={"ignore_unknown_options": True})(forget.forget)
app.command("vacuum")(maintenance.vacuum)
app.command("backup")(maintenance.backup)
app.command("copy")(transfer.copy)
app.command("replay", context_settings={"ignore_unknown_options": True})(runs.replay)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"millis-hooks {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Take the options that stand in front of a command."""
