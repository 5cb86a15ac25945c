"""Answers in place of Millis: its API is never called for a call that Millis did not make.

This holds for the code of a handler that works on such a call, and for the tasks, threads and jobs
of thread pools that it begins. Those that go on after the handler get an error: by then they may
work for a real call, as a thread does that serves a queue. In a test nothing in the process reaches
Millis.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial, wraps
from typing import Any, TypeAlias

from ..exceptions import MillisRefusedError


@dataclass(frozen=True, slots=True)
class MillisRequest:
    """A request to Millis' API that was not sent there."""

    method: str
    #: Below the address of the API: `start_outbound_call`, `call-logs/-NxA1`.
    path: str
    query: Mapping[str, str]
    #: None where there is none.
    body: Mapping[str, Any] | None
    #: The address it would have gone to.
    base_url: str = ""


#: Gives the status and the body of an answer.
Answers: TypeAlias = Callable[[MillisRequest], Awaitable[tuple[int, bytes]]]


@dataclass(slots=True)
class _MadeUpCall:
    answers: Answers
    #: Whether its handler has ended.
    is_over: bool = False


_call: ContextVar[_MadeUpCall | None] = ContextVar("made_up_call", default=None)
#: Of the tests under way; the last one begun counts.
_for_the_process: list[Answers] = []
#: Set by the pytest plugin.
_pytest = threading.Event()

_OVER = (
    "Millis was not asked: this code was begun by the handler of a call that Millis did not make, "
    "and that handler has ended. Let the handler wait for what it begins, and begin what serves "
    "several calls in `lifespan`."
)


def who_answers() -> Answers | None:
    """Return what answers in place of Millis here; None where Millis itself does.

    Raises `MillisRefusedError` in what a handler began for a call that was made up, once it ended.
    """
    call = _call.get()
    if call is not None and not call.is_over:
        return call.answers
    if _for_the_process:
        return _for_the_process[-1]
    if call is not None:
        raise MillisRefusedError(_OVER)
    return None


def is_in_a_test() -> bool:
    """Tell whether a client of tests is at work in this process."""
    return bool(_for_the_process)


def is_under_pytest() -> bool:
    """Tell whether this process runs tests with the plugin."""
    return _pytest.is_set()


def note_pytest() -> None:
    """Note that this process runs tests."""
    _pytest.set()


@contextmanager
def answered_for_this_call(answers: Answers | None) -> Iterator[None]:
    """Have what the code within asks of Millis, and what it begins asks, answered by `answers`.

    With None it is Millis again: the code may have been begun by code that works for another call.
    """
    call = None if answers is None else _MadeUpCall(answers)
    if call is not None:
        _follow_threads()
    token = _call.set(call)
    try:
        yield
    finally:
        _call.reset(token)
        if call is not None:
            call.is_over = True


@contextmanager
def answered_in_this_process(answers: Answers) -> Iterator[None]:
    """Have whatever this process asks of Millis meanwhile answered by `answers`."""
    _for_the_process.append(answers)
    try:
        yield
    finally:
        _for_the_process.remove(answers)


_lock = threading.Lock()
#: What undoes `_follow_threads`, while that holds.
_put_back: list[Callable[[], bool]] = []


def _follow_threads() -> None:
    """Have threads and jobs of pools belong to the made-up call of the code that begins them.

    Tasks do so by themselves. Python has no hook for it: as what traces threads does, this replaces
    two methods. For code that works for no made-up call they do what they did.
    """
    with _lock:
        if not _put_back:
            _put_back.append(_replace_methods())


def stop_following_threads() -> None:
    """Put the two methods back, unless something else has replaced them since."""
    with _lock:
        if _put_back and _put_back[0]():
            _put_back.clear()


def _replace_methods() -> Callable[[], bool]:
    start = threading.Thread.start
    submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit

    @wraps(start)
    def start_for_call(thread: threading.Thread) -> None:
        if (call := _call.get()) is not None:
            thread.run = partial(_run, call, thread.run)  # type: ignore[method-assign]
        start(thread)

    @wraps(submit)
    def submit_for_call(
        pool: ThreadPoolExecutor, job: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        if (call := _call.get()) is None:
            return submit(pool, job, *args, **kwargs)
        # The job belongs to the call; a thread that the pool begins for it serves others, too.
        future: Future[Any] = _run(None, submit, pool, partial(_run, call, job), *args, **kwargs)
        return future

    def put_back() -> bool:
        ours = (start_for_call, submit_for_call)
        if (threading.Thread.start, ThreadPoolExecutor.submit) != ours:
            return False
        threading.Thread.start = start  # type: ignore[method-assign]
        ThreadPoolExecutor.submit = submit  # type: ignore[method-assign]
        return True

    threading.Thread.start = start_for_call  # type: ignore[assignment, method-assign]
    ThreadPoolExecutor.submit = submit_for_call  # type: ignore[assignment, method-assign]
    return put_back


def _run(call: _MadeUpCall | None, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = _call.set(call)
    try:
        return job(*args, **kwargs)
    finally:
        _call.reset(token)


logger = logging.getLogger("millis_hooks.millis_api")

_UNKNOWN = (404, b'{"detail":"Call history not found"}')
_STARTS = frozenset({"start_outbound_call", "register_call"})


async def all_went_well(request: MillisRequest) -> tuple[int, bytes]:
    """Answer that calls were started and ended, and that the call logs are empty."""
    if request.path in _STARTS:
        from ..protocol.samples import push_id  # pytest loads this module with every run

        started = {"session_id": push_id(_now()), "call_id": push_id(_now())}
        return 200, json.dumps(started).encode()
    if request.method == "GET":
        return (200, b'{"histories":[]}') if request.path == "call-logs" else _UNKNOWN
    return 200, b'{"success":true}'


async def logged(request: MillisRequest) -> tuple[int, bytes]:
    """Say in the log that a request was not sent, and answer it."""
    logger.info(
        "not sent to Millis, for a call that was made up: %s %s", request.method, request.path
    )
    return await all_went_well(request)


def _now() -> datetime:
    return datetime.now(UTC)
