"""The page on which an agent is connected: what to paste, whether it works, and what is wrong.

Which address Millis is to call: the one that was typed in, else that of the settings, else the
one the browser has used.

The forms of the setup page: have the secrets shown, have a test sent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from ..call_log.queries.requests import Arrival, FoundHandler, found_handlers, newest
from ..call_log.rejections import RejectionCount, count_rejections
from ..checks import CheckResult
from ..environment.addresses import is_link_local, is_loopback, web_address
from ..masking.secret_patterns import MASK
from ..operators import Action, Operator
from ..settings import Hook, Settings
from ..webhooks import secret_for, secret_header, webhook_url
from ..webhooks.agent_config import Form, agent_config, warnings_about
from .connection_test import Trial, Trials, read_trial
from .pages import PageRequest, Pages, link

_MAX_CHARS = 500
#: Where the browser does not say how it reached us.
_EXAMPLE = "https://hooks.example.com"


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """The address and what to know about it.

    `is_ours` says that nobody could have put it into a link: it is not what was typed in, or the
    same as would have been without. `refused` is what was typed in and is no address.
    """

    url: str
    origin: Literal["typed", "settings", "browser"]
    is_ours: bool
    refused: str | None
    warning: str | None
    tunnel: str | None

    @property
    def host(self) -> str:
        """The host and, where it is not the usual one, the port."""
        return urlsplit(self.url).netloc


def public_address(settings: Settings, asked: PageRequest) -> PublicAddress:
    """Choose the address that the page is about."""
    typed = asked.query.get("url", "").strip().rstrip("/")
    configured = (settings.public_url or "").rstrip("/")
    own = asked.address if _is_usable(asked.address) else _EXAMPLE
    known = configured or own
    is_typed = bool(typed) and _is_usable(typed) and typed != known
    url = typed if is_typed else known
    return PublicAddress(
        url=url,
        origin="typed" if is_typed else "settings" if configured else "browser",
        is_ours=url in (configured, own),
        refused=typed[:_MAX_CHARS] if typed and not _is_usable(typed) else None,
        warning=next(warnings_about(url), None),
        tunnel=_tunnel(url, own),
    )


def _is_usable(url: str) -> bool:
    """Whether it can be the beginning of a webhook's address."""
    try:
        return not is_link_local(urlsplit(web_address(url)).hostname or "")
    except ValueError:
        return False


def _tunnel(url: str, own: str) -> str | None:
    """Return a command that makes this service reachable, if it is not."""
    if not is_loopback(urlsplit(url).hostname):
        return None
    port = urlsplit(own).port
    return f"cloudflared tunnel --url http://localhost{f':{port}' if port else ''}"


#: Stands for a secret until its mask does: masks are no text for a path.
_UNSHOWN = "millis-hooks-secret-not-shown"
_HOOKS: Mapping[Hook, tuple[str, str]] = {
    "prefetch": ("Prefetch data webhook", "GET"),
    "end_of_call": ("End-of-call webhook", "POST"),
}
_REASONS_SHOWN = 6


#: Looks the service over, as far as that is cheap.
Examine: TypeAlias = Callable[[], Iterable[CheckResult]]


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address to paste."""

    hook: str
    label: str
    method: str
    url: str


@dataclass(frozen=True, slots=True)
class Header:
    """A header to paste; its value is masked unless an operator had it shown."""

    label: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Received:
    """What has come in: the newest of each webhook from Millis, and of those this page sent.

    `refused_count` is of all that were ever refused, `refused` has the last few reasons.
    """

    prefetch: Arrival | None
    end_of_call: Arrival | None
    tried_prefetch: Arrival | None
    tried_end_of_call: Arrival | None
    refused: tuple[RejectionCount, ...]
    refused_count: int

    @property
    def is_connected(self) -> bool:
        """Whether Millis has called both webhooks."""
        return self.prefetch is not None and self.end_of_call is not None


@dataclass(frozen=True, slots=True)
class SetupView:
    """What the page shows. `params` are what its forms keep of its address."""

    address: PublicAddress
    params: Mapping[str, str]
    agents: tuple[str, ...]
    agent_id: str | None
    webhooks: tuple[Webhook, ...]
    headers: tuple[Header, ...]
    config: Mapping[str, JsonValue]
    path_config: Mapping[str, JsonValue] | None
    is_open: bool
    is_revealed: bool
    received: Received
    handlers: tuple[FoundHandler, ...]
    findings: tuple[CheckResult, ...]
    notes: tuple[CheckResult, ...]
    checks: int
    trial: Trial | None
    live_count: int


class Setup:
    """Builds the page from the settings of the service."""

    def __init__(self, settings: Settings, trials: Trials, examine: Examine = tuple) -> None:
        """Ask `examine` what is wrong, at most once in half a minute."""
        self.settings = settings
        self.trials = trials
        self._examine = _Remembered(examine)

    def show(self, asked: PageRequest, *, reveals: bool = False) -> SetupView:
        """Build the page; secrets are masked unless it `reveals` them."""
        settings = self.settings
        address = public_address(settings, asked)
        agents = tuple(sorted(settings.agent_secrets))
        agent_id = self.agent(asked)
        config = partial(_config, settings, address.url, agent_id, reveals=reveals)
        found = self._examine(asked.now)
        return SetupView(
            address=address,
            params=self.params(asked),
            agents=agents,
            agent_id=agent_id,
            webhooks=tuple(_webhooks(settings, address.url)),
            headers=tuple(_headers(settings, agent_id, reveals=reveals)),
            config=config(form="object"),
            path_config=config(form="string") if settings.secret_in_path else None,
            is_open=settings.insecure,
            is_revealed=reveals,
            received=_received(asked),
            handlers=asked.log.ask(found_handlers),
            findings=tuple(finding for finding in found if finding.state != "ok"),
            notes=tuple(finding for finding in found if finding.state == "ok" and finding.link),
            checks=len(found),
            trial=read_trial(asked.query, settings, address.host),
            live_count=asked.log.live_count(now=asked.now),
        )

    def agent(self, asked: PageRequest) -> str | None:
        """Return the agent whose secrets are shown: one is needed where all belong to agents."""
        agents = sorted(self.settings.agent_secrets)
        if asked.query.get("agent") in agents:
            return asked.query["agent"]
        is_needed = any(secret_for(self.settings, hook) is None for hook in _HOOKS)
        return agents[0] if agents and is_needed else None

    def params(self, asked: PageRequest) -> dict[str, str]:
        """Return what links and forms of the page keep of its address."""
        address = public_address(self.settings, asked)
        params = {"url": address.url} if address.origin == "typed" else {}
        agent_id = asked.query.get("agent")
        if agent_id is not None and agent_id in self.settings.agent_secrets:
            params["agent"] = agent_id
        return params


class _Remembered:
    """An examination that is not repeated for every look at the page."""

    _LASTS_S = 30.0

    def __init__(self, examine: Examine) -> None:
        self._examine = examine
        self._last: tuple[datetime, tuple[CheckResult, ...]] | None = None

    def __call__(self, now: datetime) -> tuple[CheckResult, ...]:
        last = self._last
        if last is None or not 0 <= (now - last[0]).total_seconds() < self._LASTS_S:
            last = self._last = (now, tuple(self._examine()))
        return last[1]


def _webhooks(settings: Settings, base: str) -> Iterator[Webhook]:
    for hook, (label, method) in _HOOKS.items():
        yield Webhook(hook, label, method, webhook_url(settings, hook, base))


def _headers(settings: Settings, agent_id: str | None, *, reveals: bool) -> Iterator[Header]:
    """Yield one header if both webhooks take the same, else one each."""
    secrets = {hook: secret_for(settings, hook, agent_id) for hook in _HOOKS}
    labels = {hook: f"Header for the {label.lower()}" for hook, (label, _) in _HOOKS.items()}
    if len(set(secrets.values())) == 1:
        labels = {"prefetch": "Header for both"}
    for hook, label in labels.items():
        secret = secrets[hook]
        shown = secret if secret is None or reveals else MASK
        for name, value in secret_header(settings, shown).items():
            yield Header(label, name, value)


def _config(
    settings: Settings, base: str, agent_id: str | None, *, form: Form, reveals: bool
) -> dict[str, JsonValue]:
    """Return the configuration as `millis-hooks config` prints it."""
    if reveals:
        return agent_config(settings, base, form=form, agent_id=agent_id)
    config = agent_config(settings, base, form=form, agent_id=agent_id, choose=_unshown)
    masked: dict[str, JsonValue] = json.loads(json.dumps(config).replace(_UNSHOWN, MASK))
    return masked


def _unshown(settings: Settings, hook: Hook, agent_id: str | None) -> str | None:
    return None if secret_for(settings, hook, agent_id) is None else _UNSHOWN


def _received(asked: PageRequest) -> Received:
    def arrival(kind: Hook, *, of_millis: bool) -> Arrival | None:
        return asked.log.ask(partial(newest, kind=kind, of_millis=of_millis))

    refused = asked.log.ask(count_rejections)
    return Received(
        prefetch=arrival("prefetch", of_millis=True),
        end_of_call=arrival("end_of_call", of_millis=True),
        tried_prefetch=arrival("prefetch", of_millis=False),
        tried_end_of_call=arrival("end_of_call", of_millis=False),
        refused=refused[:_REASONS_SHOWN],
        refused_count=sum(count.times for count in refused),
    )


_HOOK_NAMES: Mapping[str, Hook] = {"prefetch": "prefetch", "end_of_call": "end_of_call"}

#: Writes down what an operator does with a request, and to what.
Record: TypeAlias = Callable[[Request, Operator, Action, str | None], None]


class SetupForms:
    """Takes the forms. Which address and which agent they are about, their fields say."""

    def __init__(self, setup: Setup, pages: Pages, record: Record) -> None:
        self._setup = setup
        self._pages = pages
        self._record = record

    def leads_elsewhere(self, fields: Mapping[str, str]) -> bool:
        """Tell whether a test would take a secret to another address than that of the settings.

        Which host a request names does not make it ours.
        """
        typed, configured = (
            (url or "").strip().rstrip("/")
            for url in (fields.get("url"), self._setup.settings.public_url)
        )
        return not configured or typed not in ("", configured)

    def reveal(self, request: Request, operator: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /setup/reveal` with the page, secrets and all."""
        view = self._ask(request, fields, lambda asked: self._setup.show(asked, reveals=True))
        return self._pages.render(
            request, "setup.html", view=view, operator=operator, live_count=view.live_count
        )

    def send(self, request: Request, operator: Operator, fields: Mapping[str, str]) -> Response:
        """Answer `POST /setup/test`: send a test, and show the page with what became of it.

        It is recorded first: the secret goes nowhere where that cannot be written.
        Raises HTTPException for what is no test, and for an address that somebody may have put
        into a link: it gets the secret only if the operator vouches for it.
        """
        hook = _HOOK_NAMES.get(fields.get("hook", ""))
        if hook is None:
            raise HTTPException(400)
        address = self._ask(request, fields, self._address)
        self._record(request, operator, "send_test", address.url)
        told = self._ask(request, fields, lambda asked: self._send(asked, hook, address.url))
        return RedirectResponse(link(request, "setup", told) + "#test", 303)

    def _address(self, asked: PageRequest) -> PublicAddress:
        address = public_address(self._setup.settings, asked)
        if address.refused is not None or not (address.is_ours or asked.query.get("vouched")):
            raise HTTPException(400)
        return address

    def _send(self, asked: PageRequest, hook: Hook, url: str) -> dict[str, object]:
        agent_id = self._setup.agent(asked)
        became = self._setup.trials.send(asked.log, hook, url, agent_id, asked.now)
        return {**self._setup.params(asked), **became}

    def _ask(
        self, request: Request, fields: Mapping[str, str], view: Callable[[PageRequest], Any]
    ) -> Any:
        return self._pages.ask(lambda asked: view(replace(asked, query=fields)), request)


def revealed(_: Request, fields: Mapping[str, str]) -> str:
    """Name what was shown, for the record."""
    agent_id = fields.get("agent")
    return f"webhook secrets of agent {agent_id[:100]}" if agent_id else "webhook secrets"
