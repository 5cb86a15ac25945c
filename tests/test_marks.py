"""What is rehearsed comes in marked, and only where that is allowed."""

from __future__ import annotations

import pytest
from conftest import END_OF_CALL, MakeHooks, Rows, eventually, serving

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse
from millis_hooks.exceptions import SandboxOffError
from millis_hooks.marks import HEADER, REHEARSALS, Mark, Marks, Purpose
from millis_hooks.samples import end_of_call_body, prefetch_query

KEY = b"a key of the tests"
SESSION = "-S"

Seen = list[tuple[str, bool, bool]]


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


@pytest.mark.parametrize(
    ("purpose", "mark"),
    [
        ("test", Mark("sandbox")),
        ("sandbox", Mark("sandbox")),
        ("dry-run", Mark("sandbox", dry_run=True)),
    ],
)
def test_a_mark_is_known_again(purpose: Purpose, mark: Mark) -> None:
    marks = Marks(KEY, accepts=REHEARSALS)
    assert marks.mark_of(raw(marks.header(SESSION, purpose)), SESSION) == mark


@pytest.mark.parametrize(
    "header",
    [
        {},
        {HEADER: ""},
        {HEADER: "sandbox"},
        {HEADER: "dry-run é"},
        Marks(b"another key").header(SESSION, "sandbox"),
        Marks(KEY).header("-another", "sandbox"),
        {HEADER: Marks(KEY).header(SESSION, "test")[HEADER].replace("test", "dry-run")},
    ],
)
def test_nothing_else_is_a_mark(header: dict[str, str]) -> None:
    assert Marks(KEY, accepts=REHEARSALS).mark_of(raw(header), SESSION) == Mark()


@pytest.mark.parametrize("purpose", ["sandbox", "dry-run"])
def test_without_a_sandbox_what_is_rehearsed_is_refused(purpose: Purpose) -> None:
    marks = Marks(KEY)
    with pytest.raises(SandboxOffError):
        marks.mark_of(raw(marks.header(SESSION, purpose)), SESSION)


def watched(hooks: MillisHooks) -> Seen:
    seen: Seen = []

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> None:
        seen.append(("prefetch", call.sandbox, call.dry_run))

    @hooks.on_end_of_call
    def note(call: EndOfCall) -> None:
        seen.append(("end_of_call", call.sandbox, call.dry_run))

    return seen


def deliver(hooks: MillisHooks, seen: Seen, purpose: Purpose | None) -> list[int]:
    """Have a call begin and end, and wait for its handler if both were taken."""
    with serving(hooks) as client:
        headers = {} if purpose is None else hooks.service.marks.header(SESSION, purpose)
        query = prefetch_query(session_id=SESSION)
        first = client.get(f"/millis/prefetch?{query}", headers=headers)
        body = end_of_call_body(session_id=SESSION)
        last = client.post(END_OF_CALL, content=body, headers=headers)
        if last.status_code == 200:
            eventually(lambda: len(seen) == 2)
    return [first.status_code, last.status_code]


def test_handlers_are_told_of_a_dry_run(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(sandbox=True)
    seen = watched(hooks)
    assert deliver(hooks, seen, "dry-run") == [200, 200]
    assert seen == [("prefetch", True, True), ("end_of_call", True, True)]
    stored = rows("SELECT source, dry_run FROM deliveries")
    assert stored == [{"source": "sandbox", "dry_run": 1}] * 2
    assert rows("SELECT source FROM calls") == [{"source": "sandbox"}]


def test_a_call_of_millis_is_neither_rehearsed_nor_a_dry_run(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True)
    seen = watched(hooks)
    deliver(hooks, seen, None)
    assert seen == [("prefetch", False, False), ("end_of_call", False, False)]


def test_production_stores_nothing_that_is_rehearsed(hooks: MillisHooks, rows: Rows) -> None:
    seen = watched(hooks)
    assert deliver(hooks, seen, "sandbox") == [403, 403]
    assert (seen, rows("SELECT * FROM deliveries")) == ([], [])


def test_what_is_rehearsed_is_no_drift(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(sandbox=True)
    with serving(hooks) as client:
        headers = hooks.service.marks.header(SESSION, "sandbox")
        body = end_of_call_body("hostile", session_id=SESSION)
        client.post(END_OF_CALL, content=body, headers=headers)
        eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    assert rows("SELECT * FROM drift") == []


def test_what_a_rehearsal_was_told_is_no_last_good_answer(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True, prefetch_fallback="last_good")

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> PrefetchResponse:
        if not call.sandbox:
            raise LookupError
        return PrefetchResponse(extra_prompt="Be kind.")

    with serving(hooks) as client:
        path = f"/millis/prefetch?{prefetch_query(session_id=SESSION)}"
        rehearsed = client.get(path, headers=hooks.service.marks.header(SESSION, "sandbox"))
        assert rehearsed.json() == {"extra_prompt": "Be kind."}
        assert client.get(path).json() == {}
