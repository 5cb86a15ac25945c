"""`simulate`: runs scenarios against an application, or a service that runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Annotated, Any, TypeAlias
from urllib.parse import urlsplit

import typer
from anyio.from_thread import start_blocking_portal

from ..call_log.queries import Queries
from ..call_log.queries.records import Run
from ..call_log.queries.requests import stored_tools
from ..environment.addresses import is_loopback
from ..exceptions import ConfigError, SandboxOffError
from ..handlers.made_up_calls import MillisRequest
from ..masking.error_report import printable, start_error
from ..masking.policy import MaskPolicy
from ..sandbox.scenario import SHIPPED, Scenario, load_scenario
from ..sandbox.simulator import Latencies, Load, Simulation, Simulator
from ..sandbox.steps import EndDelivered, Prefetched, Step, masked_step
from ..sandbox.transport import over_http
from ..server.app_loader import load_target
from ..settings import Hook, Settings
from ..testing.client import HooksClient
from ..webhooks import Marker, secret_for, service_url
from ..webhooks.agent_config import agent_config
from . import options
from .common import has_log, open_log
from .options import read_secret
from .runs import error_label
from .terminal import note, print_table, progress

_SHOWN_CHARS = 600
_OFF = SandboxOffError.status_code
#: How long handlers may take, in seconds: as long as a run by default.
_WAIT_S = 60.0
#: What names an application rather than a scenario.
_APPLICATION = re.compile(r".+\.py|.+:[A-Za-z_][\w.]*|[^\W\d]\w*(\.[^\W\d]\w*)+(?<!\.toml)")
_NO_LOG = "The service's call log is not at hand, so its handlers are not checked."
_SANDBOX_OFF = (
    "The service has no sandbox. Start it with `dev`, or with MILLIS_HOOKS_SANDBOX=1; or give an "
    "application: millis-hooks simulate app.py SCENARIO"
)


Scenarios: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TARGET] SCENARIO",
        help="Your application (app.py or module:name), which runs in this process with an "
        "empty call log; without it, the service at --url is called. Then TOML files, or names "
        "of included scenarios.",
    ),
]
SameTarget: TypeAlias = Annotated[
    str | None,
    typer.Option(hidden=True, help="The same as the argument; it may be package.module, too."),
]


def simulate(
    scenarios: Scenarios = None,
    target: SameTarget = None,
    url: Annotated[
        str, typer.Option(help="A running service, if no application is named.")
    ] = "http://127.0.0.1:8000",
    secret: options.Secret = None,
    keep: Annotated[
        bool, typer.Option(help="With TARGET: store the calls in the application's call log.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option(help="Set call.dry_run, so that handlers can skip side effects.")
    ] = False,
    anywhere: Annotated[
        bool, typer.Option(help="Also reach services, webhooks and functions on other machines.")
    ] = False,
    count: Annotated[int, typer.Option(min=1, help="Number of times to run each scenario.")] = 1,
    concurrency: Annotated[
        int, typer.Option(min=1, help="Number of calls to run at the same time.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    list_them: Annotated[bool, typer.Option("--list", help="List the included scenarios.")] = False,
) -> None:
    """Simulate whole calls: prefetch, conversation, functions, end-of-call.

    The exit code is 1 if an expectation of a scenario is not met.
    """
    if list_them:
        _list()
        return
    if scenarios and target is None and _APPLICATION.fullmatch(scenarios[0]):
        target, *scenarios = scenarios
    if not scenarios:
        raise ConfigError("Name a scenario: a file, or one of `millis-hooks simulate --list`.")
    chosen = [load_scenario(name) for name in scenarios]
    if dry_run:
        chosen = [replace(one, spec=replace(one.spec, dry_run=True)) for one in chosen]
    receiver_context = (
        _in_process(target, keep=keep, anywhere=anywhere)
        if target
        else _running(url, read_secret("--secret", secret), anywhere=anywhere)
    )
    with receiver_context as receiver:
        show = partial(_load, count=count, concurrency=concurrency) if count > 1 else _call
        results = [show(receiver, scenario, as_json=as_json) for scenario in chosen]
    if not all(results):
        raise typer.Exit(1)


@dataclass(frozen=True, slots=True)
class _Receiver:
    """The application or service that scenarios run against, and what is masked of the calls."""

    simulate: Callable[..., Simulation]
    simulate_many: Callable[..., Load]
    mask: MaskPolicy
    #: What handlers in this process would have asked of Millis.
    millis_requests: list[MillisRequest] = field(default_factory=list)


def _list() -> None:
    scenarios = map(load_scenario, SHIPPED)
    print_table(("Scenario", "What happens"), ((each.name, each.title) for each in scenarios))


@contextmanager
def _in_process(target: str, *, keep: bool, anywhere: bool) -> Iterator[_Receiver]:
    """Start the application in this process; its call log is temporary, unless kept."""
    hooks = load_target(target).require_hooks()
    kept = {"database_url": hooks.settings.database_url} if keep else {}
    with ExitStack() as stack:
        client = HooksClient(hooks, wait_s=_WAIT_S, anywhere=anywhere, **kept)
        try:
            stack.enter_context(client)
        except Exception as error:
            raise start_error(error) from error
        yield _Receiver(
            partial(client.simulate, sandbox=True),
            partial(client.simulate_many, sandbox=True),
            MaskPolicy.of(hooks.settings),
            client.millis_requests,
        )


@contextmanager
def _running(url: str, secret: str | None, *, anywhere: bool) -> Iterator[_Receiver]:
    """Reach a service that runs. With its call log, what its handlers did is reported, too."""
    settings = Settings.load()
    url = service_url(settings, url)
    if not anywhere and not is_loopback(urlsplit(url).hostname):
        raise ConfigError(f"{url} is not on this machine. With --anywhere it is reached, too.")
    with _call_log(settings, url) as log, start_blocking_portal() as portal:
        opened = portal.wrap_async_context_manager(over_http(anywhere=anywhere))
        with opened as transport:
            simulator = Simulator(
                transport=transport,
                webhooks=lambda agent_id: _webhooks(settings, url, secret, agent_id, log),
                mark=Marker(settings, "sandbox"),
                log=log,
                wait_s=_WAIT_S,
            )
            yield _Receiver(
                lambda scenario, tell: portal.call(partial(simulator.run, scenario, tell=tell)),
                lambda *args, **limits: portal.call(partial(simulator.run_many, *args, **limits)),
                MaskPolicy.of(settings),
            )


def _webhooks(
    settings: Settings, url: str, secret: str | None, agent_id: str | None, log: Queries | None
) -> dict[str, Any]:
    def choose(settings: Settings, hook: Hook, agent_id: str | None) -> str | None:
        return secret or secret_for(settings, hook, agent_id)

    # Without any, the service itself says that it wants one.
    open_settings = settings.model_copy(update={"insecure": True})
    tools = log.ask(stored_tools, agent_id=agent_id) if log is not None else ()
    return agent_config(open_settings, url, agent_id=agent_id, choose=choose, tools=tools)


@contextmanager
def _call_log(settings: Settings, url: str) -> Iterator[Queries | None]:
    """Open the service's call log if it is at hand."""
    if not is_loopback(urlsplit(url).hostname) or not has_log(settings):
        note(_NO_LOG)
        yield None
        return
    with open_log(settings) as database:
        yield Queries(database.reader)


def _call(receiver: _Receiver, scenario: Scenario, *, as_json: bool) -> bool:
    """Run a scenario once and print it; return whether every expectation was met."""
    if not as_json:
        typer.echo(printable(f"{scenario.name}: {scenario.title}"))
    tell = None if as_json else partial(_print_step, receiver.mask)
    try:
        simulation = receiver.simulate(scenario, tell=tell)
    except TimeoutError as error:
        note(f"  FAIL {error}")
        return False
    if as_json:
        typer.echo(json.dumps(_as_json(receiver.mask, scenario, simulation)))
    else:
        _print_ending(receiver, scenario, simulation)
    if any(step.answered and step.answered.status_code == _OFF for step in _sent(simulation)):
        note(_SANDBOX_OFF)
    return not simulation.unmet and not _failed_handlers(scenario, simulation)


def _failed_handlers(scenario: Scenario, simulation: Simulation) -> list[str]:
    """Return the handlers that failed although the scenario does not expect it."""
    return [
        run.handler
        for run in (simulation.handled.runs if simulation.handled else ())
        if run.state in ("retrying", "failed") and run.handler not in scenario.expected.handlers
    ]


def _sent(simulation: Simulation) -> list[Prefetched | EndDelivered]:
    log = simulation.result.log
    return [*log.of(Prefetched), *log.of(EndDelivered)]


def _as_json(mask: MaskPolicy, scenario: Scenario, simulation: Simulation) -> dict[str, Any]:
    handled = simulation.handled
    runs = () if handled is None else handled.runs
    return {
        "scenario": scenario.name,
        "session_id": simulation.result.session_id,
        "ok": not simulation.unmet and not _failed_handlers(scenario, simulation),
        "expected": [asdict(each) for each in simulation.expectations],
        "steps": [masked_step(step, mask) for step in simulation.result.log],
        "outcome": handled and handled.call.outcome,
        "handlers": {run.handler: run.state for run in runs},
    }


def _print_step(mask: MaskPolicy, step: Step | None) -> None:
    if step is None:
        return
    masked = masked_step(step, mask)
    head = f"{step.at_s:7.1f} s  {step.kind.replace('_', ' '):<15}  "
    for number, line in enumerate([*_lines(masked), *masked["notes"]]):
        lead = head if number == 0 else " " * len(head)
        typer.echo(lead + _short(line))


def _lines(step: dict[str, Any]) -> Iterator[str]:
    """Yield the lines that describe a step, without its notes."""
    match step["kind"]:
        case "attached":
            numbers = [step[side] for side in ("from_phone", "to_phone") if step[side]]
            yield " ".join([step["way"], " → ".join(numbers), step["session_id"]])
            yield from _metadata(step["metadata"])
        case "merged":
            yield f"added: {_names(step['added'])}; changed: {_names(step['changed'])}"
        case "rendered":
            yield from step["prompt"].splitlines()
            for place, texts in step["messages"].items():
                yield from (f"{place}: {text}" for text in texts)
            for place, names in step["unresolved"].items():
                yield f"unknown in {place}: {_names(names)}"
        case "said":
            yield f"{step['role']}: {step['text']}"
        case "hung_up":
            error = f": {step['error_message']}" if step["error_message"] else ""
            yield f"{step['call_status']} after {step['duration_s']:.0f} s{error}"
        case "logged":
            yield f"as {step['entry'].get('call_status')}"
        case _:
            yield from _exchanged(step)


def _exchanged(step: dict[str, Any]) -> Iterator[str]:
    if step["kind"] == "function_called":
        yield f"{step['name']}({json.dumps(step['params'])})"
    sent, answered = step.get("sent"), step.get("answered")
    if sent is None:
        return
    yield f"{sent['method']} {sent['url']}"
    if sent["body"]:
        yield sent["body"]
    status = answered["status_code"] if answered else "no answer"
    yield f"{status} in {step['took_ms']:.1f} ms{_because(step['failure'])}"
    if answered and answered["body"]:
        yield answered["body"]


def _because(failure: str | None) -> str:
    return f": {failure}" if failure else ""


def _metadata(metadata: dict[str, Any]) -> Iterator[str]:
    if metadata:
        yield json.dumps(metadata)


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) or "nothing"


def _short(line: str) -> str:
    line = printable(line, one_line=True)
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}…"


def _print_ending(receiver: _Receiver, scenario: Scenario, simulation: Simulation) -> None:
    mask, failed = receiver.mask, _failed_handlers(scenario, simulation)
    if simulation.elsewhere is not None:
        text = f"  the end-of-call went to {simulation.elsewhere}: no handler here was called"
        typer.echo(_short(mask.text(text)))
    for request in receiver.millis_requests:
        typer.echo(_short(f"  not sent to Millis: {request.method} {request.path}"))
    receiver.millis_requests.clear()
    for run in simulation.handled.runs if simulation.handled else ():
        if run.handler not in scenario.expected.handlers:  # else it is among the expectations
            mark = "FAIL" if run.handler in failed else "ok  "
            typer.echo(_short(f"  {mark} handler {run.handler}: {run.state}{_reason(run, mask)}"))
    for each in simulation.expectations:
        typer.echo(_short(f"  {'ok  ' if each.is_met else 'FAIL'} {mask.text(str(each))}"))


def _reason(run: Run, mask: MaskPolicy) -> str:
    last = run.attempts[-1] if run.attempts else None
    error = error_label(run.reason, last) if run.state != "succeeded" else ""
    return f": {mask.text(error)}" if error else ""


def _load(
    receiver: _Receiver, scenario: Scenario, *, count: int, concurrency: int, as_json: bool
) -> bool:
    """Run a scenario many times and print a summary; return whether none failed."""
    with progress(count) as done:
        load = receiver.simulate_many(scenario, count=count, concurrency=concurrency, done=done)
    if as_json:
        summary = {"scenario": scenario.name, **asdict(load), "calls_per_s": load.calls_per_s}
        typer.echo(json.dumps(summary))
    else:
        _print_load(scenario, load)
    return not load.failures


def _print_load(scenario: Scenario, load: Load) -> None:
    pace = f"{load.calls_per_s:,.0f} a second"
    typer.echo(f"{scenario.name}: {load.calls:,} calls in {load.took_s:.1f} s, {pace}")
    webhooks = {"prefetch": load.prefetch, "end-of-call": load.end_of_call}
    rows = [
        (name, f"{latencies.count:,}", f"{latencies.failed:,}", *_times(latencies))
        for name, latencies in webhooks.items()
    ]
    print_table(("Webhook", "Sent", "Failed", "p50", "p95", "p99", "Longest"), rows)
    for failure, count in load.failures.items():
        typer.echo(_short(f"{count:,} x {failure}"))


def _times(latencies: Latencies) -> Iterator[str]:
    for took_ms in (latencies.p50_ms, latencies.p95_ms, latencies.p99_ms, latencies.most_ms):
        yield "" if took_ms is None else f"{took_ms:.1f} ms"
