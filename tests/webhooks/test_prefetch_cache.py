"""The cache of last good answers."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from millis_hooks import PrefetchRequest
from millis_hooks.call_log.deliveries import insert_deliveries
from millis_hooks.webhooks.prefetch_cache import MAX_AGE, PrefetchCache
from support.storage import NOW, opened, prefetched


def caller(phone: str | None = "+15550100", agent_id: str = "-agent") -> PrefetchRequest:
    return PrefetchRequest(session_id="-Ox1", agent_id=agent_id, from_phone=phone)


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def cache(clock: Clock) -> PrefetchCache:
    return PrefetchCache(max_callers=2, monotonic=clock)


def answer_of(cache: PrefetchCache, call: PrefetchRequest) -> bytes | None:
    given = cache.find(call)
    return given.answer if given is not None else None


def test_a_caller_gets_the_last_good_answer_again() -> None:
    remembered = cache(Clock())
    remembered.keep(caller(), b"old")
    remembered.keep(caller(), b"new")
    assert answer_of(remembered, caller()) == b"new"


@pytest.mark.parametrize("other", [caller("+15550199"), caller(agent_id="-other"), caller(None)])
def test_no_caller_gets_the_answer_of_another(other: PrefetchRequest) -> None:
    remembered = cache(Clock())
    remembered.keep(caller(), b"mine")
    assert answer_of(remembered, other) is None


def test_a_caller_of_our_one_number_is_told_from_the_next() -> None:
    remembered = cache(Clock())
    outbound = PrefetchRequest(session_id="-1", from_phone="+15550199", to_phone="+15550100")
    remembered.keep(outbound, b"mine")
    next_one = PrefetchRequest(session_id="-2", from_phone="+15550199", to_phone="+15550101")
    assert answer_of(remembered, next_one) is None


def test_a_caller_without_a_number_is_unknown() -> None:
    remembered = cache(Clock())
    remembered.keep(caller(None), b"somebody's")
    assert answer_of(remembered, caller(None)) is None


def test_a_good_answer_is_good_for_its_time() -> None:
    clock = Clock()
    remembered = cache(clock)
    remembered.keep(caller(), b"good")
    clock.now_s += MAX_AGE.total_seconds()
    assert answer_of(remembered, caller()) == b"good"
    clock.now_s += 0.001
    assert answer_of(remembered, caller()) is None


def test_an_older_answer_takes_no_newer_ones_place() -> None:
    remembered = cache(Clock())
    remembered.keep(caller(), b"newer", age_s=10)
    remembered.keep(caller(), b"older", age_s=20)
    assert answer_of(remembered, caller()) == b"newer"


def test_of_many_callers_the_latest_are_remembered() -> None:
    remembered = cache(Clock())
    for phone in ("+15550101", "+15550102", "+15550101", "+15550103"):
        remembered.keep(caller(phone), phone.encode())
    found = [
        answer_of(remembered, caller(phone)) for phone in ("+15550101", "+15550102", "+15550103")
    ]
    assert found == [b"+15550101", None, b"+15550103"]


@pytest.mark.both_databases
def test_what_a_simulated_call_or_a_failure_was_answered_is_not_loaded(tmp_path: Path) -> None:
    answers: dict[str, dict[str, Any]] = {
        "+15550101": {"answer": b"made up", "source": "sandbox"},
        "+15550102": {"answer": b"default", "outcome": "default", "reason": "failed"},
        "+15550103": {"answer": b"half", "reason": "one of two failed"},
        "+15550104": {"answer": b"good"},
        "+15550105": {"answer": b"old", "at": NOW - timedelta(days=2)},
    }
    loaded = PrefetchCache(monotonic=Clock())
    with opened(tmp_path) as database:
        with database.writer.begin() as connection:
            insert_deliveries(
                connection,
                [
                    prefetched("-a", **columns, query=f"session_id=-a&agent_id=-agent&from={phone}")
                    for phone, columns in answers.items()
                ],
            )
        loaded.load(database.reader, now=NOW)
    found = [answer_of(loaded, caller(phone)) for phone in answers]
    assert found == [None, None, None, b"good", None]
