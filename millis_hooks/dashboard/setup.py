"""The setup page: what to paste into Millis, a test of both webhooks, and what is wrong.

Millis is to call the address that was typed in, else that of the settings, else the one that the
browser has used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import JsonValue
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from ..call_log.queries.requests import Arrival, FoundHandler, found_handlers, newest, stored_tools
from ..call_log.rejections import RejectionCount, count_rejections
from ..checks import CheckResult
from ..environment.addresses import is_link_local, is_loopback, web_address
from ..masking.secret_patterns import MASK
from ..settings import Hook, Settings
from ..version import __version__
from ..webhooks import secret_for, secret_header, webhook_url
from ..webhooks.agent_config import Form, agent_config, warnings_about
from .connection_test import ConnectionTest, WebhookTest, read_test
from .endpoints import Endpoints, OperatorRequest, only
from .pages import PageRequest, link

_MOST_ADDRESS_CHARS = 500
#: If the browser's address cannot be used.
_EXAMPLE = "https://hooks.example.com"


@dataclass(frozen=True, slots=True)
class PublicAddress:
    """The address of the service and what to know about it.

    `is_ours` if no link can have put it into the page: it was not typed in, or is the same as
    without. `refused` is typed text that is not an address.
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


def public_address(settings: Settings, request: PageRequest) -> PublicAddress:
    """Return the address that the page is about."""
    typed = request.query.get("url", "").strip().rstrip("/")
    configured = (settings.public_url or "").rstrip("/")
    browsers = request.address if _is_usable(request.address) else _EXAMPLE
    default = configured or browsers
    is_typed = bool(typed) and _is_usable(typed) and typed != default
    url = typed if is_typed else default
    return PublicAddress(
        url=url,
        origin="typed" if is_typed else "settings" if configured else "browser",
        is_ours=url in (configured, browsers),
        refused=typed[:_MOST_ADDRESS_CHARS] if typed and not _is_usable(typed) else None,
        warning=next(warnings_about(url), None),
        tunnel=_tunnel(url, browsers),
    )


def _is_usable(url: str) -> bool:
    """Tell whether the address of a webhook can begin with this URL."""
    try:
        return not is_link_local(urlsplit(web_address(url)).hostname or "")
    except ValueError:
        return False


def _tunnel(url: str, browsers: str) -> str | None:
    """Return a command that makes a service on loopback reachable from outside."""
    if not is_loopback(urlsplit(url).hostname):
        return None
    port = urlsplit(browsers).port
    return f"cloudflared tunnel --url http://localhost{f':{port}' if port else ''}"


#: Replaced by the mask once it is in the configuration: a path may not contain the mask.
_PLACEHOLDER = "millis-hooks-secret-not-shown"
_HOOKS: Mapping[Hook, tuple[str, str]] = {
    "prefetch": ("Prefetch data webhook", "GET"),
    "end_of_call": ("End-of-call webhook", "POST"),
}
_MOST_REASONS = 6
#: Check results are this old at most.
_CHECKED_FOR_S = 30.0

#: Runs the checks that are cheap.
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
    """A header to paste; its value is masked unless an operator reveals it."""

    label: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Received:
    """The newest deliveries of each webhook, from Millis and from the tests of this page.

    `rejected_count` counts the rejected requests that are kept, `rejected` has the last reasons.
    """

    prefetch: Arrival | None
    end_of_call: Arrival | None
    tested_prefetch: Arrival | None
    tested_end_of_call: Arrival | None
    rejected: tuple[RejectionCount, ...]
    rejected_count: int

    @property
    def is_connected(self) -> bool:
        """Tell whether Millis has called both webhooks."""
        return self.prefetch is not None and self.end_of_call is not None

    @property
    def is_tested(self) -> bool:
        """Tell whether both webhooks were called, by Millis or by a test."""
        prefetch = self.prefetch or self.tested_prefetch
        return prefetch is not None and (self.end_of_call or self.tested_end_of_call) is not None


@dataclass(frozen=True, slots=True)
class SetupView:
    """What the page shows. `params` are the parameters that its links and forms keep."""

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
    problems: tuple[CheckResult, ...]
    notes: tuple[CheckResult, ...]
    checks: int
    test: WebhookTest | None
    assistant: str


class Setup:
    """Builds the page from the settings of the service, and takes its forms."""

    def __init__(self, settings: Settings, test: ConnectionTest, examine: Examine = tuple) -> None:
        self._settings = settings
        self._test = test
        self._examine = examine
        self._checked: tuple[datetime, tuple[CheckResult, ...]] | None = None

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes of the page, its fragment and its forms."""
        yield endpoints.fragment("/setup/received", "setup_received", self.show)
        yield from endpoints.page("/setup", "setup", self.show)
        kept = partial(only, names=("url", "agent"))
        yield endpoints.form(
            "/setup/reveal",
            "setup_reveal",
            self._reveal,
            page="setup",
            needs_password=lambda fields: True,
            undone="revealed",
            draft=kept,
        )
        yield endpoints.form(
            "/setup/test",
            "setup_test",
            self._send,
            page="setup",
            needs_password=self._leads_elsewhere,
            undone="sent",
            draft=kept,
        )

    def show(self, request: PageRequest, *, reveals: bool = False) -> SetupView:
        """Build the page; secrets are masked unless it `reveals` them."""
        settings = self._settings
        address = public_address(settings, request)
        agent_id = self._agent(request)
        tools = request.log.ask(stored_tools, agent_id=agent_id)
        config = partial(_config, settings, address.url, agent_id, reveals=reveals, tools=tools)
        results = self._check_results(request.now)
        webhooks = tuple(_webhooks(settings, address.url))
        handlers = request.log.ask(found_handlers)
        return SetupView(
            address=address,
            params=self._params(request),
            agents=tuple(sorted(settings.agent_secrets)),
            agent_id=agent_id,
            webhooks=webhooks,
            headers=tuple(_headers(settings, agent_id, reveals=reveals)),
            config=config(form="object"),
            path_config=config(form="string") if settings.secret_in_path else None,
            is_open=settings.insecure,
            is_revealed=reveals,
            received=_received(request),
            handlers=handlers,
            problems=tuple(result for result in results if result.state != "ok"),
            notes=tuple(result for result in results if result.state == "ok" and result.link),
            checks=len(results),
            test=read_test(request.query, settings, address.host),
            assistant=_for_an_assistant(settings, address.url, webhooks, handlers),
        )

    def _agent(self, request: PageRequest) -> str | None:
        """Return the agent whose secrets are shown; one is needed if every secret is an agent's."""
        agents = sorted(self._settings.agent_secrets)
        if request.query.get("agent") in agents:
            return request.query["agent"]
        is_needed = any(secret_for(self._settings, hook) is None for hook in _HOOKS)
        return agents[0] if agents and is_needed else None

    def _params(self, request: PageRequest) -> dict[str, str]:
        """Return the parameters that links and forms of the page keep."""
        address = public_address(self._settings, request)
        params = {"url": address.url} if address.origin == "typed" else {}
        agent_id = request.query.get("agent")
        if agent_id is not None and agent_id in self._settings.agent_secrets:
            params["agent"] = agent_id
        return params

    def _check_results(self, now: datetime) -> tuple[CheckResult, ...]:
        checked = self._checked
        if checked is None or not 0 <= (now - checked[0]).total_seconds() < _CHECKED_FOR_S:
            checked = self._checked = (now, tuple(self._examine()))
        return checked[1]

    def _leads_elsewhere(self, fields: Mapping[str, str]) -> bool:
        """Tell whether a test would send a secret to another address than that of the settings.

        The Host of a request is not a proof of an address.
        """
        typed, configured = (
            (url or "").strip().rstrip("/")
            for url in (fields.get("url"), self._settings.public_url)
        )
        return not configured or typed not in ("", configured)

    def _reveal(self, request: OperatorRequest) -> Response:
        """Answer with the page, secrets and all."""
        view = self.show(request.page_request(request.fields), reveals=True)
        response = request.pages.show(request.http, "setup.html", view)
        agent_id = request.fields.get("agent")
        of_agent = f" of agent {agent_id[:100]}" if agent_id else ""
        request.record("reveal", f"webhook secrets{of_agent}")
        return response

    def _send(self, request: OperatorRequest) -> Response:
        """Send a test, and show the page with its result.

        It is recorded first: if that fails, no secret is sent. Raises HTTPException for an unknown
        webhook, and for an address that a link may have put into the page, unless the operator
        vouches for it.
        """
        page_request = request.page_request(request.fields)
        hook = next((each for each in _HOOKS if each == request.fields.get("hook")), None)
        address = public_address(self._settings, page_request)
        is_trusted = address.is_ours or page_request.query.get("vouched")
        if hook is None or address.refused is not None or not is_trusted:
            raise HTTPException(400)
        request.record("send_test", address.url)
        agent_id, now = self._agent(page_request), page_request.now
        result = self._test.send(page_request.log, hook, address.url, agent_id, now)
        query = {**self._params(page_request), **result}
        return RedirectResponse(link(request.http, "setup", query) + "#test", 303)


_ASSISTANT = """\
This project receives the webhooks of Millis AI voice agents with millis_hooks {version}, a Python
framework. Its AGENTS.md has the rules for code that uses it, llms.txt its pages.

Addresses (the header {header} carries a secret, which is in the environment or .env):
{addresses}

Handlers that are registered now:
{handlers}

Own phone numbers are {own_numbers}. Try changes with `millis-hooks dev`,
`millis-hooks simulate inbound` and `pytest` (fixtures hooks_client and simulate_call). Do not write
routes, storage or retries."""
_REGISTERED_BY: Mapping[str, str] = {"failed": "on_failed", "function": "function"}


def _for_an_assistant(
    settings: Settings, base: str, webhooks: Sequence[Webhook], handlers: Sequence[FoundHandler]
) -> str:
    """Return what a coding assistant has to know of this installation, without secrets."""
    addresses = [f"- {webhook.method} {webhook.url}" for webhook in webhooks]
    named = []
    for handler in handlers:
        decorator = _REGISTERED_BY.get(handler.hook, f"on_{handler.hook}")
        named.append(f"- {handler.name} (@hooks.{decorator})")
        if handler.hook == "function":
            url = f"{base}{settings.prefix}/functions/{handler.name}"
            addresses.append(f"- GET or POST {url}")
    return _ASSISTANT.format(
        version=__version__,
        header=settings.secret_header,
        addresses="\n".join(addresses),
        handlers="\n".join(named) or "- none",
        own_numbers="set" if settings.own_numbers else "not set (MILLIS_HOOKS_OWN_NUMBERS)",
    )


def _webhooks(settings: Settings, base: str) -> Iterator[Webhook]:
    for hook, (label, method) in _HOOKS.items():
        yield Webhook(hook, label, method, webhook_url(settings, hook, base))


def _headers(settings: Settings, agent_id: str | None, *, reveals: bool) -> Iterator[Header]:
    """Yield one header if both webhooks take the same, else one for each."""
    secrets = {hook: secret_for(settings, hook, agent_id) for hook in _HOOKS}
    labels = {hook: f"Header for the {label.lower()}" for hook, (label, _) in _HOOKS.items()}
    if len(set(secrets.values())) == 1:
        labels = {"prefetch": "Header for both"}
    for hook, label in labels.items():
        secret = secrets[hook]
        value_shown = secret if secret is None or reveals else MASK
        for name, value in secret_header(settings, value_shown).items():
            yield Header(label, name, value)


def _config(
    settings: Settings,
    base: str,
    agent_id: str | None,
    *,
    form: Form,
    reveals: bool,
    tools: Sequence[Mapping[str, JsonValue]],
) -> dict[str, JsonValue]:
    """Return the configuration as `millis-hooks config` prints it."""
    if reveals:
        return agent_config(settings, base, form=form, agent_id=agent_id, tools=tools)
    config = agent_config(
        settings, base, form=form, agent_id=agent_id, choose=_placeholder, tools=tools
    )
    masked: dict[str, JsonValue] = json.loads(json.dumps(config).replace(_PLACEHOLDER, MASK))
    return masked


def _placeholder(settings: Settings, hook: Hook, agent_id: str | None) -> str | None:
    return None if secret_for(settings, hook, agent_id) is None else _PLACEHOLDER


def _received(request: PageRequest) -> Received:
    def arrival(kind: Hook, *, of_millis: bool) -> Arrival | None:
        return request.log.ask(newest, kind=kind, of_millis=of_millis)

    rejected = request.log.ask(count_rejections)
    return Received(
        prefetch=arrival("prefetch", of_millis=True),
        end_of_call=arrival("end_of_call", of_millis=True),
        tested_prefetch=arrival("prefetch", of_millis=False),
        tested_end_of_call=arrival("end_of_call", of_millis=False),
        rejected=rejected[:_MOST_REASONS],
        rejected_count=sum(count.times for count in rejected),
    )
