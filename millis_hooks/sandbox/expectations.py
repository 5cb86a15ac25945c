"""What a scenario expects of a call, and whether it was met: the exit code of `simulate`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict

from ..protocol.call_status import spell_status
from ..protocol.reading import Json
from .steps import EndDelivered, FunctionCalled, Prefetched

if TYPE_CHECKING:
    from .session import SessionResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectations:
    """What should have happened. None, or empty, expects nothing."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=False)

    prefetch: Literal["answered", "failed", "none"] | None = None
    prefetch_within_ms: float | None = None
    #: Keys and values among those the call ends with.
    metadata: Mapping[str, Json] = field(default_factory=dict)
    prompt_contains: Sequence[str] = ()
    prompt_lacks: Sequence[str] = ()
    first_message: str | None = None
    #: The names that nothing was known of, in whatever place, in any order.
    unresolved: Sequence[str] | None = None
    #: What the result of each of these functions contains.
    functions: Mapping[str, str] = field(default_factory=dict)
    call_status: str | None = None
    end_of_call: Literal["accepted", "refused", "none"] | None = None
    #: Of the stored call; known only where the call log is at hand.
    outcome: str | None = None
    #: How the run of each of these handlers ended; known only there, too.
    handlers: Mapping[str, Literal["succeeded", "failed", "parked"]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """One expectation: `found` says what there was where it was not met."""

    expected: str
    is_met: bool
    found: str = ""

    def __str__(self) -> str:
        return self.expected if self.is_met else f"{self.expected}: {self.found}"


@dataclass(frozen=True, slots=True)
class StoredCall:
    """What the call log says of a call; nothing where no end of it has arrived."""

    outcome: str | None = None
    #: The state of the latest run of each handler.
    handlers: Mapping[str, str] = field(default_factory=dict)


def check(
    expected: Expectations, result: SessionResult, stored: StoredCall | None
) -> list[Finding]:
    """Compare what was expected with what came of it; without `stored` a part is left out.

    Who expects nothing still expects that what is sent is taken.
    """
    if expected == Expectations():
        return [_all_is_taken(result)]
    findings = [
        *_of_prefetch(expected, result),
        *_of_texts(expected, result),
        *_of_ending(expected, result),
    ]
    return findings if stored is None else [*findings, *_of_log(expected, stored)]


def _all_is_taken(result: SessionResult) -> Finding:
    told = [step.failure for step in result.log.of(Prefetched)]
    told += [step.failure for step in result.log.of(EndDelivered)]
    failures = [failure for failure in told if failure is not None]
    return Finding("both webhooks take what they are sent", not failures, "; ".join(failures))


def _of_prefetch(expected: Expectations, result: SessionResult) -> Iterator[Finding]:
    asked = [step for step in result.log.of(Prefetched) if step.sent is not None]
    if expected.prefetch is not None:
        found = "none" if not asked else "failed" if asked[-1].failure else "answered"
        why = f" ({asked[-1].failure})" if asked and asked[-1].failure else ""
        yield _same("prefetch", expected.prefetch, found, why)
    if expected.prefetch_within_ms is not None:
        took_ms = asked[-1].took_ms if asked else 0.0
        is_met = bool(asked) and took_ms <= expected.prefetch_within_ms
        text = f"prefetch within {expected.prefetch_within_ms:g} ms"
        yield Finding(text, is_met, f"it took {took_ms:.0f} ms" if asked else "none was sent")
    for key, value in expected.metadata.items():
        known = key in result.metadata
        found_value = repr(result.metadata[key]) if known else "nothing"
        is_met = known and result.metadata[key] == value
        yield Finding(f"metadata {key} is {value!r}", is_met, found_value)


def _of_texts(expected: Expectations, result: SessionResult) -> Iterator[Finding]:
    prompt = result.texts.prompt
    for part in expected.prompt_contains:
        yield Finding(f"the prompt contains {part!r}", part in prompt, "it does not")
    for part in expected.prompt_lacks:
        yield Finding(f"the prompt lacks {part!r}", part not in prompt, "it contains it")
    if expected.first_message is not None:
        yield _same("first message", expected.first_message, result.texts.first_message or "")
    if expected.unresolved is not None:
        names = {name for names in result.texts.unresolved.values() for name in names}
        wanted = ", ".join(sorted(expected.unresolved)) or "none"
        yield _same("unknown variables", wanted, ", ".join(sorted(names)) or "none")


def _of_ending(expected: Expectations, result: SessionResult) -> Iterator[Finding]:
    results = {step.name: step.result or "" for step in result.log.of(FunctionCalled)}
    for name, part in expected.functions.items():
        found = repr(results[name]) if name in results else "it was not called"
        is_met = name in results and part in results[name]
        yield Finding(f"{name} gives {part!r}", is_met, found)
    if expected.call_status is not None:
        yield _same("status", spell_status(expected.call_status), result.ending.call_status)
    if expected.end_of_call is not None:
        sent = [step for step in result.log.of(EndDelivered) if step.sent is not None]
        last = sent[-1].failure if sent else None
        found = "none" if not sent else "refused" if last else "accepted"
        yield _same("end-of-call", expected.end_of_call, found, f" ({last})" if last else "")


def _of_log(expected: Expectations, stored: StoredCall) -> Iterator[Finding]:
    if expected.outcome is not None:
        yield _same("outcome", expected.outcome, stored.outcome or "none")
    for name, state in expected.handlers.items():
        yield _same(f"handler {name}", state, stored.handlers.get(name, "not called"))


def _same(what: str, expected: str, found: str, why: str = "") -> Finding:
    return Finding(f"{what}: {expected}", expected == found, f"{found}{why}")
