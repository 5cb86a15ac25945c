"""The forms of the sandbox: begin a call, speak in it, call a function, hang up.

Each answers with the page of the call, so that they work without scripts. What a form cannot do is
said there: nothing that was typed is lost.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from anyio import from_thread
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

from ...exceptions import PayloadError
from ...protocol.call_status import CallStatus
from ...protocol.reading import Json, read_json
from ...protocol.samples import VINTAGES
from ...sandbox.emulator.sessions import BusyError
from ...sandbox.scenario import END_OF_CALL_TIMES, Ending, Faults, Line
from ..endpoints import Endpoints, OperatorRequest
from ..pages import PageRequest
from .form import Draft, params_of, read_draft
from .page import Sandbox, asked_for, asked_of, problems_of

#: What is typed is cut there: nobody says more in one breath.
_MOST_CHARS = 4000
_ENDINGS = ("status", "vintage", "times")


class SandboxForms:
    """Takes the forms; they come on threads, and calls live on the event loop."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox

    def routes(self, endpoints: Endpoints) -> Iterator[Route]:
        """Yield the routes of the page, its fragment and its forms."""
        show = self._sandbox.show
        yield endpoints.fragment("/sandbox/call", "sandbox_call", show, role="operate")
        yield from endpoints.page("/sandbox", "sandbox", show, role="operate")
        for path, respond in (
            ("start", self.start),
            ("say", self.say),
            ("function", self.call_function),
            ("end", self.end),
        ):
            yield endpoints.form(f"/sandbox/{path}", f"sandbox_{path}", respond, max_fields=120)

    def start(self, request: OperatorRequest) -> Response:
        """Answer `POST /sandbox/start`: begin a call, or show what is wrong with its draft."""
        draft = read_draft(request.fields)
        if problems_of(draft):
            return self._show_again(request, request.fields)
        try:
            session_id = self._start(draft, request.page_request())
        except BusyError:
            return self._show_again(request, {**request.fields, "refused": "busy"})
        return _to(request, {"session": session_id})

    def say(self, request: OperatorRequest) -> Response:
        """Answer `POST /sandbox/say`: say something as the caller, or as the agent."""
        fields = request.fields
        text, role = fields.get("text", "").strip()[:_MOST_CHARS], fields.get("role", "user")
        session_id = _session(fields)
        if not text:
            return _to(request, {"session": session_id})
        say = partial(self._sandbox.rehearsals().say, session_id, text)
        was_said = from_thread.run(say, "assistant" if role == "assistant" else "user")
        return _to_call(request, session_id, None if was_said else "gone")

    def call_function(self, request: OperatorRequest) -> Response:
        """Answer `POST /sandbox/function`: have the agent call one of its functions."""
        fields = request.fields
        session_id, name = _session(fields), fields.get("name", "").strip()[:_MOST_CHARS]
        params = _object(fields.get("params", ""))
        if params is None or not name:
            return _to_call(request, session_id, "params")
        call = self._sandbox.rehearsals().call_function
        was_called = from_thread.run(call, session_id, name, params)
        return _to_call(request, session_id, None if was_called else "gone")

    def end(self, request: OperatorRequest) -> Response:
        """Answer `POST /sandbox/end`: hang up, and have the end of the call delivered as chosen.

        Raises HTTPException for a choice that is none.
        """
        fields = request.fields
        session_id = _session(fields)
        status, vintage, times = (fields.get(name, "") for name in _ENDINGS)
        if status not in {*CallStatus} or vintage not in VINTAGES or times not in END_OF_CALL_TIMES:
            raise HTTPException(400)
        message = fields.get("message", "").strip()[:_MOST_CHARS] or None
        end = partial(
            self._sandbox.rehearsals().end,
            session_id,
            Ending(status, message),
            vintage=vintage,
            faults=Faults(end_of_call=times),
        )
        return _to_call(request, session_id, None if from_thread.run(end) else "gone")

    def _show_again(self, request: OperatorRequest, fields: Mapping[str, str]) -> Response:
        """Answer with the page as it was filled in: not all of that is for an address."""

        view = self._sandbox.show(request.page_request({**fields, "session": ""}))
        return request.pages.show(request.http, "sandbox.html", view, status_code=422)

    def _start(self, draft: Draft, asked: PageRequest) -> str:
        rehearsals, base = self._sandbox.rehearsals(), asked.address

        async def start() -> str:
            spec = await rehearsals.sessions.spec_of(asked_of(draft), base)
            spec = asked_for(draft, spec)
            about = {
                "draft": params_of(draft),
                "prompt": spec.agent_config.get("prompt", ""),
                "dry_run": draft.dry,
            }
            return await rehearsals.start(spec, base, replies=_replies(draft), about=about)

        return from_thread.run(start)


def _replies(draft: Draft) -> list[str]:
    scenario = draft.loaded()
    turns = scenario.script.turns if scenario else ()
    return [each.text for each in turns if isinstance(each, Line) and each.role == "assistant"]


def _object(text: str) -> dict[str, Json] | None:
    """Read parameters; none were typed for a function that has none."""
    try:
        value = read_json(text) if text.strip() else {}
    except PayloadError:
        return None
    return value if isinstance(value, dict) else None


def _session(fields: Mapping[str, str]) -> str:
    return fields.get("session", "")[:_MOST_CHARS]


def _to_call(request: OperatorRequest, session_id: str, refused: str | None) -> Response:
    return _to(request, {"session": session_id} | ({"refused": refused} if refused else {}))


def _to(request: OperatorRequest, query: Mapping[str, str]) -> Response:
    return request.redirect("sandbox", query)
