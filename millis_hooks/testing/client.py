"""The client of tests: sends an application what Millis sends, and waits for its handlers."""

from __future__ import annotations

import json
import secrets
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import quote

from anyio.from_thread import BlockingPortal, start_blocking_portal
from pydantic_core import to_jsonable_python

from ..app import MillisHooks
from ..call_log.queries import Queries
from ..call_log.queries.records import Delivery
from ..call_log.queries.requests import RequestFilter, list_requests
from ..exceptions import PayloadError
from ..handlers.made_up_calls import Answers, MillisRequest, all_went_well, answered_in_this_process
from ..protocol.call_status import CallStatus
from ..protocol.reading import Json, object_in, read_json
from ..protocol.samples import (
    AGENT_ID,
    CUSTOMER_PHONE,
    OWN_PHONE,
    CallContent,
    Vintage,
    end_of_call_body,
    push_id,
)
from ..protocol.test_marks import Purpose, purpose_of
from ..sandbox.policy import Policy
from ..sandbox.scenario import Scenario, SessionSpec, changed, load_scenario
from ..sandbox.simulator import (
    HandledCall,
    Load,
    Simulation,
    Simulator,
    wait_for,
    wait_for_handlers,
)
from ..sandbox.steps import Listener
from ..sandbox.transport import IN_PROCESS, Answer, Request, Transport, Webhook, in_process
from ..sandbox.webhook_client import function_request, prefetch_request
from ..settings import Hook
from ..webhooks import Marker, secret_for, secret_header, webhook_url
from ..webhooks.agent_config import agent_config

T = TypeVar("T")

#: How long a request may take, in seconds: more than any budget of a prefetch.
_TIMEOUT_S = 90.0


@dataclass(frozen=True, slots=True)
class PrefetchReply:
    """What your application answered to a prefetch."""

    status_code: int
    #: As sent: Millis reads `metadata` and `extra_prompt`.
    body: Mapping[str, Json]
    #: As the call log has it: `outcome` is fresh, cached, default, last_good, late or failed, and
    #: `reason` says why it is not fresh. None where the request was refused.
    delivery: Delivery | None

    @property
    def metadata(self) -> dict[str, Json]:
        """What is merged into the session's metadata."""
        metadata = self.body.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def extra_prompt(self) -> str | None:
        """What is appended to the prompt."""
        extra_prompt = self.body.get("extra_prompt")
        return extra_prompt if isinstance(extra_prompt, str) else None

    @property
    def keep(self) -> dict[str, Json]:
        """What stays here, and is not sent."""
        return object_in(self.delivery.kept) if self.delivery is not None else {}


@dataclass(frozen=True, slots=True)
class FunctionReply:
    """What a function of your application answered to the agent."""

    status_code: int
    #: As sent: JSON, or the text of a function with `answer="text"`.
    text: str
    #: As the call log has it: `outcome` is answered, invalid, late or failed, and `reason` says why
    #: it is not answered. None where the request was refused.
    delivery: Delivery | None

    @property
    def body(self) -> Json:
        """The answer as JSON; the text where it is none."""
        try:
            return read_json(self.text)
        except PayloadError:
            return self.text

    @property
    def result(self) -> Json:
        """What the agent is told: `result` of the answer, or all of it."""
        body = self.body
        return body["result"] if isinstance(body, dict) and "result" in body else body

    @property
    def outcome(self) -> str:
        """What became of the request."""
        return self.delivery.outcome if self.delivery is not None else "rejected"


class HooksClient:
    """Simulates calls against an application, which it starts and stops as a context manager.

    The application runs on a thread of its own, so that tests may be plain functions.
    """

    def __init__(
        self,
        hooks: MillisHooks,
        *,
        wait_s: float = 10.0,
        anywhere: bool = False,
        **settings: Any,
    ) -> None:
        """Take the handlers of `hooks`, under its settings and those given here.

        The call log is a file of its own, unless `database_url` says otherwise; secrets are made
        up. Handlers are waited for up to `wait_s` seconds. Functions of agents that a scenario has
        no answers for are called on this machine only, unless `anywhere`.
        """
        self.hooks = hooks
        #: What the code under test would have asked of Millis, in order. Nothing is sent there.
        self.millis_requests: list[MillisRequest] = []
        #: Returns the status and the body of the answer to each, or raises `MillisApiError`. By
        #: default calls are answered as started and ended, and Millis' call logs as empty.
        self.millis_answers: Answers = all_went_well
        self._anywhere = anywhere
        self._settings = settings
        self._wait_s = wait_s
        self._stack = ExitStack()
        self._portal: BlockingPortal | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            folder = stack.enter_context(TemporaryDirectory(prefix="millis-hooks-"))
            stack.enter_context(answered_in_this_process(self._answer_as_millis))
            self.hooks = self.hooks.under(
                millis=self._answer_as_millis, **(_closed(folder) | self._settings)
            )
            enter = self._portal.wrap_async_context_manager
            stack.enter_context(enter(self.hooks.running()))
            self._transport: Transport = stack.enter_context(
                enter(in_process(self.hooks, anywhere=self._anywhere))
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def log(self) -> Queries:
        """The call log, to look into."""
        return Queries(self.hooks.service.call_log.database.reader)

    def prefetch(
        self,
        *,
        session_id: str | None = None,
        agent_id: str | None = AGENT_ID,
        from_phone: str | None = CUSTOMER_PHONE,
        to_phone: str | None = OWN_PHONE,
        metadata: Mapping[str, str] | None = None,
        vintage: Vintage = "v2",
        sandbox: bool = False,
        dry_run: bool = False,
    ) -> PrefetchReply:
        """Ask as Millis does before a call; without phone numbers it is one from the web.

        Handlers see a call of Millis', unless `sandbox` or `dry_run` tells them otherwise.
        """
        session_id = session_id or _new_id()
        spec = SessionSpec(
            agent_id=agent_id,
            from_phone=from_phone,
            to_phone=to_phone,
            metadata=metadata or {},
            vintage=vintage,
        )
        purpose = purpose_of(sandbox=sandbox, dry_run=dry_run)
        webhook = self._webhook("prefetch", agent_id, session_id, purpose)
        filters = RequestFilter(kind="prefetch", session_id=session_id, since=datetime.now(UTC))
        answer = self._send(prefetch_request(spec, webhook, session_id))
        delivery = self._record(filters) if answer.is_success else None
        body = json.loads(answer.body)
        return PrefetchReply(answer.status_code, body, delivery)

    def end_of_call(
        self,
        *,
        session_id: str | None = None,
        agent_id: str | None = AGENT_ID,
        from_phone: str | None = CUSTOMER_PHONE,
        to_phone: str | None = OWN_PHONE,
        metadata: Mapping[str, Json] | None = None,
        call_status: str = CallStatus.USER_ENDED,
        duration_s: float = 41,
        content: CallContent | None = None,
        vintage: Vintage = "v2",
        sandbox: bool = False,
        dry_run: bool = False,
    ) -> HandledCall:
        """Tell of a call that has ended, and return it once no handler is at work on it.

        `content` is what was said, which functions were called and what it cost. Handlers see a
        call of Millis', unless `sandbox` or `dry_run` tells them otherwise. Raises
        `TimeoutError`, which names the handlers that are still at work.
        """
        session_id = session_id or _new_id()
        body = end_of_call_body(
            vintage,
            session_id=session_id,
            agent_id=agent_id,
            from_phone=from_phone,
            to_phone=to_phone,
            metadata=metadata,
            call_status=call_status,
            duration_s=duration_s,
            content=content,
        )
        purpose = purpose_of(sandbox=sandbox, dry_run=dry_run)
        webhook = self._webhook("end_of_call", agent_id, session_id, purpose)
        headers = (*webhook.headers, ("content-type", "application/json"))
        self._send(Request("POST", webhook.url, headers, body=body))
        return self.wait_for(session_id)

    def function(
        self,
        name: str,
        /,
        *,
        session_id: str | None = None,
        agent_id: str | None = AGENT_ID,
        metadata: Mapping[str, Json] | None = None,
        sandbox: bool = False,
        dry_run: bool = False,
        **arguments: Any,
    ) -> FunctionReply:
        """Call a function as an agent does in a call; dates, enums and such are sent as text.

        The function sees a call of Millis', unless `sandbox` or `dry_run` tells it otherwise.
        """
        session_id = session_id or _new_id()
        tools = {each["name"]: each for each in self.hooks.router.tools(agent_id)}
        purpose = purpose_of(sandbox=sandbox, dry_run=dry_run)
        tool = tools.get(name, {})
        fields: dict[str, Json] = to_jsonable_python(arguments)
        is_named = tool.get("exclude_session_id") is not True
        sent_as = {"session_id": session_id} if is_named else {}
        webhook = self._webhook("function", agent_id, session_id if is_named else None, purpose)
        webhook = webhook._replace(url=f"{webhook.url}/{quote(name, safe='')}")
        request = function_request(
            tool, webhook, fields | sent_as, metadata=metadata or {}, policy=Policy()
        )
        filters = RequestFilter(kind="function", since=datetime.now(UTC))
        answer = self._send(request)
        delivery = self._record(filters, name) if answer.is_success else None
        return FunctionReply(answer.status_code, answer.text, delivery)

    def simulate(
        self,
        scenario: str | Path | Scenario,
        *,
        tell: Listener | None = None,
        sandbox: bool = False,
        **changes: Any,
    ) -> Simulation:
        """Go through a whole call: a scenario's file, the name of a shipped one, or one made here.

        `changes` are fields of `SessionSpec`, such as `metadata=` or `faults={"prefetch": "slow"}`.
        `tell` is called with each step, on another thread. `sandbox` is as in `end_of_call`. Raises
        `ConfigError` for a scenario that cannot be read and for wrong changes, and `TimeoutError`
        as `end_of_call` does.
        """
        if not isinstance(scenario, Scenario):
            scenario = load_scenario(str(scenario))
        if changes:
            scenario = replace(scenario, spec=changed(scenario.spec, changes))
        simulator = self._simulator(sandbox=sandbox)
        return self._run(lambda: simulator.run(scenario, tell=tell))

    def simulate_many(
        self,
        scenario: Scenario,
        *,
        count: int,
        concurrency: int,
        done: Callable[[int], None],
        sandbox: bool = False,
    ) -> Load:
        """Run a scenario `count` times, several at once, without waiting for handlers."""
        run = self._simulator(sandbox=sandbox).run_many
        limits = {"count": count, "concurrency": concurrency}
        return self._run(lambda: run(scenario, **limits, done=done))

    def wait_for(self, session_id: str) -> HandledCall:
        """Return a call once no handler is at work on it, as `end_of_call` does."""
        return wait_for_handlers(self.log, session_id, timeout_s=self._wait_s)

    def _simulator(self, *, sandbox: bool) -> Simulator:
        """Return what runs scenarios, on the application's event loop."""
        settings, tools = self.hooks.settings, self.hooks.router.tools
        return Simulator(
            transport=self._transport,
            webhooks=lambda agent_id: agent_config(
                settings, IN_PROCESS, agent_id=agent_id, tools=tools(agent_id)
            ),
            mark=Marker(settings, purpose_of(sandbox=sandbox, dry_run=False)),
            declared=settings.variables,
            log=self.log,
            wait_s=self._wait_s,
        )

    def _run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something on the application's event loop."""
        if self._portal is None:
            raise RuntimeError("The client is not started: use it in a with statement.")
        return self._portal.call(work)

    async def _answer_as_millis(self, request: MillisRequest) -> tuple[int, bytes]:
        self.millis_requests.append(request)
        return await self.millis_answers(request)

    def _record(self, filters: RequestFilter, function: str | None = None) -> Delivery | None:
        """Return the record of the newest such request, which is written soon after the answer."""

        def look() -> Delivery | None:
            rows = self.log.ask(list_requests, filters=filters).rows
            ids = [row.id for row in rows if row.function == function]
            return self.log.delivery(ids[0]) if ids else None

        return wait_for(look, timeout_s=self._wait_s)

    def _webhook(
        self, hook: Hook, agent_id: str | None, session_id: str | None, purpose: Purpose
    ) -> Webhook:
        """Return a webhook of the application, with the headers of a delivery in a test."""
        settings = self.hooks.settings
        url = webhook_url(settings, hook, IN_PROCESS)
        headers = secret_header(settings, secret_for(settings, hook, agent_id))
        headers |= Marker(settings, purpose)(session_id, url, headers.items())
        return Webhook(url, tuple(headers.items()))

    def _send(self, request: Request) -> Answer:
        return self._run(lambda: self._transport.send(request, timeout_s=_TIMEOUT_S))


def _closed(folder: str) -> dict[str, Any]:
    """Return settings under which only this client delivers, and nothing is kept."""
    return {
        "database_url": f"sqlite:///{folder}/calls.db",
        "secrets": [secrets.token_hex(32)],
        "prefetch_secrets": (),
        "end_of_call_secrets": (),
        "function_secrets": (),
        "agent_secrets": {},
        "sandbox": True,
        "reconcile_minutes": 0,
    }


def _new_id() -> str:
    return push_id(datetime.now(UTC))


class SimulateCall(Protocol):
    """The type of the fixture `simulate_call`."""

    def __call__(self, scenario: str | Path, **changes: Any) -> Simulation:
        """Run a scenario; `changes` are as in `HooksClient.simulate`."""
