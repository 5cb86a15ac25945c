"""Handlers with `cache_s=`: when their last answer is given again, to whom, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from millis_hooks import MillisHooks, PrefetchRequest, PrefetchResponse, RegistrationError, Router
from millis_hooks.testing import HooksClient
from millis_hooks.webhooks.prefetch_cache import PrefetchCache
from support.app import MakeHooks
from support.waiting import eventually


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Counted:
    """A prefetch handler that counts its calls, and fails if it is told to."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def __call__(self, call: PrefetchRequest) -> PrefetchResponse:
        self.calls += 1
        if self.fails:
            raise RuntimeError("no CRM")
        return PrefetchResponse(metadata={"n": self.calls}, keep={"k": self.calls})


@pytest.fixture
def handler() -> Counted:
    return Counted()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def client(hooks: MillisHooks, handler: Counted, clock: Clock) -> Iterator[HooksClient]:
    hooks.on_prefetch(cache_s=60, stale_s=600)(handler)
    with started(hooks, clock) as client:
        yield client


def started(hooks: MillisHooks, clock: Clock) -> Any:
    class Started(HooksClient):
        def __enter__(self) -> Started:
            super().__enter__()
            self.hooks.service.prefetch.cache = PrefetchCache(monotonic=clock)
            return self

    return Started(hooks)


def told(client: HooksClient, **request: Any) -> tuple[str, Any, Any]:
    reply = client.prefetch(**request)
    outcome = reply.delivery.outcome if reply.delivery else ""
    return outcome, reply.metadata.get("n"), reply.keep.get("k")


def test_a_caller_gets_the_last_answer_and_a_stale_one_while_a_new_one_is_fetched(
    client: HooksClient, handler: Counted, clock: Clock
) -> None:
    assert told(client) == ("fresh", 1, 1)
    clock.now_s += 60
    assert told(client) == ("cached", 1, 1)
    assert handler.calls == 1
    clock.now_s += 1
    assert told(client) == ("cached", 1, 1)
    eventually(lambda: not client.hooks.service.prefetch._renewing)
    assert told(client) == ("cached", 2, 2)
    assert handler.calls == 2


def test_a_failed_refresh_keeps_the_stale_answer_until_its_time(
    client: HooksClient, handler: Counted, clock: Clock
) -> None:
    assert told(client) == ("fresh", 1, 1)
    handler.fails = True
    clock.now_s += 600
    for _ in range(2):
        assert told(client) == ("cached", 1, 1)
        eventually(lambda: not client.hooks.service.prefetch._renewing)
    clock.now_s += 1
    assert told(client) == ("failed", None, None)


def test_a_simulated_call_fills_no_real_caller_s_cache(
    client: HooksClient, handler: Counted
) -> None:
    assert told(client, sandbox=True) == ("fresh", 1, 1)
    assert told(client) == ("fresh", 2, 2)
    assert told(client, sandbox=True) == ("cached", 1, 1)


@pytest.mark.parametrize(
    "other",
    [
        {"from_phone": "+15550177"},
        {"agent_id": "-another"},
        {"from_phone": None, "to_phone": None},
    ],
)
def test_no_caller_gets_the_answer_of_another(client: HooksClient, other: Any) -> None:
    told(client)
    assert told(client, **other)[0] == "fresh"


@pytest.mark.parametrize("nobody", ["anonymous", "", "266696687"])
def test_callers_without_a_number_of_their_own_are_asked_for_each(
    client: HooksClient, nobody: str
) -> None:
    assert [told(client, from_phone=nobody)[0] for _ in range(2)] == ["fresh", "fresh"]


@pytest.mark.parametrize("key", [None, "", "raises"])
def test_a_call_without_a_key_is_not_cached(
    hooks: MillisHooks, handler: Counted, clock: Clock, key: Any
) -> None:
    def key_of(call: PrefetchRequest) -> object:
        return call.metadata["id"] if key == "raises" else key

    hooks.on_prefetch(cache_s=60, key=key_of)(handler)
    with started(hooks, clock) as client:
        assert [told(client)[0] for _ in range(2)] == ["fresh", "fresh"]


def test_a_key_of_one_s_own_and_when_are_asked_for_every_call(
    hooks: MillisHooks, handler: Counted, clock: Clock
) -> None:
    hooks.on_prefetch(
        cache_s=60,
        key=lambda call: call.metadata.get("id"),
        when=lambda call: "no" not in call.metadata,
    )(handler)
    with started(hooks, clock) as client:
        web: dict[str, Any] = {"from_phone": None, "to_phone": None}
        assert told(client, **web, metadata={"id": "7"}) == ("fresh", 1, 1)
        assert told(client, metadata={"id": "7"}) == ("cached", 1, 1)
        assert told(client, metadata={"id": "8"}) == ("fresh", 2, 2)
        assert told(client, metadata={"id": "7", "no": "x"}) == ("fresh", None, None)


def test_beside_a_handler_that_was_called_the_answer_is_fresh(
    make_hooks: MakeHooks, handler: Counted, clock: Clock
) -> None:
    hooks = make_hooks()
    hooks.on_prefetch(cache_s=60)(handler)
    hooks.on_prefetch(name="plain")(lambda call: {"metadata": {"m": 1}})
    with started(hooks, clock) as client:
        assert [told(client) for _ in range(2)] == [("fresh", 1, 1)] * 2
    assert handler.calls == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache_s": 0}, "a number of seconds over 0"),
        ({"cache_s": "60"}, "a number of seconds over 0"),
        ({"stale_s": 60}, "without cache_s="),
        ({"key": len}, "without cache_s="),
        ({"cache_s": 60, "stale_s": 59}, "less than cache_s"),
        ({"cache_s": 60, "key": "customer"}, "a plain function"),
        ({"cache_s": 60, "channel": "web"}, "cache_s= without key="),
    ],
)
def test_options_that_do_not_go_together_fail_at_import(options: Any, words: str) -> None:
    with pytest.raises(RegistrationError, match=words):
        Router().on_prefetch(**options)(lambda call: None)


def test_the_cache_has_a_size(clock: Clock) -> None:
    cache = PrefetchCache(max_bytes=10, monotonic=clock)
    for name in ("a", "b", "c"):
        cache.put((name,), b"1234", None)
    assert [cache.get((name,), 1) is not None for name in ("a", "b", "c")] == [False, True, True]
    cache.put(("huge",), b"x" * 11, None)
    assert cache.get(("huge",), 1) is None
