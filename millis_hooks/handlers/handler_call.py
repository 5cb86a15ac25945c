"""A handler, one call of it, the threads of handlers that are not async, and the interruption of
a call that continues after it was given up.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any, Literal, NamedTuple, TypeAlias

from pydantic import BaseModel

from ..exceptions import HandlerError
from ..protocol.events import EndOfCall
from ..protocol.functions import FunctionRequest, Tool
from ..protocol.phones import digits_of, looked_for
from ..protocol.prefetch import PrefetchRequest
from .retries import Backoff, FailedRun

#: What a handler is called for: a webhook, or a run that has failed.
HandlerHook: TypeAlias = Literal["prefetch", "function", "end_of_call", "failed"]
#: The hooks whose handlers answer Millis while a call waits. They have no runs.
ANSWERING: frozenset[HandlerHook] = frozenset({"prefetch", "function"})
#: What a handler is called with.
Event: TypeAlias = (
    PrefetchRequest[Any, Any] | FunctionRequest[Any] | EndOfCall[Any, Any] | FailedRun
)

#: How long a run's handler may take by default, in seconds.
DEFAULT_TIMEOUT_S = 60.0
#: How long a function may take by default, in seconds.
DEFAULT_FUNCTION_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """A registered function, with its options."""

    name: str
    hook: HandlerHook
    function: Callable[..., Any]
    is_async: bool
    place: str  # file:line, for messages
    metadata_model: type[BaseModel] | None = None
    #: The values that an attribute of the event may have, by the name of the attribute.
    accepted: Mapping[str, frozenset[str]] = field(default_factory=dict)
    when: Callable[[Any], object] | None = None
    #: None is `DEFAULT_TIMEOUT_S`; for prefetch, the application's budget.
    timeout_s: float | None = None
    #: Of a prefetch handler: how long its answer is given again, how long while a new one is
    #: fetched, and by what it is found.
    cache_s: float | None = None
    stale_s: float | None = None
    key: Callable[[Any], object] | None = None
    #: Of a function: what Millis knows of it, and what goes out when it fails or is late.
    tool: Tool | None = None
    fallback: str | None = None
    answer: Literal["json", "text"] = "json"
    max_attempts: int = 5
    retry_backoff: Backoff = field(default_factory=Backoff)
    concurrency: int | None = None  # most runs at work at once
    repeatable: bool = True  # whether an operator may replay its runs
    on_change: bool = False  # whether it is called again when a later end-of-call changes the call

    def matches(self, event: Event) -> bool:
        """Tell whether the filters accept `event`, except `when`, which is the team's own code."""
        return all(_compared(event, name) in values for name, values in self.accepted.items())

    def call(self, event: Any) -> Any:
        """Call the function as its signature asks for."""
        if self.tool is None:
            return self.function(event)
        request = {} if self.tool.takes_request is None else {self.tool.takes_request: event}
        return self.function(**event.arguments, **request)

    def filters(self) -> dict[str, list[str]]:
        """Return the accepted values, sorted, by the name of the filter."""
        return {name: sorted(values) for name, values in self.accepted.items()}

    def prepare(self, event: Event, state: object) -> Event:
        """Return `event` with this handler's metadata type, idempotency key and `state`."""
        if isinstance(event, FailedRun):
            event.call._state, event.call._handler = state, event.handler
            return event
        if self.metadata_model is not None and not isinstance(event, FunctionRequest):
            typed = event.typed(self.metadata_model)
            if isinstance(event, PrefetchRequest):
                event.problems = typed.problems  # the endpoint reports them
            event = typed
        if isinstance(event, EndOfCall):
            event._handler = self.name
        event._state = state
        return event


def _compared(event: Event, name: str) -> object:
    """Return an attribute of an event as filters have it."""
    value: object = getattr(event, name)
    if name == "to_phone" and isinstance(value, str):
        return f"+{digits_of(looked_for(value))}"
    return value


#: Calls that may wait for a blocked loop or for a free thread; more fail at once.
MAX_WAITING = 1000
#: What an interruption may take to arrive on a busy machine.
ARRIVAL_S = 1.0

#: Modules whose locks every thread needs. One that is interrupted as it is taken stays locked.
_DELICATE = {"logging", "importlib._bootstrap"}
_PAUSE_S = 0.001


class _NotWanted:
    """The type of `NOT_WANTED`."""


#: The value of a handler whose `when` did not accept the event.
NOT_WANTED = _NotWanted()


class HandlerResult(NamedTuple):
    """What a handler returned or raised, and how long it took; 0 ms if it did not begin."""

    value: object = None
    error: BaseException | None = None
    duration_ms: float = 0.0


_NO_RESULT = HandlerResult()

#: A context that a handler runs in, entered and left on its thread.
Around: TypeAlias = AbstractContextManager[None]
NOTHING_AROUND: Around = nullcontext()

#: Reads what a handler returned, while its time runs: a generator is code of the team's, too.
Read: TypeAlias = Callable[[Any], Any]
Done: TypeAlias = Callable[[HandlerResult], None]
Left: TypeAlias = Callable[[], None]


class HandlerInterrupted(BaseException):
    """Raised inside a handler that was given up and did not end. Not an `Exception`: a handler that
    catches every error of its work does not mean to catch this one."""


class HandlerCall:
    """One call of a handler. Exactly one result is delivered to `done`, on any thread.

    A call that was given up may continue: `left` is called when its code is over. `begun_at` is in
    seconds of the monotonic clock, and None while the call waits for a loop or a thread.
    """

    __slots__ = (
        "_done",
        "_left",
        "_lock",
        "around",
        "begun_at",
        "has_left",
        "interruption",
        "is_given_up",
        "is_over",
        "name",
        "read",
        "result",
        "task",
        "thread_id",
    )

    def __init__(
        self,
        name: str,
        done: Done,
        left: Left | None = None,
        around: Around = NOTHING_AROUND,
        read: Read | None = None,
    ) -> None:
        self.name = name
        self.around = around
        self.read = read
        self.begun_at: float | None = None
        self.result = _NO_RESULT
        self.is_given_up = False
        self.is_over = False
        self.has_left = False
        self.task: asyncio.Task[Any] | None = None
        self.thread_id: int | None = None
        self.interruption = threading.Lock()  # held while one is under way
        self._lock = threading.Lock()
        self._done: Done | None = done
        self._left = left

    def begin(self) -> bool:
        """Start the clock; False if the result was delivered already."""
        self.begun_at = time.monotonic()
        if self._done is not None:
            return True
        with self._lock:  # `done`, which may run in another thread, returns before `left` is called
            return False

    def finish(self, value: object = None, error: BaseException | None = None) -> None:
        """Deliver what the handler returned or raised, unless it was given up."""
        if not self.is_given_up:
            with self._lock:
                self._deliver(value, error)

    def give_up(self, error: BaseException) -> bool:
        """Deliver `error`, however the handler will end; False if it has ended before."""
        if self.is_given_up:
            return False
        with self._lock:
            if self._done is None:
                return False
            self.is_given_up = True
            self._deliver(None, error)
        return True

    def seal(self) -> None:
        """Let no interruption reach what the thread does next, when the handler's code is over.

        The interruption may still arrive in here.
        """
        if self.is_given_up:
            self.is_over = True
            with self.interruption:  # free once one that has not arrived was taken back
                pass

    def leave(self) -> None:
        """Tell that the handler's code is over; once, and after `finish`."""
        self.has_left = True
        if self._left is not None:
            self._left()

    def refuse(self, error: BaseException) -> None:
        """Deliver `error` for a handler that is not begun at all."""
        self.finish(error=error)
        self.leave()

    def _deliver(self, value: object, error: BaseException | None) -> None:
        done, self._done = self._done, None
        if done is not None:
            taken_s = time.monotonic() - self.begun_at if self.begun_at is not None else 0.0
            self.result = HandlerResult(value, error, taken_s * 1000)
            done(self.result)


class HandlerThreads:
    """Daemon threads, made when needed. The standard pool joins its threads at exit, and a handler
    that never returns would keep the process alive.

    At most `most` calls are at work. A thread whose call was given up is abandoned: it ends when
    that call returns, and another thread takes its place. With `most` abandoned calls, a handler
    that has any of them gets no more threads.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._threads = 0  # without abandoned ones
        self._unfinished = 0  # calls that wait for these threads or are at work in them
        self._at_work: set[HandlerCall] = set()
        self._abandoned: set[HandlerCall] = set()
        self._queue: SimpleQueue[tuple[HandlerCall, Callable[[], Any]] | None] = SimpleQueue()
        self._lock = threading.Lock()

    def put(self, call: HandlerCall, work: Callable[[], Any]) -> None:
        """Have `work` done in a thread; a call without a chance of one is refused."""
        with self._lock:
            refusal = self._refusal(call)
            self._unfinished += refusal is None
        if refusal is None:
            self._queue.put((call, work))
        else:
            call.refuse(HandlerError(refusal))

    def abandon(self, call: HandlerCall) -> None:
        """Replace the thread of a call that was given up."""
        with self._lock:
            if call in self._at_work:
                self._at_work.discard(call)
                self._abandoned.add(call)
                self._threads -= 1
                self._unfinished -= 1
                self._make_thread(self._unfinished)

    def close(self) -> None:
        """Make no more threads, and let these end after the calls that they have."""
        with self._lock:
            self._most = 0
            for _ in range(self._threads):
                self._queue.put(None)

    def hung(self) -> set[str]:
        """Return the names of the handlers that get no more threads."""
        with self._lock:
            return self._hung()

    def _refusal(self, call: HandlerCall) -> str | None:
        if call.name in self._hung():
            return "All its places are taken by calls that do not return."
        self._make_thread(self._unfinished + 1)
        if not self._threads or self._unfinished - self._threads >= MAX_WAITING:
            return "All threads for handlers are busy."
        return None

    def _hung(self) -> set[str]:
        is_full = len(self._abandoned) >= self._most
        return {call.name for call in self._abandoned} if is_full else set()

    def _make_thread(self, needed: int) -> None:
        if self._threads < min(needed, self._most):
            thread = threading.Thread(target=self._run, name="millis-hooks-handler", daemon=True)
            with suppress(RuntimeError):  # no thread can be made now; the next call tries again
                thread.start()
                self._threads += 1

    def _run(self) -> None:
        is_abandoned = False
        while not is_abandoned and (item := self._queue.get()) is not None:
            call, work = item
            call.thread_id = threading.get_ident()
            with self._lock:
                self._at_work.add(call)
            with suppress(HandlerInterrupted):  # it may arrive when the handler has just ended
                _do(call, work)
                call.seal()
            is_abandoned = self._end(call)

    def _end(self, call: HandlerCall) -> bool:
        """Tell that the code of a call is over; return whether its thread was abandoned."""
        with self._lock:
            is_abandoned = call not in self._at_work
            self._at_work.discard(call)
            self._abandoned.discard(call)
            self._unfinished -= not is_abandoned
        call.leave()
        return is_abandoned


def _do(call: HandlerCall, work: Callable[[], Any]) -> None:
    if call.begin():
        try:
            value = work()
        except BaseException as error:  # also SystemExit: the thread is used again
            call.finish(error=error)
        else:
            call.finish(value)


def interrupt(call: HandlerCall, thread_id: int) -> None:
    """Raise `HandlerInterrupted` in the thread that runs a call which was given up.

    Code inside a call into C, such as one that waits for a socket, is not reached: what has not
    arrived after `ARRIVAL_S` is taken back. Blocks meanwhile.
    """
    # https://docs.python.org/3/c-api/threads.html#c.PyThreadState_SetAsyncExc
    import ctypes  # rarely needed, and slow to import

    raise_in = ctypes.pythonapi["PyThreadState_SetAsyncExc"]  # a handle with our own argument types
    raise_in.argtypes = (ctypes.c_ulong, ctypes.py_object)
    error, nothing = ctypes.py_object(HandlerInterrupted), ctypes.py_object()
    own_id, end = threading.get_ident(), time.monotonic() + ARRIVAL_S
    # From here on no function written in Python is called. Before CPython 3.13 all threads stop to
    # look at every call until the exception is raised, and in 3.11 those that are traced, as by
    # a debugger or for coverage, come no further than that.
    with call.interruption:
        if not call.is_over:
            raise_in(thread_id, error)
        while not call.is_over and time.monotonic() < end:
            time.sleep(_PAUSE_S)
        raise_in(thread_id, nothing)
    try:  # noqa: SIM105 - what was taken back keeps them looking, and this one here ends that
        raise_in(own_id, error)
    except HandlerInterrupted:
        pass


def may_hold_lock_of_all(thread_id: int) -> bool:
    """Tell whether a thread may just be taking a lock that every thread needs."""
    frame = sys._current_frames().get(thread_id)
    return frame is not None and frame.f_globals.get("__name__") in _DELICATE
