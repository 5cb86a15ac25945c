"""Millis itself is asked for calls of its own only: not in a rehearsal, a sample or a test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import httpx2
import pytest

from millis_hooks import ConfigError, EndOfCall, MillisApi, MillisHooks, PrefetchRequest
from millis_hooks.exceptions import MillisNotFoundError, MillisRefusedError
from millis_hooks.handlers.made_up_calls import MillisRequest, stop_following_threads
from millis_hooks.millis_api import StartedCall
from millis_hooks.protocol.samples import end_of_call_body
from millis_hooks.protocol.test_marks import Purpose, mark_header
from millis_hooks.testing import HooksClient
from support.app import END_OF_CALL, SECRET, MakeHooks, serving
from support.fake_millis import FakeMillis, served
from support.programs import pytest_in
from support.waiting import eventually

OURS, THEIRS = "+14155550199", "+14155550134"
SESSION = "-S"

Asking = Callable[[], Awaitable[object]]
Way = Callable[[Asking], Awaitable[None]]


async def directly(asking: Asking) -> None:
    await asking()


async def in_a_task(asking: Asking) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(_await(asking))


async def in_a_thread(asking: Asking) -> None:
    thread = threading.Timer(0, lambda: asyncio.run(_await(asking)))
    thread.start()
    await asyncio.to_thread(thread.join)


async def in_the_loop_s_pool(asking: Asking) -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, lambda: asyncio.run(_await(asking)))


async def in_a_pool_of_its_own(asking: Asking) -> None:
    with ThreadPoolExecutor(1) as pool:
        await asyncio.wrap_future(pool.submit(lambda: asyncio.run(_await(asking))))


WAYS: list[Way] = [directly, in_a_task, in_a_thread, in_the_loop_s_pool, in_a_pool_of_its_own]


async def _await(asking: Asking) -> object:
    return await asking()


def asks(hooks: MillisHooks, way: Way, ended: list[EndOfCall]) -> None:
    """Have the handler of an ended call start another, unless that one was started by it."""

    @hooks.on_end_of_call
    async def call_back(call: EndOfCall) -> None:
        if "follows" not in call.metadata:
            about = {"follows": call.session_id}
            await way(lambda: hooks.millis.start_outbound_call(OURS, THEIRS, metadata=about))
        ended.append(call)


def deliver(
    hooks: MillisHooks, ended: list[EndOfCall], purpose: Purpose | None, session_id: str = SESSION
) -> None:
    headers = {} if purpose is None else mark_header(SECRET, session_id, purpose)
    with serving(hooks) as client:
        client.post(END_OF_CALL, content=end_of_call_body(session_id=session_id), headers=headers)
        eventually(lambda: any(call.session_id == session_id for call in ended))


def reaching(make_hooks: MakeHooks, url: str, **settings: object) -> MillisHooks:
    return make_hooks(api_key="k", api_url=url, reconcile_minutes=0, **settings)


@pytest.mark.parametrize("way", WAYS)
def test_a_sample_starts_no_call_however_its_handler_asks(make_hooks: MakeHooks, way: Way) -> None:
    ended: list[EndOfCall] = []
    with served(millis := FakeMillis()) as url:
        hooks = reaching(make_hooks, url)
        asks(hooks, way, ended)
        deliver(hooks, ended, "test")
    assert millis.paths == []


@pytest.mark.parametrize("way", [directly, in_a_thread, in_the_loop_s_pool])
def test_the_handler_of_a_real_call_reaches_millis_also_after_a_sample(
    make_hooks: MakeHooks, way: Way
) -> None:
    marked: list[tuple[str, Purpose | None]] = [("-S1", "test"), ("-S2", None)]
    with served(millis := FakeMillis()) as url:
        ended: list[EndOfCall] = []
        for session_id, purpose in marked:
            hooks = reaching(make_hooks, url)
            asks(hooks, way, ended)
            deliver(hooks, ended, purpose, session_id)
    assert [told["metadata"] for _, told in millis.asked] == [{"follows": "-S2"}]


def test_a_pool_s_thread_that_a_sample_began_asks_millis_for_a_real_call(
    make_hooks: MakeHooks,
) -> None:
    ended: list[EndOfCall] = []
    with served(millis := FakeMillis()) as url, ThreadPoolExecutor(1) as pool:

        async def by_the_pool(asking: Asking) -> None:
            await asyncio.wrap_future(pool.submit(lambda: asyncio.run(_await(asking))))

        hooks = reaching(make_hooks, url)
        asks(hooks, by_the_pool, ended)
        with serving(hooks) as client:
            for session_id, purpose in (("-S1", "test"), ("-S2", None)):
                headers = mark_header(SECRET, session_id, "test") if purpose else {}
                body = end_of_call_body(session_id=session_id)
                client.post(END_OF_CALL, content=body, headers=headers)
                eventually(lambda: session_id in [one.session_id for one in ended])  # noqa: B023
    assert [told["metadata"] for _, told in millis.asked] == [{"follows": "-S2"}]


@pytest.mark.parametrize("key", [None, "a-key-of-the-sandbox-01"])
def test_a_simulated_call_starts_its_call_in_the_sandbox(
    make_hooks: MakeHooks, key: str | None
) -> None:
    ended: list[EndOfCall] = []
    with served(millis := FakeMillis()) as url:
        hooks = reaching(make_hooks, url, sandbox=True, sandbox_pace=1000, sandbox_key=key)
        asks(hooks, in_a_thread, ended)
        headers = mark_header(SECRET, SESSION, "sandbox")
        with serving(hooks) as client:
            client.post(END_OF_CALL, content=end_of_call_body(session_id=SESSION), headers=headers)
            eventually(lambda: len(ended) == 2)
    assert millis.asked == []
    assert (ended[1].metadata, ended[1].sandbox) == ({"follows": SESSION}, True)


def test_an_address_that_names_a_scenario_of_the_sandbox_keeps_it(make_hooks: MakeHooks) -> None:
    ended: list[EndOfCall] = []
    url = "http://127.0.0.1:9/sandbox/api/as/voicemail"
    hooks = reaching(make_hooks, url, sandbox=True, sandbox_pace=1000)
    asks(hooks, directly, ended)
    headers = mark_header(SECRET, SESSION, "sandbox")
    with serving(hooks) as client:
        client.post(END_OF_CALL, content=end_of_call_body(session_id=SESSION), headers=headers)
        eventually(lambda: len(ended) == 2)
    assert ended[1].outcome == "voicemail"


def test_a_dry_run_starts_not_even_a_simulated_call(
    make_hooks: MakeHooks, caplog: pytest.LogCaptureFixture
) -> None:
    ended: list[EndOfCall] = []
    hooks = reaching(make_hooks, "http://127.0.0.1:9", sandbox=True)
    asks(hooks, directly, ended)
    with caplog.at_level("INFO", "millis_hooks"):
        deliver(hooks, ended, "dry-run")
    assert (
        "not sent to Millis, for a call that was made up: POST start_outbound_call" in caplog.text
    )


def test_the_sandbox_refuses_as_millis_does(make_hooks: MakeHooks) -> None:
    said: list[str] = []
    hooks = make_hooks(sandbox=True, prefetch_budget_s=30)

    @hooks.on_prefetch
    async def look(call: PrefetchRequest) -> None:
        api = MillisApi("a-key-of-its-own")
        with pytest.raises(MillisNotFoundError):
            await api.call_log("-nobody")
        with pytest.raises(MillisRefusedError) as refused:
            await api.start_outbound_call(OURS, THEIRS, agent_config={"prompt": 7})
        said.append(str(refused.value))

    with serving(hooks) as client:
        query = f"session_id={SESSION}"
        marked = mark_header(SECRET, SESSION, "sandbox")
        client.get(f"/millis/prefetch?{query}", headers=marked)
    assert "prompt" in said[0]


@pytest.fixture
def testing(tmp_path: Path) -> MillisHooks:
    """An application of a team with the key of its production, which no test may use."""
    return MillisHooks(database_url=f"sqlite:///{tmp_path}/calls.db", api_key="production")


def test_a_test_sees_what_would_have_been_asked(testing: MillisHooks) -> None:
    started: list[StartedCall] = []

    @testing.on_end_of_call
    async def look_and_call(call: EndOfCall) -> None:
        # The key does not matter, nor the network it is given.
        api = MillisApi("own", transport=httpx2.AsyncHTTPTransport())
        assert [one async for one in api.call_logs()] == []
        with pytest.raises(MillisNotFoundError):
            await api.call_log("-other")
        started.append(await testing.millis.start_outbound_call(OURS, call.customer_phone))
        started.append(await testing.millis.register_call(agent_id="-A"))
        await testing.millis.terminate("-S", "Good bye.")

    with HooksClient(testing) as client:
        run = client.end_of_call().run("look_and_call")
        assert (run.state, run.attempts[-1].error_message) == ("succeeded", None)
        assert [(one.method, one.path, one.body) for one in client.millis_requests] == [
            ("GET", "call-logs", None),
            ("GET", "call-logs/-other", None),
            ("POST", "start_outbound_call", {"from_phone": OURS, "to_phone": THEIRS}),
            ("POST", "register_call", {"agent_id": "-A"}),
            ("POST", "sessions/-S/terminate", {"message": "Good bye."}),
        ]
    assert all(one.session_id and one.call_id for one in started)


def test_a_test_may_answer_as_millis_would(testing: MillisHooks) -> None:
    @testing.on_end_of_call(max_attempts=1)
    async def call_back(call: EndOfCall) -> None:
        await testing.millis.start_outbound_call(OURS, call.customer_phone)

    async def break_down(request: MillisRequest) -> tuple[int, bytes]:
        return 500, b'{"detail": "out of order"}'

    with HooksClient(testing) as client:
        client.millis_answers = break_down
        run = client.end_of_call().run("call_back")
    assert (run.state, run.attempts[-1].error_type) == ("failed", "CallMayHaveBegunError")
    assert "out of order" in (run.reason or "")


def test_a_test_needs_no_key(tmp_path: Path) -> None:
    hooks = MillisHooks(database_url=f"sqlite:///{tmp_path}/calls.db")
    asks(hooks, directly, [])
    with HooksClient(hooks) as client:
        assert client.end_of_call().run("call_back").state == "succeeded"
        assert [one.path for one in client.millis_requests] == ["start_outbound_call"]
    with pytest.raises(ConfigError, match="MILLIS_HOOKS_API_KEY"):
        MillisApi.of(hooks.settings)


def test_code_beside_the_handlers_asks_nothing_in_a_test_either(testing: MillisHooks) -> None:
    with HooksClient(testing) as client:
        asyncio.run(testing.millis.register_call(agent_id="-A"))
        assert client.millis_requests == [
            MillisRequest("POST", "register_call", {}, {"agent_id": "-A"}, testing.millis.base_url)
        ]


def test_a_replacement_that_a_test_gives_itself_is_asked(testing: MillisHooks) -> None:
    answered = httpx2.MockTransport(lambda _: httpx2.Response(200, json={"session_id": "-mine"}))
    with HooksClient(testing) as client:
        api = MillisApi("own", transport=answered)
        assert asyncio.run(api.start_outbound_call(OURS, THEIRS)).session_id == "-mine"
        assert client.millis_requests == []


def test_work_after_the_handler_reaches_no_service_during_a_test(testing: MillisHooks) -> None:
    released, done = threading.Event(), threading.Event()

    def call_later() -> None:
        released.wait()
        asyncio.run(testing.millis.start_outbound_call(OURS, THEIRS))
        done.set()

    @testing.on_end_of_call
    def begin(call: EndOfCall) -> None:
        threading.Thread(target=call_later, daemon=True).start()

    with HooksClient(testing) as client:
        client.end_of_call()
        released.set()
        assert done.wait(10)
        assert [one.path for one in client.millis_requests] == ["start_outbound_call"]


def a_thread_that_serves(jobs: Queue[Callable[[], Awaitable[object]]], told: Queue[object]) -> None:
    """Begin one thread for the jobs of all calls, as many teams do with the first call."""

    async def serve() -> None:
        while True:
            try:
                told.put(await jobs.get()())
            except MillisRefusedError as refused:
                told.put(refused)

    threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()


def test_a_thread_that_a_sample_began_and_that_continues_answers_no_real_call(
    make_hooks: MakeHooks,
) -> None:
    jobs: Queue[Callable[[], Awaitable[object]]] = Queue()
    told: Queue[object] = Queue()
    handled: list[str] = []
    with served(millis := FakeMillis()) as url:
        hooks = reaching(make_hooks, url)

        @hooks.on_end_of_call
        def begin(call: EndOfCall) -> None:
            if call.is_made_up:
                a_thread_that_serves(jobs, told)
            else:
                jobs.put(lambda: hooks.millis.start_outbound_call(OURS, THEIRS))
            handled.append(call.session_id)

        with serving(hooks) as client:
            for session_id, purpose in (("-S1", "test"), ("-S2", None)):
                headers = mark_header(SECRET, session_id, "test") if purpose else {}
                body = end_of_call_body(session_id=session_id)
                client.post(END_OF_CALL, content=body, headers=headers)
                eventually(lambda: session_id in handled)  # noqa: B023
            refused = told.get(timeout=10)
    assert isinstance(refused, MillisRefusedError)
    assert "that handler has ended" in str(refused)
    assert millis.paths == []


def test_python_s_own_methods_are_back_after_the_service(make_hooks: MakeHooks) -> None:
    methods = (threading.Thread.start, ThreadPoolExecutor.submit)
    ended: list[EndOfCall] = []
    for _ in range(2):
        hooks = reaching(make_hooks, "http://127.0.0.1:9")
        asks(hooks, in_a_thread, ended)
        deliver(hooks, ended, "test")
        assert (threading.Thread.start, ThreadPoolExecutor.submit) == methods


def test_what_another_library_puts_there_meanwhile_stays(
    make_hooks: MakeHooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[EndOfCall] = []

    async def traced_from_now_on(asking: Asking) -> None:
        start = threading.Thread.start
        traced.append(lambda thread: start(thread))
        monkeypatch.setattr(threading.Thread, "start", traced[-1])
        await in_a_thread(asking)

    traced: list[Callable[[threading.Thread], None]] = []
    with served(millis := FakeMillis()) as url:
        for _ in range(2):
            hooks = reaching(make_hooks, url)
            asks(hooks, traced_from_now_on, ended)
            deliver(hooks, ended, "test")
            assert threading.Thread.start is traced[-1]
    assert millis.paths == []
    monkeypatch.undo()
    stop_following_threads()


def test_a_handler_that_a_test_calls_itself_is_told_to_use_the_client(
    testing: MillisHooks,
) -> None:
    with pytest.raises(MillisRefusedError, match=r"hooks_client.*-p no:millis_hooks"):
        asyncio.run(testing.millis.start_outbound_call(OURS, THEIRS))


def test_without_the_plugin_it_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from millis_hooks.handlers.made_up_calls import is_under_pytest\n"
        "def test_it(): assert not is_under_pytest()\n"
    )
    assert "1 passed" in pytest_in(tmp_path, "-p", "no:millis_hooks", every_plugin=True).stdout
