"""What the sandbox's page shows: a draft of a call, and the call that is looked at, if any."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from anyio import from_thread

from ...call_log.arrivals import FoundHandler, found_handlers
from ...call_status import CallStatus
from ...exceptions import PayloadError
from ...samples import VINTAGES
from ...sandbox.interfaces.asked import UnprocessableError
from ...sandbox.policy import PolicySetting, policy_settings
from ...sandbox.rehearsals import Rehearsals
from ...sandbox.spec import END_OF_CALL_TIMES, PREFETCH_FAULTS
from ..pages import Asked
from ..parameters import Parameter
from .asking import Snippet, asked_of, snippet_of
from .draft import SCENARIOS, WAYS, Draft, params_of, policy_texts, read_draft, warning_about
from .rehearsed import Rehearsed, rehearsed

#: What became of a form that could not do what it is for, by the word in the address.
REFUSALS: Mapping[str, str] = {
    "gone": "The call is not at that point: it has not begun to talk, or it is over.",
    "params": "The parameters are no JSON object.",
    "busy": "There are as many calls at once as the sandbox connects. End one first.",
}

#: In what each vintage differs, as the form says it.
VINTAGE_LABELS: Mapping[str, str] = {
    "v2": "Current: text, float time",
    "v2-extras": "Current, with extras",
    "v1b": "2024: array, ISO time",
    "v1a": "2024, first: no metadata",
    "hostile": "Hostile: nulls, missing keys",
}
TIMES_LABELS: Mapping[str, str] = {
    "once": "Once",
    "twice": "Twice",
    "late": "Late",
    "never": "Never",
}
FAULT_LABELS: Mapping[str, str] = {
    "": "As it comes",
    "slow": "Slower by some seconds",
    "error": "Status 500",
    "bad-json": "JSON that breaks off",
    "unreachable": "No answer",
}


@dataclass(frozen=True, slots=True)
class Choices:
    """What the selects of the page offer."""

    scenarios: tuple[str, ...] = SCENARIOS
    statuses: tuple[str, ...] = tuple(CallStatus)
    vintages: tuple[tuple[str, str], ...] = tuple((each, VINTAGE_LABELS[each]) for each in VINTAGES)
    times: tuple[tuple[str, str], ...] = tuple(
        (each, TIMES_LABELS[each]) for each in END_OF_CALL_TIMES
    )
    faults: tuple[tuple[str, str], ...] = tuple(
        (each, FAULT_LABELS[each]) for each in ("", *PREFETCH_FAULTS)
    )
    policy: tuple[PolicySetting, ...] = tuple(policy_settings())


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxView:
    """What the page shows. `params` are the draft as the query of an address, without secrets."""

    draft: Draft
    warnings: tuple[str | None, ...]
    problems: tuple[str, ...]
    policy: Mapping[str, str]
    snippet: Snippet | None
    params: Mapping[str, str]
    choices: Choices
    call: Rehearsed | None
    #: The call that was asked for and is not known any more.
    forgotten: str | None
    #: How the End form is filled in: `status`, `vintage`, `times`.
    ending: Mapping[str, str]
    refusal: str | None
    handlers: tuple[FoundHandler, ...]
    live_count: int
    #: For the pieces of the call's page.
    prints_all: bool = False


class Sandbox:
    """Builds the page. `rehearsals` gives what begins its calls, on the event loop of those."""

    QUERY: ClassVar[Sequence[Parameter]] = (
        Parameter("session", "The call to look at."),
        Parameter("scenario", "A shipped scenario to fill the form in with."),
        Parameter("way", "How the call is begun; with it the rest of the form.", choices=WAYS),
    )

    def __init__(self, rehearsals: Callable[[], Coroutine[Any, Any, Rehearsals]]) -> None:
        self._rehearsals = rehearsals

    def rehearsals(self) -> Rehearsals:
        """Return what begins calls. From a thread of a page."""
        return from_thread.run(self._rehearsals)

    def show(self, asked: Asked) -> SandboxView:
        """Build the page."""
        session_id = asked.query.get("session")
        call, about = self._call(asked, session_id) if session_id else (None, {})
        given = about.get("draft")
        is_drafted = "way" in asked.query or "scenario" in asked.query
        draft = read_draft(asked.query if is_drafted or not isinstance(given, dict) else given)
        problems = problems_of(draft)
        return SandboxView(
            draft=draft,
            warnings=tuple(warning_about(row, draft.way) for row in draft.shown_rows),
            problems=problems,
            policy=policy_texts(draft),
            snippet=None if problems else snippet_of(draft, asked.address),
            params=params_of(draft),
            choices=Choices(),
            call=call,
            forgotten=session_id if session_id and call is None else None,
            ending=_ending(draft, asked.query),
            refusal=REFUSALS.get(asked.query.get("refused", "")),
            handlers=asked.log.ask(found_handlers),
            live_count=asked.log.live_count(now=asked.now),
        )

    def _call(self, asked: Asked, session_id: str) -> tuple[Rehearsed | None, Mapping[str, object]]:
        rehearsals = self.rehearsals()
        live = rehearsals.live(session_id)
        note = rehearsals.note(session_id)
        if note is None:
            return None, {}
        call = rehearsed(
            session_id,
            note,
            is_live=live is not None,
            elapsed_s=(asked.now - live.began_at).total_seconds() if live else 0.0,
            record=asked.log.call(session_id),
            mask=asked.settings.mask,
        )
        return call, note.about


def problems_of(draft: Draft) -> tuple[str, ...]:
    """Return why no call can be begun so, in sentences."""
    problems = tuple(draft.problems())
    if problems:
        return problems
    try:
        asked_of(draft)
    except UnprocessableError as error:
        return tuple(
            f"{'.'.join(map(str, each['loc'][1:])) or 'The request'}: {each['msg']}."
            for each in error.detail
        )
    except PayloadError as error:
        return (f"{error}.",)
    return ()


def _ending(draft: Draft, query: Mapping[str, str]) -> dict[str, str]:
    """Return how the call ends by its scenario, unless the address says otherwise."""
    scenario = draft.loaded()
    usual = {"status": str(CallStatus.USER_ENDED), "vintage": "v2", "times": "once"}
    if scenario is not None:
        usual = {
            "status": str(scenario.script.ending.call_status),
            "vintage": scenario.spec.vintage,
            "times": scenario.spec.faults.end_of_call,
        }
    return {name: query.get(name, text) for name, text in usual.items()}
