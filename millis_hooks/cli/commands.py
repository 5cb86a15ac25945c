"""The table of commands.

A command's module is imported when the command is called, so that `--help` and completion need
nothing but this table, and command modules import at their top whatever they need.
"""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..exceptions import MillisHooksError
from ..version import __version__
from .terminal import print_error

#: The commands as `--help` lists them, by what they are for: the module in this package with the
#: function or group, and the first line of its help.
GROUPS = {
    "Develop": {
        "new": (
            "serve:new",
            "Create an application with handlers, tests, and a .env with new secrets.",
        ),
        "dev": ("serve:dev", "Serve while you develop. Reloads, and generates missing secrets."),
        "send": ("send:app", "Send a sample webhook to a running service."),
        "simulate": (
            "simulate:simulate",
            "Simulate whole calls: prefetch, conversation, functions, end-of-call.",
        ),
        "config": ("millis:config", "Print the JSON for the agent's configuration at Millis."),
        "connect": (
            "millis:connect",
            "Write the webhooks and functions of this service into an agent at Millis.",
        ),
    },
    "Serve": {
        "run": (
            "serve:run",
            "Serve in production. Checks the settings and never generates secrets.",
        ),
        "worker": (
            "serve:worker",
            "Run end-of-call handlers for services with MILLIS_HOOKS_RUN_HANDLERS=0.",
        ),
    },
    "Look": {
        "calls": (
            "calls:list_calls",
            "List calls, newest first: those in progress, then ended ones.",
        ),
        "show": (
            "calls:show",
            "Show one call: transcript, cost, prefetch answer and handler runs.",
        ),
        "runs": (
            "runs:list_runs",
            "List handler runs, newest first. Replays replace the run they repeat.",
        ),
        "tail": ("calls:tail", "Follow deliveries, answers and handler runs live."),
        "drift": (
            "doctor:drift",
            "List undocumented fields and values and unreadable data, with counts and times.",
        ),
        "doctor": ("doctor:doctor", "Check settings, disk, call log, clock and public URL."),
        "settings": ("doctor:print_settings", "List every setting with its value and source."),
    },
    "Repair": {
        "replay": (
            "runs:replay",
            "Run handlers again with the stored payload: for a call, or for runs.",
        ),
        "reparse": (
            "maintenance:reparse",
            "Read stored deliveries again, and update calls, costs, search and drift.",
        ),
        "reconcile": (
            "millis:reconcile",
            "Fetch missing end-of-calls from the Millis API logs and run handlers for them.",
        ),
    },
    "Data": {
        "export": (
            "transfer:export",
            "Export calls to a file, oldest first: all real ones, or a selection.",
        ),
        "import": (
            "transfer:import_calls",
            "Import calls that export --raw wrote as jsonl, or Millis' call logs.",
        ),
        "copy": (
            "transfer:copy",
            "Copy a whole call log into an empty database, from SQLite to PostgreSQL or back.",
        ),
        "backup": ("maintenance:backup", "Copy the call log into a file while the service runs."),
        "forget": (
            "maintenance:forget",
            "Remove everything about a phone number, one call, or the calls that filters choose.",
        ),
        "prune": ("maintenance:prune", "Remove old calls with all their data."),
        "vacuum": ("maintenance:vacuum", "Rewrite the call log's file without unused space."),
    },
    "Access": {
        "operator": ("operators:app", "Manage the operators of the dashboard."),
        "token": (
            "operators:tokens_app",
            "Manage read tokens for the JSON of the dashboard's pages.",
        ),
    },
}
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}
#: Their arguments are ids of Millis, which begin with a dash.
_TAKE_IDS = {"show", "forget", "replay", "connect"}


class LazyGroup(TyperGroup):
    """The commands of the table. Expected errors become a message and exit status 2."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {
            name: TyperCommand(name=name, short_help=text) for name, (_, text) in COMMANDS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Replace the entry of the table by the command itself, with its options."""
        name, entry, rest = super().resolve_command(ctx, args)
        return name, entry and load_command(entry.name or ""), rest

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names in the order of the groups."""
        return list(COMMANDS)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands of `--help` group by group."""
        width = max(map(len, COMMANDS))
        for group, commands in GROUPS.items():
            with formatter.section(group):
                formatter.write_dl(
                    [(name.ljust(width), text) for name, (_, text) in commands.items()]
                )

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MillisHooksError as error:
            print_error(error)
            raise typer.Exit(2) from None


def load_command(name: str) -> Any:
    """Import a command, or the group of that name."""
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(import_module(f".{module}", __package__), attribute)
    if not isinstance(command, typer.Typer):
        options = {"ignore_unknown_options": name in _TAKE_IDS}
        command, function = typer.Typer(add_completion=False, rich_markup_mode=None), command
        command.command(name, context_settings=options)(function)
    loaded = typer.main.get_command(command)
    for each in (loaded, *getattr(loaded, "commands", {}).values()):
        for parameter in each.params:
            if parameter.param_type_name == "argument" and parameter.metavar is None:
                parameter.metavar = (parameter.name or "").upper()
    return loaded


app = typer.Typer(
    cls=LazyGroup,
    help="Receive Millis AI webhooks: answer prefetches in time, store every end-of-call.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # its frames show local variables, and so secrets
    rich_markup_mode=None,  # rich takes longer to import than everything else together
)


def _print_version(is_given: bool) -> None:
    if is_given:
        typer.echo(f"millis-hooks {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Read the options in front of a command."""
