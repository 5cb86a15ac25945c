"""A call of the sandbox on its page: made of its steps and of its record in the call log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from pydantic import JsonValue

from ...call_log.queries.records import CallRecord, Run
from ...call_log.redaction import masked_reason, masked_run
from ...exceptions import PayloadError
from ...masking.policy import MaskPolicy
from ...protocol.reading import read_json
from ...protocol.variables import pieces, variables_of
from ...sandbox.emulator.store import Rehearsal
from ...sandbox.steps import masked_step, with_whole_turns
from ..payloads import Entry, masked_metadata
from ..transcript import Function, Line

#: `cut`: the process that ran the call has ended.
Stage: TypeAlias = Literal["beginning", "talking", "ending", "over", "cut"]
ProgressState: TypeAlias = Literal["done", "now", "failed", "to-come"]
_NOT_OVER = frozenset({"pending", "running"})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the prompt: plain words, a variable that is filled in or missing, or the extra
    prompt of the prefetch.
    """

    kind: Literal["plain", "filled", "missing", "extra"]
    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage of the call and its state."""

    name: str
    state: ProgressState
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxCall:
    """The call. Steps are as `Step.as_json` has them, masked.

    `is_typed` if an operator is the caller, on this page; `notes` are remarks on how the call was
    requested. The outcome and the reason of the prefetch are the receiver's.
    """

    session_id: str
    stage: Stage
    elapsed_s: float
    way: str
    is_typed: bool
    is_dry_run: bool
    progress: tuple[Progress, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    tools: tuple[str, ...]
    prefetch: Mapping[str, Any] | None
    answer: JsonValue
    prefetch_outcome: str | None
    prefetch_reason: str | None
    metadata: tuple[Entry, ...]
    parts: tuple[Part, ...]
    missing: tuple[str, ...]
    rendered: Mapping[str, Any] | None
    hung_up: Mapping[str, Any] | None
    ends: tuple[Mapping[str, Any], ...]
    end_body: JsonValue
    runs: tuple[Run, ...]
    is_stored: bool

    @property
    def can_run_again(self) -> bool:
        """Tell whether the call is over."""
        return self.stage in ("over", "cut")

    @property
    def is_waiting(self) -> bool:
        """Tell whether the call will soon change without a form."""
        if self.stage != "over":
            return self.stage in ("beginning", "ending")
        was_accepted = any(end["sent"] and not end["failure"] for end in self.ends)
        is_running = any(run.state in _NOT_OVER for run in self.runs)
        return is_running or (was_accepted and not self.is_stored)


def sandbox_call(
    session_id: str,
    rehearsal: Rehearsal,
    *,
    is_live: bool,
    elapsed_s: float,
    record: CallRecord | None,
    mask: MaskPolicy,
) -> SandboxCall:
    """Return a call; `elapsed_s` is the time since it began, if it is live."""
    steps, about = _Steps(rehearsal.steps, mask), rehearsal.about
    prefetch, hung_up = steps.last("prefetched"), steps.last("hung_up")
    ends, stage = steps.all("end_delivered"), _stage(steps, is_live=is_live)
    deliveries, all_runs = (record.deliveries, record.runs) if record else ((), ())
    latest = [run for run in all_runs if run.is_latest and run.hook == "end_of_call"]
    runs = tuple(masked_run(run, mask) for run in latest)
    # The prefetch as the receiver stored it.
    received = next((each for each in deliveries if each.kind == "prefetch"), None)
    rendered = steps.last("rendered")
    unresolved = rendered["unresolved"].values() if rendered else ()
    answered = prefetch["answered"] if prefetch else None
    end_sent = ends[-1]["sent"] if ends else None
    return SandboxCall(
        session_id=session_id,
        stage=stage,
        elapsed_s=float(hung_up["duration_s"]) if hung_up else elapsed_s,
        way=str(steps.raw("attached").get("way", "")),
        is_typed=bool(about),
        is_dry_run=bool(about.get("dry_run")),
        progress=tuple(_progress(steps, stage, runs)),
        lines=tuple(_lines(steps)),
        notes=tuple(note for step in steps.all("attached", "noted") for note in step["notes"]),
        tools=tuple(tool["name"] for tool in steps.raw("rendered").get("tools", ())),
        prefetch=prefetch,
        answer=_read(answered["body"]) if answered else None,
        prefetch_outcome=received.outcome if received else None,
        prefetch_reason=masked_reason(received.reason, received.kind, mask) if received else None,
        metadata=tuple(_metadata(steps, mask)),
        parts=tuple(_parts(str(about.get("prompt", "")), steps, mask)),
        missing=tuple(dict.fromkeys(name for names in unresolved for name in names)),
        rendered=rendered,
        hung_up=hung_up,
        ends=tuple(ends),
        end_body=_read(end_sent["body"]) if end_sent else None,
        runs=runs,
        is_stored=record is not None and record.call.ended_at is not None,
    )


class _Steps:
    """The steps of a call, masked, and the raw ones for comparisons."""

    def __init__(self, steps: Sequence[dict[str, Any]], mask: MaskPolicy) -> None:
        self._raw = with_whole_turns(steps)
        self._masked = [masked_step(step, mask) for step in self._raw]

    def all(self, *kinds: str) -> list[dict[str, Any]]:
        """Return the masked steps of these kinds, in order."""
        return [step for step in self._masked if step["kind"] in kinds]

    def last(self, kind: str) -> dict[str, Any] | None:
        """Return the last masked step of a kind."""
        return next(reversed(self.all(kind)), None)

    def raw(self, kind: str) -> Mapping[str, Any]:
        """Return the last raw step of a kind; empty if there is none."""
        return next((step for step in reversed(self._raw) if step["kind"] == kind), {})


def _stage(steps: _Steps, *, is_live: bool) -> Stage:
    if steps.last("logged"):
        return "over"
    if not is_live:
        return "cut"
    if steps.last("hung_up"):
        return "ending"
    return "talking" if steps.last("rendered") else "beginning"


def _progress(steps: _Steps, stage: Stage, runs: Sequence[Run]) -> Iterator[Progress]:
    prefetch, ends = steps.last("prefetched"), steps.all("end_delivered")
    if prefetch is None:
        yield Progress("Prefetch", "now" if stage == "beginning" else "to-come")
    else:
        took = f"{prefetch['took_ms']:.0f} ms" if prefetch["sent"] else "none"
        yield Progress("Prefetch", "failed" if prefetch["failure"] else "done", took)
    talked: ProgressState = "done" if steps.last("hung_up") else "to-come"
    yield Progress("Talking", "now" if stage == "talking" else talked)
    ended: ProgressState = "done" if stage == "over" else "to-come"
    if any(end["failure"] for end in ends):
        ended = "failed"
    yield Progress("Ended", "now" if stage == "ending" else ended)
    yield Progress("Handlers", _handled(runs), f"{len(runs)} ran" if runs else "")


def _handled(runs: Sequence[Run]) -> ProgressState:
    states = {run.state for run in runs}
    if states & {"failed", "retrying"}:
        return "failed"
    return "now" if states & _NOT_OVER else "done" if runs else "to-come"


def _lines(steps: _Steps) -> Iterator[Line]:
    for step in steps.all("said", "function_called"):
        if step["kind"] == "said":
            role = step["role"]
            yield Line("user" if role == "user" else "assistant", role, step["text"])
        else:
            result = step["result"] if step["result"] is not None else " ".join(step["notes"])
            yield Line("tool", "tool", tool=Function(step["name"], step["params"], result))


def _metadata(steps: _Steps, mask: MaskPolicy) -> Iterator[Entry]:
    merged = steps.raw("merged")
    before: Mapping[str, JsonValue] = steps.raw("attached").get("metadata", {})
    after: Mapping[str, JsonValue] = merged.get("metadata", before)
    masked_before = dict(masked_metadata(before, mask))
    for key, (name, value) in masked_metadata(after, mask):
        if key in merged.get("added", ()):
            yield Entry(name, value, None, "added", "prefetch")
        elif key in merged.get("changed", ()):
            yield Entry(name, value, masked_before[key][1], "changed", "prefetch")
        else:
            yield Entry(name, value)
    for key in merged.get("removed", ()):
        name, value = masked_before[key]
        yield Entry(name, None, value, "gone", "prefetch")


def _parts(prompt: str, steps: _Steps, mask: MaskPolicy) -> Iterator[Part]:
    """Split the prompt; if masking changes it, or the team's model has another, it is one part."""
    rendered = steps.last("rendered")
    if rendered is None:
        return
    whole, parts = str(steps.raw("rendered")["prompt"]), list(_split(prompt, steps))
    text = "".join(part.text for part in parts).strip()
    is_masked = rendered["prompt"] != whole or mask.text(whole) != whole
    if is_masked or not whole.startswith(text):
        yield Part("plain", rendered["prompt"])
        return
    yield from parts
    yield Part("plain", whole[len(text) :])


def _split(prompt: str, steps: _Steps) -> Iterator[Part]:
    attached, merged = steps.raw("attached"), steps.raw("merged")
    variables = variables_of(
        merged.get("metadata", {}),
        from_phone=attached.get("from_phone"),
        to_phone=attached.get("to_phone"),
    )
    for piece in pieces(prompt, variables):
        kind = "plain" if piece.name is None else "filled" if piece.is_known else "missing"
        yield Part(cast("Any", kind), piece.text)
    if extra := merged.get("extra_prompt"):
        yield Part("plain", "\n\n")
        for piece in pieces(str(extra), variables):
            yield Part("extra" if piece.is_known else "missing", piece.text)


def _read(text: JsonValue) -> JsonValue:
    """Return the JSON of a text, or the text if it is none."""
    try:
        return read_json(text) if isinstance(text, str) else text
    except PayloadError:
        return text
