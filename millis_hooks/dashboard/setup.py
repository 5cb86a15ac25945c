"""The page on which an agent is connected: what to paste, whether it works, and what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import ClassVar, TypeAlias

from pydantic import JsonValue

from ..agent_config import Form, agent_config
from ..call_log.arrivals import Arrival, FoundHandler, found_handlers, newest
from ..call_log.rejections import RejectionCount, count_rejections
from ..finding import Finding
from ..masking import MASK
from ..settings import Hook, Settings
from ..webhooks import secret_for, secret_header, webhook_url
from .pages import Asked
from .parameters import Parameter
from .public_address import PublicAddress, public_address
from .trials import Trial, Trials, read_trial

#: Stands for a secret until its mask does: masks are no text for a path.
_UNSHOWN = "millis-hooks-secret-not-shown"
_HOOKS: Mapping[Hook, tuple[str, str]] = {
    "prefetch": ("Prefetch data webhook", "GET"),
    "end_of_call": ("End-of-call webhook", "POST"),
}
_REASONS_SHOWN = 6


#: Looks the service over, as far as that is cheap.
Examine: TypeAlias = Callable[[], Iterable[Finding]]


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
    findings: tuple[Finding, ...]
    notes: tuple[Finding, ...]
    checks: int
    trial: Trial | None
    live_count: int


class Setup:
    """Builds the page from the settings of the service."""

    QUERY: ClassVar[Sequence[Parameter]] = (
        Parameter("url", "The public address, instead of the one in the settings."),
        Parameter("agent", "The agent whose own secrets are configured."),
    )

    def __init__(self, settings: Settings, trials: Trials, examine: Examine = tuple) -> None:
        """Ask `examine` what is wrong, at most once in half a minute."""
        self.settings = settings
        self.trials = trials
        self._examine = _Remembered(examine)

    def show(self, asked: Asked, *, reveals: bool = False) -> SetupView:
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

    def agent(self, asked: Asked) -> str | None:
        """Return the agent whose secrets are shown: one is needed where all belong to agents."""
        agents = sorted(self.settings.agent_secrets)
        if asked.query.get("agent") in agents:
            return asked.query["agent"]
        is_needed = any(secret_for(self.settings, hook) is None for hook in _HOOKS)
        return agents[0] if agents and is_needed else None

    def params(self, asked: Asked) -> dict[str, str]:
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
        self._last: tuple[datetime, tuple[Finding, ...]] | None = None

    def __call__(self, now: datetime) -> tuple[Finding, ...]:
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


def _received(asked: Asked) -> Received:
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
