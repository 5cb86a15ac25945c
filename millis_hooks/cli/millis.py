"""`config`: the part of an agent's configuration that makes Millis send its webhooks here.

`reconcile`: ends that never arrived, from Millis' call logs into the call log.
"""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer

from ..call_log.database import Database
from ..call_log.redaction import redaction_of
from ..call_log.upkeep.removal import writing_by
from ..exceptions import ConfigError
from ..millis_api.client import MillisApi
from ..millis_api.reconcile import SETTLES_IN, Reconciled, Reconciliation
from ..server.app_loader import load_target
from ..settings import Settings
from ..webhooks import service_url
from ..webhooks.agent_config import agent_config, warnings_about
from .common import is_served, open_log
from .options import read_time
from .terminal import INTERRUPTED, fail, note, progress


class Form(StrEnum):
    """How Millis takes a webhook."""

    OBJECT = "object"
    STRING = "string"


def config(
    target: Annotated[
        str | None,
        typer.Argument(help="app.py or module:attribute, where settings are given in code."),
    ] = None,
    *,
    url: Annotated[str, typer.Option(help="The public address: https://hooks.example.com")],
    form: Annotated[
        Form,
        typer.Option("--as", help="object: address and headers; string: the secret in the path."),
    ] = Form.OBJECT,
    agent_id: Annotated[
        str | None, typer.Option(help="Use the secret of this agent, if it has its own.")
    ] = None,
) -> None:
    """Print the agent configuration that makes Millis send its webhooks here, as JSON."""
    settings, mounted_at = _settings(target)
    settings.require_closed()
    base = service_url(settings, url) + mounted_at
    if form is Form.STRING and not settings.secret_in_path:
        raise ConfigError(
            "A webhook that is only an address carries its secret in the path, which is switched "
            "off. Switch it on for the service:\n  export MILLIS_HOOKS_SECRET_IN_PATH=1"
        )
    webhooks = agent_config(settings, base, form=form.value, agent_id=agent_id)
    typer.echo(json.dumps(webhooks, indent=2))
    _warn(base, form)


def _settings(target: str | None) -> tuple[Settings, str]:
    """Return the settings, and the path that the application is mounted at."""
    if target is None:
        return Settings.load(), ""
    found = load_target(target)
    if found.hooks is None:
        raise ConfigError(f"{target} has no MillisHooks to take the settings from.")
    return found.hooks.settings, found.mounted_at


def _warn(url: str, form: Form) -> None:
    if form is Form.STRING:
        note("Note: paths end up in the logs of every proxy on the way. Prefer --as object.")
    for warning in warnings_about(url):
        note(f"Note: {warning}")


_SERVED = "The service calls the handlers for them within seconds."
_NOT_SERVED = "The service calls the handlers for them when it starts."


def reconcile(
    since: Annotated[
        str | None,
        typer.Option(
            help="Begin with the calls of this date or time, UTC unless it says; by default where "
            "the last look ended."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what is lacking.")] = False,
    at_once: Annotated[
        bool,
        typer.Option(
            "--at-once",
            help="Do not give webhooks 5 minutes to arrive by themselves: for rehearsals.",
        ),
    ] = False,
) -> None:
    """Fetch from Millis' call logs the ends that never arrived, and have them handled.

    Needs MILLIS_HOOKS_API_KEY; the service then does the same by itself, every few minutes. Calls
    whose end is in the log stay as they are, so it may be cut short and begun again.
    """
    begin = read_time(since)
    settings = Settings.load()
    api = MillisApi.of(settings)
    with open_log(settings) as database:
        found = _look(database, api, begin, settings, is_trial=dry_run, at_once=at_once)
        typer.echo(("Nothing was stored. " if dry_run else "") + str(found))
        if found.filled and not dry_run:
            note(_SERVED if is_served(database) else _NOT_SERVED)


def _look(
    database: Database,
    api: MillisApi,
    since: datetime | None,
    settings: Settings,
    *,
    is_trial: bool,
    at_once: bool,
) -> Reconciled:
    so_far = Reconciled()
    try:
        with progress(None) as tell_done:

            def tell(now_known: Reconciled) -> None:
                nonlocal so_far
                so_far = now_known
                tell_done(now_known.listed + now_known.unknown)

            reconciliation = Reconciliation(
                api,
                database.reader,
                writing_by(database.writer),
                now=lambda: datetime.now(UTC),
                redact=redaction_of(settings),
                is_trial=is_trial,
                settles_in=timedelta() if at_once else SETTLES_IN,
                tell=tell,
            )
            return asyncio.run(reconciliation.look(since or reconciliation.since()))
    except KeyboardInterrupt:
        fail(f"Stopped. {so_far} Begin again to go on.", status=INTERRUPTED)
