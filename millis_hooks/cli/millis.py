"""Print an agent's configuration, write it at Millis, and fetch missing end-of-calls."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from ..call_log.database import Database
from ..call_log.queries.requests import stored_tools
from ..call_log.redaction import redaction_of
from ..call_log.upkeep.removal import writing_by
from ..exceptions import ConfigError, StorageError
from ..millis_api import Agent, MillisApi
from ..millis_api.connection import Connected, changes_of, difference, state, write
from ..millis_api.reconcile import SETTLES_IN, Reconciled, Reconciliation
from ..protocol.agent_names import names_at_millis
from ..protocol.reading import Json
from ..sandbox.texts import undeclared
from ..server.app_loader import target_at_hand
from ..settings import Settings
from ..webhooks import service_url
from ..webhooks.agent_config import Form, agent_config, warnings_about
from .common import has_log, is_served, open_log
from .options import DryRun, Target, Yes, read_time
from .terminal import confirm, fail, note, progress

#: A request is made again, and if that was in vain, the error says so.
logging.getLogger("stamina").setLevel(logging.ERROR)


def config(
    target: Target = None,
    *,
    url: Annotated[str, typer.Option(help="Public URL, such as https://hooks.example.com.")],
    form: Annotated[
        Form,
        typer.Option(
            "--as", help="object: URL and headers. string: URL with the secret in the path."
        ),
    ] = "object",
    agent_id: Annotated[
        str | None, typer.Option(help="Use the secret of this agent, if it has one.")
    ] = None,
) -> None:
    """Print the JSON for the agent's configuration at Millis."""
    settings, base, tools = _service(target, url, agent_id)
    if form == "string" and not settings.secret_in_path:
        raise ConfigError(
            "A webhook that is only an address has its secret in the path, which is switched off. "
            "Switch it on for the service:\n  export MILLIS_HOOKS_SECRET_IN_PATH=1"
        )
    webhooks = agent_config(settings, base, form=form, agent_id=agent_id, tools=tools)
    typer.echo(json.dumps(webhooks, indent=2))
    if form == "string":
        note("Note: proxies on the way write paths to their logs. Prefer --as object.")
    for warning in warnings_about(base):
        note(f"Note: {warning}")


def connect(
    agent_id: Annotated[str, typer.Argument(help="ID of the agent at Millis.")],
    target: Target = None,
    *,
    url: Annotated[str, typer.Option(help="Public URL, such as https://hooks.example.com.")],
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Write the webhooks and functions of this service into an agent at Millis.

    Needs MILLIS_HOOKS_API_KEY. Shows the difference without secrets, asks, writes, and reads the
    agent again. Nothing else of the agent changes: if Millis loses anything, the old configuration
    is put back and the exit status is 1.
    """
    settings, base, tools = _service(target, url, agent_id)
    wanted = agent_config(settings, base, agent_id=agent_id, tools=tools)
    for warning in warnings_about(base):
        note(f"Note: {warning}")
    api = MillisApi.of(settings)
    agent = asyncio.run(api.agent(agent_id))
    for line in undeclared(agent.config, settings.variables):
        note(f"Note: {line}")
    changes = changes_of(agent, wanted)
    name = names_at_millis([(agent_id, agent.name)]).get(agent_id, "")
    if not changes:
        typer.echo(f"Agent {agent_id} {name} has these webhooks and functions. Nothing to change.")
        return
    typer.echo(f"Agent {agent_id} {name} changes:")
    for line in difference(agent, changes):
        typer.echo(f"  {line}")
    if dry_run:
        typer.echo("Nothing was written.")
        return
    if not yes:
        confirm("Write this?", refusal="Nothing was written.")
    _report(agent, asyncio.run(write(api, agent, changes)), wanted)


def _report(before: Agent, result: Connected, wanted: Mapping[str, Json]) -> None:
    """Print what Millis has now; end with status 1 if that is not what was asked for."""
    if result.is_put_back:
        fail(
            f"Millis replaced the configuration and lost: {', '.join(result.lost)}. The old "
            "configuration was put back. Merge what `millis-hooks config` prints by hand."
        )
    if result.lost:
        typer.echo(json.dumps(before.config, indent=2))
        fail(
            f"Millis lost: {', '.join(result.lost)}, and the old configuration could not be put "
            "back. It is printed above, with its secrets: put it back by hand."
        )
    typer.echo("Millis now has:")
    for line in state(result.agent, wanted):
        typer.echo(f"  {line}")
    if result.not_taken:
        fail(f"Millis did not keep as written: {', '.join(result.not_taken)}.")


def _service(
    target: str | None, url: str, agent_id: str | None
) -> tuple[Settings, str, Sequence[Mapping[str, Json]]]:
    """Return settings, public address and functions. Raises `ConfigError`."""
    application = target_at_hand(target)
    if application is None:
        settings, mounted_at = Settings.load(), ""
        tools = _stored_tools(settings, agent_id)
    else:
        hooks = application.require_hooks()
        settings, mounted_at = hooks.settings, application.mounted_at
        tools = hooks.router.tools(agent_id)
    settings.require_closed(has_functions=bool(tools))
    return settings, service_url(settings, url) + mounted_at, tools


def _stored_tools(settings: Settings, agent_id: str | None) -> Sequence[Mapping[str, Json]]:
    """Return the functions of the application that started last, where its log is at hand."""
    if not has_log(settings):
        return ()
    try:
        with open_log(settings) as database, database.reader.connect() as connection:
            return stored_tools(connection, agent_id=agent_id)
    except (StorageError, typer.Exit):
        note("Note: the call log cannot be read: name the application, to have its functions too.")
        return ()


def reconcile(
    since: Annotated[
        datetime | None,
        typer.Option(
            parser=read_time,
            help="Begin with the calls of this date or time, in UTC without a zone; by default "
            "where the last reconciliation ended.",
        ),
    ] = None,
    dry_run: DryRun = False,
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once", help="Do not wait 5 minutes for webhooks; for tests with the sandbox."
        ),
    ] = False,
) -> None:
    """Fetch missing end-of-calls from the Millis API logs and run handlers for them.

    Needs MILLIS_HOOKS_API_KEY. With it, the service does the same every few minutes. Calls with
    an end-of-call are not changed, so you can run the command again after an interruption.
    """
    settings = Settings.load()
    api = MillisApi.of(settings)
    with open_log(settings) as database:
        result = _reconcile(database, api, settings, since, is_trial=dry_run, at_once=at_once)
        typer.echo(("Nothing was stored. " if dry_run else "") + str(result))
        if result.filled and not dry_run:
            when = "within seconds" if is_served(database) else "when it starts"
            note(f"The service calls the handlers for them {when}.")


def _reconcile(
    database: Database,
    api: MillisApi,
    settings: Settings,
    since: datetime | None,
    *,
    is_trial: bool,
    at_once: bool,
) -> Reconciled:
    result = Reconciled()

    def stopped() -> str:
        return f"Stopped. {result} Run the command again to continue."

    with progress(None, stopped=stopped) as show_done:

        def keep(so_far: Reconciled) -> None:
            nonlocal result
            result = so_far
            show_done(so_far.listed + so_far.unknown)

        reconciliation = Reconciliation(
            api,
            database.reader,
            writing_by(database.writer),
            now=lambda: datetime.now(UTC),
            redact=redaction_of(settings),
            is_trial=is_trial,
            settles_in=timedelta() if at_once else SETTLES_IN,
            tell=keep,
        )
        return asyncio.run(reconciliation.look(since or reconciliation.since()))
