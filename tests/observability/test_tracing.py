"""A call's trace, from its prefetch to the attempts of its handlers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from millis_hooks import ConfigError, PrefetchRequest
from millis_hooks.call_log.transfer.export import call_line
from millis_hooks.call_log.transfer.import_ import read_call_line
from millis_hooks.exceptions import PayloadError
from millis_hooks.observability.log_records import trace_id
from millis_hooks.observability.tracing import Tracing
from millis_hooks.protocol.events import EndOfCall
from millis_hooks.protocol.samples import end_of_call_body, prefetch_query
from support.app import END_OF_CALL, PREFETCH, MakeHooks, Rows, serving
from support.storage import ended
from support.waiting import eventually

NUMBER = "+14155550134"
SENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
BEGIN, END = (
    "/millis/prefetch?" + prefetch_query(session_id="-s1"),
    end_of_call_body("v2", session_id="-s1"),
)

Spans = Callable[[], dict[str, ReadableSpan]]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Spans]:
    """The spans that have ended, by name, of services that are started meanwhile."""
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    monkeypatch.setattr("millis_hooks.observability.tracing._provider", lambda: provider)
    yield lambda: {span.name: span for span in kept.get_finished_spans()}
    provider.shutdown()


@pytest.fixture
def make_traced(make_hooks: MakeHooks) -> Callable[[], Any]:
    def make() -> Any:
        hooks = make_hooks(tracing=True)

        @hooks.on_prefetch
        async def greet(call: PrefetchRequest) -> str:
            return f"{trace.get_current_span().get_span_context().span_id:016x}"

        @hooks.on_end_of_call(max_attempts=1)
        def book(call: EndOfCall) -> None:
            raise RuntimeError(f"no slot for {NUMBER}")

        return hooks

    return make


def parent_of(span: ReadableSpan) -> int | None:
    return span.parent.span_id if span.parent else None


def context_of(span: ReadableSpan) -> SpanContext:
    context = span.get_span_context()
    assert context is not None
    return context


def id_of(span: ReadableSpan) -> int:
    return context_of(span).span_id


def test_a_call_is_one_trace(make_traced: Callable[[], Any], spans: Spans) -> None:
    with serving(make_traced()) as client:
        client.get(BEGIN)
        client.post(END_OF_CALL, content=END)
        eventually(lambda: "run book" in spans())
    told = spans()
    assert len({context_of(span).trace_id for span in told.values()}) == 1
    assert parent_of(told["prefetch"]) is None
    assert parent_of(told["handler greet"]) == id_of(told["prefetch"])
    assert parent_of(told["end-of-call"]) == id_of(told["prefetch"])
    assert parent_of(told["run book"]) == id_of(told["end-of-call"])


def test_a_restart_between_beginning_end_and_handlers_does_not_cut_it(
    make_traced: Callable[[], Any], spans: Spans, rows: Rows
) -> None:
    with serving(make_traced()) as client:
        client.get(BEGIN)
        eventually(lambda: rows("SELECT * FROM calls"))
    with serving(make_traced()) as client:
        client.post(END_OF_CALL, content=END)
        eventually(lambda: "run book" in spans())
    told = spans()
    assert parent_of(told["end-of-call"]) == id_of(told["prefetch"])
    assert parent_of(told["run book"]) == id_of(told["end-of-call"])


@pytest.mark.both_databases
def test_the_context_is_kept_in_the_row_as_w3c_writes_it(
    make_traced: Callable[[], Any], spans: Spans, rows: Rows
) -> None:
    with serving(make_traced()) as client:
        client.get(BEGIN)
    context = context_of(spans()["prefetch"])
    [kept] = rows("SELECT trace FROM deliveries")
    flags = f"{context.trace_flags:02x}"
    assert kept["trace"] == f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"


def test_what_handlers_trace_themselves_belongs_to_their_span(
    make_traced: Callable[[], Any], spans: Spans
) -> None:
    with serving(make_traced()) as client:
        seen = client.get(BEGIN).json()["extra_prompt"]
    assert seen == f"{id_of(spans()['handler greet']):016x}"


def test_the_trace_of_a_sender_is_gone_on_with(
    make_traced: Callable[[], Any], spans: Spans
) -> None:
    with serving(make_traced()) as client:
        client.get(BEGIN, headers={"traceparent": SENT})
        client.post(END_OF_CALL, content=END, headers={"traceparent": SENT})
    told = spans()
    assert parent_of(told["prefetch"]) == 0xB7AD6B7169203331
    assert parent_of(told["end-of-call"]) == id_of(told["prefetch"])
    assert [link.context.span_id for link in told["end-of-call"].links] == [0xB7AD6B7169203331]


@pytest.mark.parametrize("hostile", ["", "00-", "x" * 10_000, "00-" + "0" * 32 + "-1-01"])
def test_an_invalid_trace_context_begins_a_new_trace(
    hostile: str, make_traced: Callable[[], Any], spans: Spans
) -> None:
    with serving(make_traced()) as client:
        assert client.get(BEGIN, headers={"traceparent": hostile}).status_code == 200
    assert parent_of(spans()["prefetch"]) is None


def test_spans_hold_no_numbers(make_traced: Callable[[], Any], spans: Spans) -> None:
    with serving(make_traced()) as client:
        client.get(PREFETCH)
        client.post(END_OF_CALL, content=END)
        eventually(lambda: "run book" in spans())
    told = "".join(span.to_json() for span in spans().values())
    assert "RuntimeError" in told
    assert NUMBER not in told


def test_what_went_wrong_shows(make_traced: Callable[[], Any], spans: Spans) -> None:
    with serving(make_traced()) as client:
        client.post(END_OF_CALL, content=b"{")
        client.post(END_OF_CALL, content=END)
        eventually(lambda: "run book" in spans())
    assert not spans()["run book"].status.is_ok


def test_of_calls_that_continue_so_many_are_remembered_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("millis_hooks.observability.tracing.MOST_REMEMBERED", 1)
    provider = TracerProvider()
    tracing = Tracing(provider)
    first = tracing.delivery("prefetch", "-s1", ())
    second = tracing.delivery("prefetch", "-s2", ())
    ends = [tracing.delivery("end_of_call", session, ()) for session in ("-s1", "-s2")]
    assert trace_id(ends[0].context) != trace_id(first.context)
    assert trace_id(ends[1].context) == trace_id(second.context)
    provider.shutdown()


def test_calls_are_taken_where_tracing_is_switched_off_for_the_process(
    make_traced: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millis_hooks.observability.tracing._provider", trace.NoOpTracerProvider)
    with serving(make_traced()) as client:
        assert client.get(BEGIN).status_code == 200
        assert client.post(END_OF_CALL, content=END).status_code == 200


def test_without_the_extra_the_setting_says_what_to_install(
    make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start() -> None:
        async with make_hooks(tracing=True).running():
            pass

    monkeypatch.setitem(sys.modules, "millis_hooks.observability.tracing", None)
    with pytest.raises(ConfigError, match=r"millis-hooks\[otel\]"):
        asyncio.run(start())


def test_nothing_of_it_is_imported_where_it_is_not_wanted() -> None:
    script = """
import asyncio, sys
from millis_hooks import MillisHooks
async def live():
    async with MillisHooks(insecure=True).running(): pass
asyncio.run(live())
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_an_exported_call_keeps_its_trace_when_it_is_imported() -> None:
    stored = ended("-s1", trace=SENT)
    line = b"".join(call_line({}, [stored], masked=False))
    [read] = read_call_line(json.loads(line))
    assert read.trace == SENT
    hostile = line.replace(SENT.encode(), b"anything else")
    with pytest.raises(PayloadError, match="trace"):
        read_call_line(json.loads(hostile))
