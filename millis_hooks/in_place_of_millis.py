"""What answers in place of Millis: its API is never asked for a call that Millis did not make.

That is so for the code of a handler that works on such a call, and for the tasks, threads and jobs
of thread pools that it begins. In a test it is so for the whole process.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache, partial, wraps
from typing import Any, TypeAlias


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

_for_this_call: ContextVar[Answers | None] = ContextVar("answers_in_place_of_millis", default=None)
#: Of the tests under way; the last one begun counts.
_for_the_process: list[Answers] = []
#: Set by the pytest plugin.
_pytest = threading.Event()


def who_answers() -> Answers | None:
    """Return what answers in place of Millis here; None where Millis itself does."""
    in_tests = _for_the_process[-1] if _for_the_process else None
    return _for_this_call.get() or in_tests


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
    if answers is not None:
        _carry_into_threads()
    token = _for_this_call.set(answers)
    try:
        yield
    finally:
        _for_this_call.reset(token)


@contextmanager
def answered_in_this_process(answers: Answers) -> Iterator[None]:
    """Have whatever this process asks of Millis meanwhile answered by `answers`."""
    _for_the_process.append(answers)
    try:
        yield
    finally:
        _for_the_process.remove(answers)


@cache
def _carry_into_threads() -> None:
    """Have threads and jobs of pools belong to the call of the code that begins them.

    Tasks do so by themselves. Python has no hook for it: what traces threads replaces the same two
    methods.
    """
    start = threading.Thread.start
    submit: Callable[..., Future[Any]] = ThreadPoolExecutor.submit

    @wraps(start)
    def start_for_call(thread: threading.Thread) -> None:
        answers = _for_this_call.get()
        if answers is not None:
            thread.run = partial(_run, answers, thread.run)  # type: ignore[method-assign]
        start(thread)

    @wraps(submit)
    def submit_for_call(
        pool: ThreadPoolExecutor, job: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> Future[Any]:
        # Also of real calls: a thread of the pool may have been begun for one that was made up.
        return submit(pool, partial(_run, _for_this_call.get(), job), *args, **kwargs)

    threading.Thread.start = start_for_call  # type: ignore[assignment, method-assign]
    ThreadPoolExecutor.submit = submit_for_call  # type: ignore[assignment, method-assign]


def _run(answers: Answers | None, job: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = _for_this_call.set(answers)
    try:
        return job(*args, **kwargs)
    finally:
        _for_this_call.reset(token)
