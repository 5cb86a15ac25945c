"""The page of the sandbox: an operator starts a call, is its caller by typing, and sees the result.

Each form answers with the page, so it works without scripts. If a form cannot do what it is for,
the page says so, and keeps everything that was typed.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from anyio import from_thread
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ...call_log.queries.requests import FoundHandler, answered_keys, found_handlers
from ...exceptions import PayloadError
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json, read_json
from ...protocol.samples import VINTAGES
from ...sandbox.emulator.sessions import BusyError, SessionManager
from ...sandbox.policy import PolicySetting, policy_settings
from ...sandbox.scenario import (
    END_OF_CALL_TIMES,
    PREFETCH_FAULTS,
    SHIPPED,
    Ending,
    Faults,
    Line,
    Role,
    Scenario,
    Script,
    SessionSpec,
)
from ..endpoints import Endpoints, OperatorRequest, only
from ..pages import PageRequest
from .form import MOST_ROWS, Draft, Problem, Row, Snippet
from .result import SandboxCall, sandbox_call

#: Typed texts are cut here.
_MOST_CHARS = 4000
_MOST_FIELDS = 120
#: Empty rows of metadata that the form shows.
_SPARE_ROWS = 2

#: Why a form did not do what it is for, by the word in the address.
_REFUSALS: Mapping[str, str] = {
    "gone": "The call is not at that point: it has not begun to talk, or it is over.",
    "params": "The parameters are not a JSON object.",
    "busy": "The sandbox connects no more calls at once. End one first.",
}


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of the selects of the page."""

    scenarios: tuple[str, ...] = SHIPPED
    statuses: tuple[str, ...] = tuple(CallStatus)
    vintages: tuple[str, ...] = tuple(VINTAGES)
    times: tuple[str, ...] = END_OF_CALL_TIMES
    faults: tuple[str, ...] = ("", *PREFETCH_FAULTS)
    policy: tuple[PolicySetting, ...] = tuple(policy_settings())


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxView:
    """What the page shows. `params` are the draft as parameters, without secrets.

    `forgotten` is a requested call that is not known any more, `ending` the initial `status`,
    `vintage` and `times` of the form that ends the call.
    """

    draft: Mapping[str, str]
    rows: tuple[Row, ...]
    may_include: bool
    problems: tuple[Problem, ...]
    policy: Mapping[str, str]
    is_policy_changed: bool
    snippet: Snippet | None
    params: Mapping[str, str]
    choices: Choices
    call: SandboxCall | None
    forgotten: str | None
    ending: Mapping[str, str]
    refusal: str | None
    handlers: tuple[FoundHandler, ...]
    agents: tuple[str, ...]
    #: Read by templates shared with the page of a call.
    prints_all: bool = False

    @property
    def errors(self) -> Mapping[str, str]:
        """What is wrong, by field; under an empty name, what belongs to none."""
        return {problem.field: problem.text for problem in self.problems}


class Sandbox:
    """Builds the page and takes its forms, on threads; the calls live on the event loop."""

    def __init__(self, sessions: Callable[[], Coroutine[Any, Any, SessionManager]]) -> None:
        """`sessions` returns what runs the calls."""
        self._get_sessions = sessions

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes of the page, its fragment and its forms."""
        yield endpoints.fragment("/sandbox/call", "sandbox_call", self.show, role="operate")
        yield from endpoints.page("/sandbox", "sandbox", self.show, role="operate")
        for path, respond in (
            ("start", self._start),
            ("say", self._say),
            ("function", self._call_function),
            ("end", self._end),
        ):
            name = f"sandbox_{path}"
            yield endpoints.form(
                f"/sandbox/{path}",
                name,
                respond,
                page="sandbox",
                max_fields=_MOST_FIELDS,
                undone="started" if path == "start" else "done",
                draft=_draft if path == "start" else partial(only, names=("session",)),
            )

    def show(self, request: PageRequest) -> SandboxView:
        """Build the page of a draft, and of a call if the query names a `session`."""
        query = request.query
        session_id = query.get("session")
        call, about = self._call(request, session_id) if session_id else (None, {})
        stored = about.get("draft")
        is_typed = "way" in query or "scenario" in query
        fields = query if is_typed or not isinstance(stored, dict) else stored
        is_new = not is_typed and fields is query
        draft = Draft(fields, request.log.ask(answered_keys) if is_new else ())
        problems = draft.problems()
        return SandboxView(
            draft=draft.fields,
            rows=(*draft.rows, *[Row()] * min(_SPARE_ROWS, MOST_ROWS - len(draft.rows))),
            may_include=draft.may_include,
            problems=problems,
            policy=draft.policy,
            is_policy_changed=bool(draft.changed_policy),
            snippet=None if problems else draft.snippet(request.address),
            params=draft.params(),
            choices=Choices(),
            call=call,
            forgotten=session_id if session_id and call is None else None,
            ending=_ending(draft.scenario, query),
            refusal=_REFUSALS.get(query.get("refused", "")),
            handlers=request.log.ask(found_handlers),
            agents=request.settings.agents.named(),
        )

    def _call(
        self, request: PageRequest, session_id: str
    ) -> tuple[SandboxCall | None, Mapping[str, Any]]:
        sessions = self._sessions()
        live, rehearsal = sessions.live.get(session_id), sessions.rehearsal(session_id)
        if rehearsal is None:
            return None, {}
        call = sandbox_call(
            session_id,
            rehearsal,
            is_live=live is not None,
            elapsed_s=(request.now - live.began_at).total_seconds() if live else 0.0,
            record=request.log.call(session_id),
            mask=request.settings.mask,
        )
        return call, rehearsal.about

    def _start(self, request: OperatorRequest) -> Response:
        """Begin a call, or show what is wrong with its draft."""
        draft, base = Draft(request.fields), request.page_request().address
        if draft.problems():
            return self._show_again(request, request.fields)
        sessions, scenario = self._sessions(), draft.scenario
        turns = scenario.script.turns if scenario else ()
        lines = (each for each in turns if isinstance(each, Line))
        replies = [line.text for line in lines if line.role == "assistant"]

        async def start() -> str:
            spec = await draft.spec(sessions, base)
            prompt = spec.agent_config.get("prompt", "")
            about = {"draft": draft.params(), "prompt": prompt, "dry_run": spec.dry_run}
            return await sessions.rehearse(spec, base, replies=replies, about=about)

        try:
            return request.redirect("sandbox", {"session": from_thread.run(start)})
        except BusyError:
            return self._show_again(request, {**request.fields, "refused": "busy"})

    def _say(self, request: OperatorRequest) -> Response:
        """Say something as the caller, or as the agent."""
        text = request.fields.get("text", "").strip()[:_MOST_CHARS]
        role: Role = "assistant" if request.fields.get("role") == "assistant" else "user"
        if not text:
            return _show_call(request)
        say = partial(self._sessions().say, _session(request), text, role)
        return _show_call(request, None if from_thread.run(say) else "gone")

    def _call_function(self, request: OperatorRequest) -> Response:
        """Let the agent call a function."""
        name = request.fields.get("name", "").strip()[:_MOST_CHARS]
        params = _object(request.fields.get("params", ""))
        if params is None or not name:
            return _show_call(request, "params")
        call = partial(self._sessions().call_function, _session(request), name, params)
        return _show_call(request, "gone" if from_thread.run(call) is None else None)

    def _end(self, request: OperatorRequest) -> Response:
        """Hang up, and deliver the end-of-call as chosen; 400 for an unknown choice."""
        fields = request.fields
        status, vintage, times = (fields.get(name, "") for name in ("status", "vintage", "times"))
        if status not in {*CallStatus} or vintage not in VINTAGES or times not in END_OF_CALL_TIMES:
            raise HTTPException(400)
        message = fields.get("message", "").strip()[:_MOST_CHARS] or None
        end = partial(
            self._sessions().end,
            _session(request),
            Ending(status, message),
            vintage=vintage,
            faults=Faults(end_of_call=times),
        )
        return _show_call(request, None if from_thread.run(end) else "gone")

    def _show_again(self, request: OperatorRequest, fields: Mapping[str, str]) -> Response:
        """Show the page as it was filled in; secrets among that are not for an address."""
        view = self.show(request.page_request({**fields, "session": ""}))
        return request.pages.show(request.http, "sandbox.html", view, status_code=422)

    def _sessions(self) -> SessionManager:
        return from_thread.run(self._get_sessions)


def _ending(scenario: Scenario | None, query: Mapping[str, str]) -> dict[str, str]:
    """Return how the call ends: by the address, else by its scenario."""
    script, spec = (scenario.script, scenario.spec) if scenario else (Script(), SessionSpec())
    ending = {
        "status": script.ending.call_status,
        "vintage": spec.vintage,
        "times": spec.faults.end_of_call,
    }
    return {name: query.get(name, str(value)) for name, value in ending.items()}


def _object(text: str) -> dict[str, Json] | None:
    """Read the parameters of a function; no text means none. None if they are not an object."""
    try:
        value = read_json(text) if text.strip() else {}
    except PayloadError:
        return None
    return value if isinstance(value, dict) else None


def _draft(fields: Mapping[str, str]) -> Mapping[str, object]:
    """Return the parameters of what was typed, without secrets."""
    return Draft(fields).params()


def _session(request: OperatorRequest) -> str:
    return request.fields.get("session", "")[:_MOST_CHARS]


def _show_call(request: OperatorRequest, refused: str | None = None) -> Response:
    query = {"session": _session(request)} | ({"refused": refused} if refused else {})
    return request.redirect("sandbox", query)
