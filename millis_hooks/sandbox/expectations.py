"""Compares what a scenario expects of a call with what happened: the exit code of `simulate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ..protocol.call_status import spell_status
from .scenario import Expectations
from .session import Session
from .steps import EndDelivered, FunctionCalled, Prefetched


@dataclass(frozen=True, slots=True)
class ExpectationResult:
    """One expectation: `found` says what happened instead where it was not met."""

    expected: str
    is_met: bool
    found: str = ""

    def __str__(self) -> str:
        return self.expected if self.is_met else f"{self.expected}: {self.found}"


@dataclass(frozen=True, slots=True)
class StoredCall:
    """What the call log has of a call; empty where no end-of-call has arrived."""

    outcome: str | None = None
    #: The state of the latest run of each handler.
    handlers: Mapping[str, str] = field(default_factory=dict)


def check(
    expected: Expectations, session: Session, stored: StoredCall | None
) -> list[ExpectationResult]:
    """Compare an ended session with what was expected.

    Without `stored` the expectations about the call log are left out. A scenario without
    expectations still expects that both webhooks accept what they are sent.
    """
    if expected == Expectations():
        return [_all_accepted(session)]
    results = [
        *_of_prefetch(expected, session),
        *_of_texts(expected, session),
        *_of_ending(expected, session),
    ]
    return results if stored is None else [*results, *_of_log(expected, stored)]


def _all_accepted(session: Session) -> ExpectationResult:
    steps = [*session.log.of(Prefetched), *session.log.of(EndDelivered)]
    failures = [step.failure for step in steps if step.failure is not None]
    text = "both webhooks take what they are sent"
    return ExpectationResult(text, not failures, "; ".join(failures))


def _of_prefetch(expected: Expectations, session: Session) -> Iterator[ExpectationResult]:
    step = next((step for step in session.log.of(Prefetched) if step.sent is not None), None)
    if expected.prefetch is not None:
        outcome = "none" if step is None else "failed" if step.failure else "answered"
        yield _same("prefetch", expected.prefetch, outcome, step.failure if step else None)
    if expected.prefetch_within_ms is not None:
        text = f"prefetch within {expected.prefetch_within_ms:g} ms"
        is_met = step is not None and step.took_ms <= expected.prefetch_within_ms
        found = "none was sent" if step is None else f"it took {step.took_ms:.0f} ms"
        yield ExpectationResult(text, is_met, found)
    for key, value in expected.metadata.items():
        is_known = key in session.metadata
        found = repr(session.metadata[key]) if is_known else "nothing"
        is_met = is_known and session.metadata[key] == value
        yield ExpectationResult(f"metadata {key} is {value!r}", is_met, found)


def _of_texts(expected: Expectations, session: Session) -> Iterator[ExpectationResult]:
    texts = session.texts
    for part in expected.prompt_contains:
        text = f"the prompt contains {part!r}"
        yield ExpectationResult(text, part in texts.prompt, "it does not")
    for part in expected.prompt_lacks:
        text = f"the prompt lacks {part!r}"
        yield ExpectationResult(text, part not in texts.prompt, "it contains it")
    if expected.first_message is not None:
        yield _same("first message", expected.first_message, texts.first_message or "")
    if expected.unresolved is not None:
        names = {name for names in texts.unresolved.values() for name in names}
        expected_names = ", ".join(sorted(expected.unresolved)) or "none"
        yield _same("unknown variables", expected_names, ", ".join(sorted(names)) or "none")


def _of_ending(expected: Expectations, session: Session) -> Iterator[ExpectationResult]:
    results = {step.name: step.result or "" for step in session.log.of(FunctionCalled)}
    for name, part in expected.functions.items():
        found = repr(results[name]) if name in results else "it was not called"
        is_met = name in results and part in results[name]
        yield ExpectationResult(f"{name} gives {part!r}", is_met, found)
    if expected.call_status is not None:
        yield _same("status", spell_status(expected.call_status), session.ending.call_status)
    if expected.end_of_call is not None:
        sent = [step for step in session.log.of(EndDelivered) if step.sent is not None]
        failure = sent[-1].failure if sent else None
        outcome = "none" if not sent else "refused" if failure else "accepted"
        yield _same("end-of-call", expected.end_of_call, outcome, failure)


def _of_log(expected: Expectations, stored: StoredCall) -> Iterator[ExpectationResult]:
    if expected.outcome is not None:
        yield _same("outcome", expected.outcome, stored.outcome or "none")
    for name, state in expected.handlers.items():
        yield _same(f"handler {name}", state, stored.handlers.get(name, "not called"))


def _same(what: str, expected: str, found: str, why: str | None = None) -> ExpectationResult:
    because = f" ({why})" if why else ""
    return ExpectationResult(f"{what}: {expected}", expected == found, f"{found}{because}")
