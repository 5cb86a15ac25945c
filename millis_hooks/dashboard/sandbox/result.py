"""A call of the sandbox as its page shows it: made of its steps, and of what the call log has."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

from pydantic import JsonValue

from ...call_log.queries.records import CallRecord, Delivery, Run
from ...call_log.redaction import masked_run
from ...exceptions import PayloadError
from ...masking.policy import MaskPolicy
from ...protocol.reading import read_json
from ...protocol.variables import pieces, variables_of
from ...sandbox.emulator.store import Rehearsal
from ...sandbox.steps import masked_step, with_whole_turns
from ..formats import as_text
from ..payloads import Entry, masked_metadata, reason_of
from ..transcript import Function, Line, grouped

#: `cut`: the process that held it has ended.
Stage: TypeAlias = Literal["beginning", "talking", "ending", "over", "cut"]
_UNDER_WAY = frozenset({"pending", "running"})


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the prompt: words as written, a variable that was filled in or is missing, or what
    the prefetch added.
    """

    kind: Literal["plain", "filled", "missing", "extra"]
    text: str


@dataclass(frozen=True, slots=True)
class Progress:
    """A stage on the way, and how it stands."""

    name: str
    state: Literal["done", "now", "failed", "to-come"]
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rehearsed:
    """The call. Steps are as `steps.Step.as_json` has them, masked."""

    session_id: str
    stage: Stage
    elapsed_s: float
    way: str
    #: It was begun on this page, so that it is held here, too.
    is_typed: bool
    is_dry_run: bool
    progress: tuple[Progress, ...]
    lines: tuple[Line, ...]
    #: What a person should know of how the call was asked for, and of what was ignored in it.
    notes: tuple[str, ...]
    tools: tuple[str, ...]
    prefetch: Mapping[str, Any] | None
    answer: JsonValue
    #: What the receiver made of the prefetch and why, with tracebacks: as the call log has it.
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
    def is_waiting(self) -> bool:
        """Whether something will change by itself soon."""
        if self.stage in ("beginning", "ending"):
            return True
        return self.stage == "over" and (self._is_unread or self._is_handled_now)

    @property
    def _is_handled_now(self) -> bool:
        return any(run.state in _UNDER_WAY for run in self.runs)

    @property
    def _is_unread(self) -> bool:
        """Whether an end was taken and the call log has nothing of it yet."""
        return not self.is_stored and any(end["sent"] and not end["failure"] for end in self.ends)


def rehearsed(
    session_id: str,
    note: Rehearsal,
    *,
    is_live: bool,
    elapsed_s: float,
    record: CallRecord | None,
    mask: MaskPolicy,
) -> Rehearsed:
    """Put together what is known of a call; `elapsed_s` is since it began, if it is live."""
    steps = _Steps(note.steps, mask)
    stage = _stage(steps, is_live=is_live)
    runs = tuple(_runs(record, mask)) if record else ()
    prefetch = steps.last("prefetched")
    attached = steps.last("attached") or {}
    ends = tuple(steps.all("end_delivered"))
    received = _received(record)
    return Rehearsed(
        session_id=session_id,
        stage=stage,
        elapsed_s=_duration_s(steps, elapsed_s),
        way=str(attached.get("way", "")),
        is_typed=bool(note.about),
        is_dry_run=bool(note.about.get("dry_run")),
        progress=tuple(_progress(steps, stage, runs)),
        lines=grouped(tuple(_lines(steps))),
        notes=tuple(_notes(steps)),
        tools=tuple(tool["name"] for tool in steps.last_raw("rendered").get("tools", ())),
        prefetch=prefetch,
        answer=_read((prefetch or {}).get("answered")),
        prefetch_outcome=received.outcome if received else None,
        prefetch_reason=reason_of(received, mask) if received else None,
        metadata=tuple(_entries(steps, mask)),
        parts=tuple(_parts(note, steps, mask)),
        missing=tuple(_missing(steps)),
        rendered=steps.last("rendered"),
        hung_up=steps.last("hung_up"),
        ends=ends,
        end_body=_read_text(ends[-1]["sent"]["body"]) if ends and ends[-1]["sent"] else None,
        runs=runs,
        is_stored=record is not None and record.call.ended_at is not None,
    )


class _Steps:
    """The steps of one call, as they may be seen, and as they are."""

    def __init__(self, steps: Sequence[dict[str, Any]], mask: MaskPolicy) -> None:
        self.raw = with_whole_turns(steps)
        self._seen = [masked_step(step, mask) for step in self.raw]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._seen)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [step for step in self._seen if step["kind"] == kind]

    def last(self, kind: str) -> dict[str, Any] | None:
        return next(reversed(self.all(kind)), None)

    def last_raw(self, kind: str) -> Mapping[str, Any]:
        return next((step for step in reversed(self.raw) if step["kind"] == kind), {})


def _runs(record: CallRecord, mask: MaskPolicy) -> Iterator[Run]:
    for run in record.runs:
        if run.is_latest and run.hook == "end_of_call":
            yield masked_run(run, mask)


def _stage(steps: _Steps, *, is_live: bool) -> Stage:
    if steps.last("logged"):
        return "over"
    if not is_live:
        return "cut"
    if steps.last("hung_up"):
        return "ending"
    return "talking" if steps.last("rendered") else "beginning"


def _duration_s(steps: _Steps, elapsed_s: float) -> float:
    ended = steps.last("hung_up")
    return float(ended["duration_s"]) if ended else elapsed_s


def _progress(steps: _Steps, stage: Stage, runs: Sequence[Run]) -> Iterator[Progress]:
    asked, ended = steps.last("prefetched"), steps.last("hung_up")
    if asked is None:
        state = "now" if stage == "beginning" else "to-come"
        yield Progress("Prefetch", cast("Any", state))
    else:
        took = f"{asked['took_ms']:.0f} ms" if asked["sent"] else "none"
        yield Progress("Prefetch", "failed" if asked["failure"] else "done", took)
    yield Progress("Talking", "now" if stage == "talking" else "done" if ended else "to-come")
    failed = any(end["failure"] for end in steps.all("end_delivered"))
    state = "failed" if failed else "done" if stage == "over" else "to-come"
    yield Progress("Ended", "now" if stage == "ending" else cast("Any", state))
    yield Progress("Handlers", _of_handlers(runs), f"{len(runs)} ran" if runs else "")


def _of_handlers(runs: Sequence[Run]) -> Literal["done", "now", "failed", "to-come"]:
    states = {run.state for run in runs}
    if states & {"parked", "failed"}:
        return "failed"
    return "now" if states & _UNDER_WAY else "done" if runs else "to-come"


def _lines(steps: Iterable[Mapping[str, Any]]) -> Iterator[Line]:
    for step in steps:
        if step["kind"] == "said":
            role = "user" if step["role"] == "user" else "assistant"
            yield Line(cast("Any", role), role, step["text"])
        elif step["kind"] == "function_called":
            result = step["result"] if step["result"] is not None else " ".join(step["notes"])
            yield Line("tool", "tool", tool=Function(step["name"], step["params"], result))


def _notes(steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for step in steps:
        if step["kind"] in {"attached", "noted"}:
            yield from step["notes"]


def _entries(steps: _Steps, mask: MaskPolicy) -> Iterator[Entry]:
    attached, merged = steps.last_raw("attached"), steps.last_raw("merged")
    before: Mapping[str, JsonValue] = attached.get("metadata", {})
    after: Mapping[str, JsonValue] = merged.get("metadata", before)
    was = dict(masked_metadata(before, mask))
    for key, (name, value) in masked_metadata(after, mask):
        if key in merged.get("added", ()):
            yield Entry(name, value, None, "added", "prefetch")
        elif key in merged.get("changed", ()):
            yield Entry(name, value, was[key][1], "changed", "prefetch")
        else:
            yield Entry(name, value)
    for key in merged.get("removed", ()):
        name, value = was[key]
        yield Entry(name, None, value, "gone", "prefetch")


def _parts(note: Rehearsal, steps: _Steps, mask: MaskPolicy) -> Iterator[Part]:
    """Take the prompt apart; where something of it is hidden, or it is another, it is one part."""
    rendered, shown = steps.last_raw("rendered"), steps.last("rendered")
    if shown is None:
        return
    whole, parts = str(rendered["prompt"]), list(_own_parts(note, steps))
    text = "".join(part.text for part in parts)
    if shown["prompt"] != whole or mask.text(whole) != whole or not whole.startswith(text.strip()):
        yield Part("plain", shown["prompt"])
        return
    yield from parts
    yield Part("plain", whole[len(text.strip()) :])


def _own_parts(note: Rehearsal, steps: _Steps) -> Iterator[Part]:
    attached, merged = steps.last_raw("attached"), steps.last_raw("merged")
    variables = variables_of(
        merged.get("metadata", {}),
        from_phone=attached.get("from_phone"),
        to_phone=attached.get("to_phone"),
    )
    for piece in pieces(str(note.about.get("prompt", "")), variables):
        kind = "plain" if piece.name is None else "filled" if piece.is_known else "missing"
        yield Part(cast("Any", kind), piece.text)
    if extra := merged.get("extra_prompt"):
        yield Part("plain", "\n\n")
        for piece in pieces(str(extra), variables):
            yield Part("extra" if piece.is_known else "missing", piece.text)


def _missing(steps: _Steps) -> Iterator[str]:
    unresolved = (steps.last("rendered") or {}).get("unresolved", {})
    yield from dict.fromkeys(name for names in unresolved.values() for name in names)


def _received(record: CallRecord | None) -> Delivery | None:
    """Return the prefetch as the receiver had it."""
    asked = (each for each in record.deliveries if each.kind == "prefetch") if record else ()
    return next(iter(asked), None)


def _read(answered: Mapping[str, Any] | None) -> JsonValue:
    return None if answered is None else _read_text(answered["body"])


def _read_text(text: JsonValue) -> JsonValue:
    """Return JSON that is in a text, or the text."""
    if not isinstance(text, str):
        return text
    try:
        return read_json(text)
    except PayloadError:
        return as_text(text)
