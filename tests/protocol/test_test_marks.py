"""What is rehearsed comes in marked, and only where that is allowed."""

from __future__ import annotations

import pytest

from millis_hooks import EndOfCall, MillisHooks, PrefetchRequest, PrefetchResponse
from millis_hooks.exceptions import SandboxOffError
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from millis_hooks.protocol.test_marks import HEADER, REHEARSALS, Mark, Marks, Purpose, mark_header
from millis_hooks.settings import Settings
from millis_hooks.webhooks import Marker
from support.app import END_OF_CALL, SECRET, MakeHooks, Rows, serving
from support.waiting import eventually

THEIRS = "the secret that a delivery brings"
SESSION = "-S"

Seen = list[tuple[str, bool, bool]]


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


def read(header: dict[str, str], session_id: str | None = SESSION, secret: str = THEIRS) -> Mark:
    return Marks(accepts=REHEARSALS).mark_of(raw(header), session_id, secret.encode())


@pytest.mark.parametrize(
    ("purpose", "mark"),
    [
        ("test", Mark("test")),
        ("sandbox", Mark("sandbox")),
        ("dry-run", Mark("sandbox", dry_run=True)),
        ("as-real", Mark("as_real")),
    ],
)
def test_a_mark_is_known_again(purpose: Purpose, mark: Mark) -> None:
    for session_id in (SESSION, " spaces around ", "not\0wanted", "\ud800", None):
        assert read(mark_header(THEIRS, session_id, purpose), session_id) == mark


@pytest.mark.parametrize(
    "header",
    [
        {},
        {HEADER: ""},
        {HEADER: "sandbox"},
        {HEADER: "dry-run é"},
        mark_header("another secret", SESSION, "sandbox"),
        mark_header(None, SESSION, "sandbox"),
        mark_header(THEIRS, "-another", "sandbox"),
        mark_header(THEIRS, None, "sandbox"),
        {HEADER: mark_header(THEIRS, SESSION, "test")[HEADER].replace("test", "dry-run")},
    ],
)
def test_other_values_are_not_marks(header: dict[str, str]) -> None:
    assert read(header) == Mark()


@pytest.mark.parametrize("purpose", ["sandbox", "dry-run", "as-real"])
def test_without_a_sandbox_what_is_simulated_is_refused(purpose: Purpose) -> None:
    header = raw(mark_header(THEIRS, SESSION, purpose))
    with pytest.raises(SandboxOffError):
        Marks().mark_of(header, SESSION, THEIRS.encode())


@pytest.mark.parametrize(
    ("settings", "url", "headers"),
    [
        ({}, "http://here/millis/prefetch", {"AUTHORIZATION": f"bearer  {THEIRS} "}),
        ({"secret_header": "X-Key"}, "http://here/millis/prefetch", {"x-key": THEIRS}),
        ({}, f"http://here/below/millis/{THEIRS.replace(' ', '%20')}/prefetch/", {"X-Key": "no"}),
        ({"prefix": "/a/b"}, "http://here/a/b/end-of-call", {"Authorization": f"Bearer {THEIRS}"}),
    ],
)
def test_the_secret_is_found_where_the_request_brings_it(
    settings: dict[str, str], url: str, headers: dict[str, str]
) -> None:
    marker = Marker(Settings.load(**settings), "test")
    assert read(marker(SESSION, url, headers.items())) == Mark("test")


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
        headers = {} if purpose is None else mark_header(SECRET, SESSION, purpose)
        query = prefetch_query(session_id=SESSION)
        first = client.get(f"/millis/prefetch?{query}", headers=headers)
        body = end_of_call_body(session_id=SESSION)
        last = client.post(END_OF_CALL, content=body, headers=headers)
        if last.status_code == 200:
            eventually(lambda: len(seen) == 2)
    return [first.status_code, last.status_code]


def test_handlers_are_reported_a_dry_run(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(sandbox=True)
    seen = watched(hooks)
    assert deliver(hooks, seen, "dry-run") == [200, 200]
    assert seen == [("prefetch", True, True), ("end_of_call", True, True)]
    stored = rows("SELECT source, dry_run FROM deliveries")
    assert stored == [{"source": "sandbox", "dry_run": 1}] * 2
    assert rows("SELECT source FROM calls") == [{"source": "sandbox"}]


def test_a_call_of_millis_is_neither_simulated_nor_a_dry_run(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True)
    seen = watched(hooks)
    deliver(hooks, seen, None)
    assert seen == [("prefetch", False, False), ("end_of_call", False, False)]


def test_production_stores_nothing_that_is_simulated(hooks: MillisHooks, rows: Rows) -> None:
    seen = watched(hooks)
    assert deliver(hooks, seen, "sandbox") == [403, 403]
    assert (seen, rows("SELECT * FROM deliveries")) == ([], [])


def test_simulated_calls_count_no_drift(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(sandbox=True)
    with serving(hooks) as client:
        headers = mark_header(SECRET, SESSION, "sandbox")
        body = end_of_call_body("hostile", session_id=SESSION)
        client.post(END_OF_CALL, content=body, headers=headers)
        eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    assert rows("SELECT * FROM drift") == []


def test_answers_to_simulated_calls_are_never_the_last_good_answer(make_hooks: MakeHooks) -> None:
    hooks = make_hooks(sandbox=True, prefetch_fallback="last_good")

    @hooks.on_prefetch
    def greet(call: PrefetchRequest) -> PrefetchResponse:
        if not call.sandbox:
            raise LookupError
        return PrefetchResponse(extra_prompt="Be kind.")

    with serving(hooks) as client:
        path = f"/millis/prefetch?{prefetch_query(session_id=SESSION)}"
        rehearsed = client.get(path, headers=mark_header(SECRET, SESSION, "sandbox"))
        assert rehearsed.json() == {"extra_prompt": "Be kind."}
        assert client.get(path).json() == {}


@pytest.mark.parametrize(
    ("purpose", "seen"), [("test", (True, False)), ("as-real", (False, False))]
)
def test_handlers_see_what_the_purpose_says(
    make_hooks: MakeHooks, purpose: Purpose, seen: tuple[bool, bool]
) -> None:
    hooks = make_hooks(sandbox=True)
    found = watched(hooks)
    deliver(hooks, found, purpose)
    assert found == [("prefetch", *seen), ("end_of_call", *seen)]


def test_a_mark_by_a_secret_of_one_agent_is_good_for_its_calls_alone(
    make_hooks: MakeHooks, rows: Rows
) -> None:
    own = "a-secret-of-one-agent-0001"
    hooks = make_hooks(agent_secrets={"-A": (own,)})
    with serving(hooks, headers={"authorization": f"Bearer {own}"}) as client:
        for session_id, agent_id in (("-S1", "-A"), ("-S2", "-B")):
            body = end_of_call_body(session_id=session_id, agent_id=agent_id)
            client.post(END_OF_CALL, content=body, headers=mark_header(own, session_id, "test"))
            # Of a secret that it did not bring.
            client.post(
                END_OF_CALL,
                content=end_of_call_body(session_id="-S3", agent_id="-A"),
                headers=mark_header(SECRET, "-S3", "test"),
            )
    stored = rows("SELECT DISTINCT session_id, source FROM deliveries ORDER BY session_id")
    assert stored == [
        {"session_id": "-S1", "source": "test"},
        {"session_id": "-S3", "source": None},
    ]


def test_an_open_service_reads_marks_too(make_hooks: MakeHooks, rows: Rows) -> None:
    hooks = make_hooks(secrets=(), insecure=True)
    with serving(hooks, headers={}) as client:
        for secret in (None, "any"):
            headers = mark_header(secret, SESSION, "test")
            if secret is not None:
                headers["authorization"] = f"Bearer {secret}"
            client.post(END_OF_CALL, content=end_of_call_body(session_id=SESSION), headers=headers)
    assert rows("SELECT source FROM deliveries") == [{"source": "test"}] * 2


@pytest.mark.parametrize(
    ("first", "last", "source"), [("test", None, None), (None, "test", "test")]
)
def test_a_call_is_what_its_end_is(
    make_hooks: MakeHooks, rows: Rows, first: Purpose | None, last: Purpose | None, source: str
) -> None:
    def headers(purpose: Purpose | None) -> dict[str, str]:
        return {} if purpose is None else mark_header(SECRET, SESSION, purpose)

    with serving(make_hooks()) as client:
        body = end_of_call_body(session_id=SESSION)
        client.get(f"/millis/prefetch?{prefetch_query(session_id=SESSION)}", headers=headers(first))
        eventually(lambda: rows("SELECT * FROM calls"))
        client.post(END_OF_CALL, content=body, headers=headers(last))
        eventually(lambda: rows("SELECT * FROM calls WHERE ended_at IS NOT NULL"))
    assert rows("SELECT source FROM calls") == [{"source": source}]


@pytest.mark.parametrize("marked_first", [True, False])
def test_an_end_that_millis_sent_beats_one_that_was_made_up(
    make_hooks: MakeHooks, rows: Rows, marked_first: bool
) -> None:
    headers = [mark_header(SECRET, SESSION, "test"), {}]
    with serving(make_hooks()) as client:
        for headers_of, length in zip(headers[:: 1 if marked_first else -1], (7, 9), strict=True):
            body = end_of_call_body(session_id=SESSION, duration_s=length)
            client.post(END_OF_CALL, content=body, headers=headers_of)
            eventually(lambda: rows(f"SELECT * FROM calls WHERE duration_s = {length}"))  # noqa: B023
    assert rows("SELECT source FROM calls") == [{"source": None}]


def test_a_test_counts_nowhere(make_hooks: MakeHooks) -> None:
    hooks = make_hooks()
    with serving(hooks) as client:
        marked = mark_header(SECRET, SESSION, "test")
        client.get(f"/millis/prefetch?{prefetch_query(session_id=SESSION)}", headers=marked)
        client.post(END_OF_CALL, content=end_of_call_body(session_id=SESSION), headers=marked)
        counted = ("millis_hooks_deliveries_total", "millis_hooks_prefetch_duration_seconds_count")
        assert not any(_values(hooks, *counted, "millis_hooks_store_duration_seconds_count"))
        client.post(END_OF_CALL, content=end_of_call_body(session_id="-real"))
        assert sum(_values(hooks, "millis_hooks_deliveries_total")) == 1


def _values(hooks: MillisHooks, *names: str) -> list[float]:
    return [
        sample.value
        for family in hooks.service.metrics.registry.collect()
        for sample in family.samples
        if sample.name in names
    ]
