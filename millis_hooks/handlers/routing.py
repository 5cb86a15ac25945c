"""The handler registry: which function wants which webhook, and for which calls.

Decorators return the function unchanged. What they take is in `options`, and what cannot work is
refused by `registration` when it is registered.

Makes a `Handler` of a function and its decorator's options.

Whatever can be checked is checked here: a handler that could never be called fails at import, and
the message names where it stands.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar, Unpack, overload

from ..exceptions import RegistrationError
from ..protocol.events import EndOfCall, PrefetchRequest, PrefetchResponse
from .failed_runs import ParkedRun
from .options import (
    DEFAULT_TIMEOUT_S,
    FIELDS,
    OPTIONS,
    EndOfCallOptions,
    Event,
    Handler,
    HandlerHook,
    ParkedOptions,
    PrefetchOptions,
    read_option,
    suggest,
)
from .signatures import check_signature, is_async, metadata_model, name_of, place_of

_TAKES: Mapping[HandlerHook, type] = {
    "prefetch": PrefetchRequest,
    "end_of_call": EndOfCall,
    "parked": ParkedRun,
}


def make_handler(
    hook: HandlerHook, function: Callable[..., Any], options: Mapping[str, object]
) -> Handler:
    """Return the handler that `function` is with these options.

    Raises `RegistrationError` for what cannot work.
    """
    if not callable(function):
        raise RegistrationError(f"on_{hook} takes a function, not {function!r}.")
    check_signature(function, _TAKES[hook], decorator=f"on_{hook}")
    return Handler(
        hook=hook,
        function=function,
        is_async=is_async(function),
        place=place_of(function),
        metadata_model=metadata_model(function) if hook == "prefetch" else None,
        **_fields(hook, function, options),
    )


def _fields(
    hook: HandlerHook, function: Callable[..., Any], options: Mapping[str, object]
) -> dict[str, Any]:
    """Return the fields of `Handler` that the options set."""
    where = f"{place_of(function)}: {name_of(function)} asks for"
    fields = {"name": name_of(function)}
    for option, value in options.items():
        if option not in OPTIONS[hook]:
            raise RegistrationError(
                f"{where} the unknown option {option!r}. {_taken(hook, option)}"
            )
        try:
            read = read_option(option, value)
        except ValueError as error:
            raise RegistrationError(f"{where} {option}={value!r}. {error}") from None
        if read is not None:
            fields[FIELDS.get(option, option)] = read
    return fields


def _taken(hook: HandlerHook, unknown: str) -> str:
    """Return what the decorator takes, to somebody who asked for something else."""
    known = OPTIONS[hook]
    rest = " Anything else about a call can be told by when=." if "when" in known else ""
    return f"on_{hook} takes {', '.join(known)}.{suggest(unknown, known)}{rest}"


__all__ = ["DEFAULT_TIMEOUT_S", "Event", "Handler", "HandlerHook", "Router"]

PrefetchAnswer: TypeAlias = PrefetchResponse | dict[str, Any] | str | None
PrefetchFunction: TypeAlias = Callable[
    [PrefetchRequest[Any]], PrefetchAnswer | Awaitable[PrefetchAnswer]
]
EndOfCallFunction: TypeAlias = Callable[[EndOfCall], object]
ParkedFunction: TypeAlias = Callable[[ParkedRun], object]

P = TypeVar("P", bound=PrefetchFunction)
E = TypeVar("E", bound=EndOfCallFunction)
K = TypeVar("K", bound=ParkedFunction)


class Router:
    """A collection of handlers; several can be put together with `include`."""

    def __init__(self) -> None:
        self._handlers: dict[tuple[str, str], Handler] = {}

    def __iter__(self) -> Iterator[Handler]:
        """All handlers, in the order of registration."""
        return iter(self._handlers.values())

    def matching(self, hook: HandlerHook, event: Event) -> list[Handler]:
        """Return the handlers whose filters let `event` through, in the order of registration."""
        return [handler for handler in self if handler.hook == hook and handler.wants(event)]

    def telling_of(self, handler_name: str) -> list[Handler]:
        """Return the handlers to be called when a run of the handler of this name is parked."""
        return [handler for handler in self if handler.hears_of(handler_name)]

    def get(self, hook: str, name: str) -> Handler | None:
        """Return the handler of this name, if there is one."""
        return self._handlers.get((hook, name))

    def include(self, router: Router) -> None:
        """Add the handlers of `router`; raises `RegistrationError` where a name is taken."""
        for handler in router:
            self.add(handler)

    def add(self, handler: Handler) -> None:
        """Add one handler; raises `RegistrationError` if another has its name."""
        known = self._handlers.setdefault((handler.hook, handler.name), handler)
        if known is not handler:
            raise RegistrationError(
                f"Two {handler.hook} handlers are named {handler.name!r}: at {known.place} and at "
                f"{handler.place}. Rename one, or pass name=... to its decorator."
            )

    def check(self) -> None:
        """Check what can only be told once all are registered: whom `on_parked(handler=)` names.

        Raises `RegistrationError` if that is no end-of-call handler.
        """
        known = [handler.name for handler in self if handler.hook == "end_of_call"]
        for handler in self:
            for name in sorted((handler.handlers or frozenset()).difference(known)):
                raise RegistrationError(
                    f"{handler.place}: {handler.name} asks for handler={name!r}, but no "
                    f"end-of-call handler has that name.{suggest(name, known)} "
                    f"Known: {', '.join(known) or 'none'}."
                )

    @overload
    def on_prefetch(self, function: P, /) -> P: ...
    @overload
    def on_prefetch(self, /, **options: Unpack[PrefetchOptions]) -> Callable[[P], P]: ...
    def on_prefetch(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that answers prefetch webhooks, before the call begins.

        It takes a `PrefetchRequest` and returns a `PrefetchResponse`, a `str` (the extra prompt),
        a dict in Millis' shape, or None. Of several matching handlers all run, side by side.

        `name=` is the function's own by default. `agent_id=` and `channel=` filter by one value or
        several, `when=` by a function of the call. `budget_s=` is its share of the caller's
        patience in seconds, the application's budget by default. Raises `RegistrationError` for
        what cannot work.
        """
        return self._register("prefetch", function, options)

    @overload
    def on_end_of_call(self, function: E, /) -> E: ...
    @overload
    def on_end_of_call(self, /, **options: Unpack[EndOfCallOptions]) -> Callable[[E], E]: ...
    def on_end_of_call(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that is called once a call has ended and is safely stored.

        It takes an `EndOfCall`; what it returns is not used. One that raises is called again, until
        `max_attempts=` (5) have begun; then its run is parked. It may raise `Retry` and `GiveUp`.

        `name=` is the function's own by default. `agent_id=`, `channel=`, `call_status=` and
        `outcome=` filter by one value or several, `when=` by a function of the call. An attempt is
        given up after `timeout_s=` (60) seconds; the next waits as `retry_backoff=`, a `Backoff`,
        says. At most `concurrency=` of its runs are at work at once. `repeatable=False` keeps
        people from replaying it. With `on_change=True` it is called again when a later end of the
        same call changes what is known of it. Raises `RegistrationError` for what cannot work.
        """
        return self._register("end_of_call", function, options)

    @overload
    def on_parked(self, function: K, /) -> K: ...
    @overload
    def on_parked(self, /, **options: Unpack[ParkedOptions]) -> Callable[[K], K]: ...
    def on_parked(self, function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Register a function that is called when a run is parked, to tell somebody.

        It takes a `ParkedRun`; what it returns is not used. It has attempts of its own, and nobody
        is told when they all fail.

        `name=` is the function's own by default. `handler=` names the end-of-call handlers whose
        parked runs it hears of, one or several; all by default. `max_attempts=` (5), `timeout_s=`
        (60) and `retry_backoff=` are as in `on_end_of_call`. Raises `RegistrationError` for what
        cannot work.
        """
        return self._register("parked", function, options)

    def _register(
        self, hook: HandlerHook, function: Callable[..., Any] | None, options: dict[str, Any]
    ) -> Any:
        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            self.add(make_handler(hook, function, options))
            return function

        return register if function is None else register(function)
