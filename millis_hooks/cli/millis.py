"""`config` prints an agent's configuration; `reconcile` fetches ends that never arrived."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import make_url

from ..call_log.database import Database, is_file
from ..call_log.queries.requests import stored_tools
from ..call_log.redaction import redaction_of
from ..call_log.upkeep.removal import writing_by
from ..exceptions import ConfigError, StorageError
from ..millis_api.client import MillisApi
from ..millis_api.reconcile import SETTLES_IN, Reconciled, Reconciliation
from ..protocol.reading import Json
from ..server.app_loader import load_target
from ..settings import Settings
from ..webhooks import service_url
from ..webhooks.agent_config import agent_config, warnings_about
from .common import is_served, open_log
from .options import DryRun, read_time
from .terminal import INTERRUPTED, fail, note, progress


class Form(StrEnum):
    """How Millis takes a webhook."""

    OBJECT = "object"
    STRING = "string"


def config(
    target: Annotated[
        str | None,
        typer.Argument(help="Application (app.py or module:attribute), if its code sets settings."),
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="Public URL, such as https://hooks.example.com.")],
    form: Annotated[
        Form,
        typer.Option(
            "--as", help="object: URL and headers. string: URL with the secret in the path."
        ),
    ] = Form.OBJECT,
    agent_id: Annotated[
        str | None, typer.Option(help="Use the secret of this agent, if it has one.")
    ] = None,
) -> None:
    """Print the JSON for the agent's configuration at Millis."""
    if target is None:
        settings, mounted_at = Settings.load(), ""
        tools = _stored_tools(settings, agent_id)
    else:
        application = load_target(target)
        hooks = application.require_hooks()
        settings, mounted_at = hooks.settings, application.mounted_at
        tools = hooks.router.tools(agent_id)
    settings.require_closed(has_functions=bool(tools))
    base = service_url(settings, url) + mounted_at
    if form is Form.STRING and not settings.secret_in_path:
        raise ConfigError(
            "A webhook that is only an address has its secret in the path, which is switched off. "
            "Switch it on for the service:\n  export MILLIS_HOOKS_SECRET_IN_PATH=1"
        )
    webhooks = agent_config(settings, base, form=form.value, agent_id=agent_id, tools=tools)
    typer.echo(json.dumps(webhooks, indent=2))
    if form is Form.STRING:
        note("Note: proxies on the way write paths to their logs. Prefer --as object.")
    for warning in warnings_about(base):
        note(f"Note: {warning}")


def _stored_tools(settings: Settings, agent_id: str | None) -> Sequence[Mapping[str, Json]]:
    """Return the functions of the application that started last, where its log is at hand."""
    if (
        is_file(settings.database_url)
        and not Path(make_url(settings.database_url).database or "").is_file()
    ):
        return ()
    try:
        with open_log(settings) as database, database.reader.connect() as connection:
            return stored_tools(connection, agent_id=agent_id)
    except (StorageError, typer.Exit):
        note("Note: the call log cannot be read: name the application, to have its functions too.")
        return ()


def reconcile(
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin with the calls of this date or time, in UTC without a zone; by default "
            "where the last reconciliation ended."
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
    begin = read_time(since)
    settings = Settings.load()
    api = MillisApi.of(settings)
    with open_log(settings) as database:
        result = _reconcile(database, api, settings, begin, is_trial=dry_run, at_once=at_once)
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
    try:
        with progress(None) as show_done:

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
    except KeyboardInterrupt:
        fail(f"Stopped. {result} Run the command again to continue.", status=INTERRUPTED)
