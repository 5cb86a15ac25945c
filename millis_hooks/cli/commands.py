"""All commands, under their names.

A command imports what it needs when it runs, so that `--help` and completion answer at once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from ..version import __version__
from . import (
    agent_config,
    backup,
    calls,
    copy,
    doctor,
    drift,
    export,
    forget,
    import_calls,
    operator,
    prune,
    reconcile,
    reparse,
    replay,
    runs,
    send,
    serving,
    simulate,
    starter_app,
    tail,
    vacuum,
)
from .terminal import Commands

app = typer.Typer(
    cls=Commands,
    help="Receive Millis AI webhooks: answer prefetch in time, keep every end-of-call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its frames show local variables, and so secrets
)
app.command("new")(starter_app.new)
app.command("dev")(serving.dev)
app.command("run")(serving.run)
app.command("worker")(serving.worker)
app.command("config")(agent_config.config)
app.add_typer(send.app, name="send")
app.command("simulate")(simulate.simulate)
app.command("calls")(calls.list_calls)
# Session ids begin with a dash.
app.command("show", context_settings={"ignore_unknown_options": True})(calls.show)
app.command("runs")(runs.list_runs)
app.command("tail")(tail.tail)
app.command("doctor")(doctor.doctor)
app.command("drift")(drift.drift)
app.command("reconcile")(reconcile.reconcile)
app.command("reparse")(reparse.reparse)
app.command("export")(export.export)
app.command("import")(import_calls.import_calls)
app.add_typer(operator.app, name="operator")
app.command("prune")(prune.prune)
app.command("forget", context_settings={"ignore_unknown_options": True})(forget.forget)
app.command("vacuum")(vacuum.vacuum)
app.command("backup")(backup.backup)
app.command("copy")(copy.copy)
app.command("replay", context_settings={"ignore_unknown_options": True})(replay.replay)


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
